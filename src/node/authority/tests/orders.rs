//! In which order files are touched: told and asked for.

use super::client::*;
use crate::region::ORDER_RUNS_MAX;
use crate::store::Errno;
use crate::wire::*;

fn page(first: u64) -> Pages {
    Pages { first, count: 1 }
}

async fn order(client: &Client, handle: HandleId) -> Result<Vec<Pages>, i32> {
    match client.read(ReadRequest::Order { handle }).await? {
        Answer::Order(runs) => Ok(runs),
        other => panic!("{other:?}"),
    }
}

async fn touched(client: &Client, handle: HandleId, runs: Vec<Pages>) -> Result<Answer, i32> {
    client.read(ReadRequest::Touched { handle, runs }).await
}

async fn learning(client: &Client, node: &Node) -> Learning {
    let (node, access) = (node.clone(), Access::Read);
    match client.read(ReadRequest::Open { node, access }).await {
        Ok(Answer::Opened { learning, .. }) => learning,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_touched_another_is_told() {
    let server = Server::in_memory();
    let first = server.client(1).await;
    let (handle, file) = first.create("file").await;
    assert_eq!(learning(&first, &file).await, Learning::Off, "it is small");
    first.push(handle, 8 << 20, b"end").await.unwrap();
    let (writing, another) = first.create("other").await;
    first.push(writing, 8 << 20, b"end").await.unwrap();
    // Only now: nothing is changed any more that it would have to take in.
    let second = server.client(2).await;
    assert_eq!(learning(&second, &file).await, Learning::New);
    let scattered: Vec<Pages> = (0..50).map(|i| page(2000 - 7 * i)).collect();
    let done = touched(&first, handle, scattered.clone()).await;
    assert_eq!(done, Ok(Answer::Done));
    // Known already, past the end, and none at all.
    let more = vec![
        page(2000),
        page(9999),
        Pages { first: 5, count: 0 },
        page(5),
    ];
    touched(&first, handle, more).await.unwrap();
    assert_eq!(learning(&second, &file).await, Learning::Known);
    let (other, _) = second.open(&file, Access::Read).await;
    let expected = [scattered, vec![page(5)]].concat();
    assert_eq!(order(&second, other).await, Ok(expected));
    assert_eq!(learning(&first, &another).await, Learning::New);
    assert_eq!(order(&first, writing).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_much_is_told_and_only_of_open_files() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.push(handle, 1 << 30, b"end").await.unwrap();
    let runs = |count: u64| (0..count).map(|i| page(i * 2)).collect::<Vec<_>>();
    let many = ORDER_RUNS_MAX as u64;
    let refused = touched(&client, handle, runs(many + 1)).await;
    assert_eq!(refused, Err(Errno::INVAL.raw_os_error()));
    assert_eq!(order(&client, handle).await, Ok(Vec::new()));
    touched(&client, handle, runs(many)).await.unwrap();
    let wild = [(u64::MAX, u64::MAX), (1, u64::MAX), (1 << 52, 1)];
    let wild = wild.map(|(first, count)| Pages { first, count });
    touched(&client, handle, wild.into()).await.unwrap();
    let told = order(&client, handle).await.unwrap();
    assert_eq!(told.len(), ORDER_RUNS_MAX);
    let nobodys = HandleId {
        number: handle.number.wrapping_add(1000),
        ..handle
    };
    let refused = Errno::BADF.raw_os_error();
    assert_eq!(touched(&client, nobodys, runs(1)).await, Err(refused));
    assert_eq!(order(&client, nobodys).await, Err(refused));
}
