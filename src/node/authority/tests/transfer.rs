//! Pulls and pushes.

use super::client::*;
use crate::region::Epoch;
use crate::store::Errno;
use crate::transport::stream::{self, Frame};
use crate::units::REGION_BYTES_MAX;
use crate::wire::*;

/// Bytes of which none is zero.
fn pattern(len: usize) -> Vec<u8> {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1;
    (0..len as u32).map(byte).collect()
}

fn refused(errno: Errno) -> i32 {
    errno.raw_os_error()
}

fn extent(start: u64, end: u64) -> Extent {
    Extent { start, end }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_pulled() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    let whole = pattern(TRANSFER_BYTES_MAX as usize);
    let attr = client.push(handle, 4096, &whole).await.unwrap();
    assert_eq!(attr.size, 4096 + TRANSFER_BYTES_MAX);
    assert_eq!(client.bytes(handle, 0, 4096).await, [0; 4096]);
    let pulled = client.bytes(handle, 4096, attr.size).await;
    assert!(pulled == whole, "bytes differ");
    let pulled = client.bytes(handle, 5000, 5777).await;
    assert_eq!(pulled, whole[5000 - 4096..5777 - 4096]);
    let last = client.pull(handle, attr.size - 1, attr.size + 9).await;
    let (size, zero_until, frames) = last.unwrap();
    assert_eq!((size, zero_until), (attr.size, attr.size + 9));
    let sent: u64 = frames.iter().map(len).sum();
    assert_eq!(sent, 1, "no further than the end");
    let past = client.pull(handle, attr.size + 1, attr.size + 9).await;
    assert!(past.unwrap().2.is_empty());
    let nothing = client.pull(handle, 5000, 5000).await;
    assert!(nothing.unwrap().2.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_opened_and_pulled_at_once() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    let bytes = pattern(20_000);
    client.push(handle, 0, &bytes).await.unwrap();
    let request = |end| ReadRequest::OpenAndPull {
        node: file.clone(),
        access: Access::Read,
        end,
        compress: false,
    };
    let (_send, mut receive) = client.ask(&Request::Read(request(1 << 17))).await;
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    let (opened, attr) = opened(reply.result);
    assert_eq!(attr.size, 20_000);
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert!(matches!(
        reply.result,
        Ok(Answer::Pulled { size: 20_000, .. })
    ));
    let frame = stream::receive_frame(&mut receive, 20_000).await.unwrap();
    let Frame::Data(pieces) = frame else {
        panic!("{frame:?}")
    };
    assert!(pieces.concat() == bytes);
    assert_eq!(receive.read_chunk(1, true).await.unwrap(), None, "too much");
    assert_eq!(client.bytes(opened, 0, 10).await, bytes[..10]);
    // Too much is refused, and what was opened stays open.
    let (_send, mut receive) = client
        .ask(&Request::Read(request(TRANSFER_BYTES_MAX + 1)))
        .await;
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert!(reply.result.is_ok());
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(reply.result, Err(refused(Errno::INVAL)));
    let directory = ReadRequest::OpenAndPull {
        node: client.root(),
        access: Access::Read,
        end: 1,
        compress: false,
    };
    assert_eq!(client.read(directory).await, Err(refused(Errno::ISDIR)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_lists_the_root() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    assert_eq!(client.welcome.listing, None, "it was not asked for");
    for number in 0..=LISTING_ENTRIES_MAX {
        client.create(&format!("other{number}")).await;
    }
    let asking = Hello {
        listing: true,
        ..hello(2)
    };
    let second = server.hello(&server.key, asking).await.unwrap();
    let listing = second.welcome.listing.as_ref().unwrap();
    assert_eq!(listing.entries.len(), LISTING_ENTRIES_MAX);
    // Whoever was told of a node is told when it changes.
    let entries = &listing.entries;
    let entry = entries
        .iter()
        .find(|entry| entry.name != name("file"))
        .unwrap();
    let changed = Node {
        id: entry.attr.id,
        path: RelPath::root().join(&entry.name).unwrap(),
    };
    let (handle, _) = client.open(&changed, Access::Write).await;
    let (pushed, taken) = tokio::join!(client.push(handle, 0, b"more"), second.take());
    assert_eq!((pushed.unwrap().size, taken.0), (4, entry.attr.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn extents_and_frames_need_not_match() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.push(handle, 0, &pattern(20_000)).await.unwrap();
    let extents = vec![extent(10, 20), extent(100, 5000), extent(9000, 9001)];
    let request = ChangeRequest::Push {
        handle,
        epoch: EPOCH,
        extents,
    };
    let (mut send, mut receive) = client
        .ask(&Request::Change(client.sequence(), request))
        .await;
    let data = |len| bytes::Bytes::from(vec![0xff; len]);
    stream::send_frame(&mut send, data(5), false).await.unwrap();
    stream::send_zeroes(&mut send, 4005).await.unwrap();
    stream::send_frame(&mut send, data(901), true)
        .await
        .unwrap();
    send.finish().unwrap();
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(attr(reply.result).size, 20_000);
    let mut expected = pattern(20_000);
    expected[10..15].fill(0xff);
    expected[15..20].fill(0);
    expected[100..4100].fill(0);
    expected[4100..5000].fill(0xff);
    expected[9000] = 0xff;
    assert!(
        client.bytes(handle, 0, 20_000).await == expected,
        "bytes differ"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_of_a_tebibyte_cost_nothing() {
    const SIZE: u64 = 1 << 40;
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.push(handle, SIZE / 2, b"island").await.unwrap();
    client.push(handle, SIZE - 1, b"!").await.unwrap();
    let (size, zero_until, frames) = client.pull(handle, 0, TRANSFER_BYTES_MAX).await.unwrap();
    assert_eq!(size, SIZE);
    assert_eq!(frames, [Frame::Zero(TRANSFER_BYTES_MAX as u32)]);
    assert!(zero_until <= SIZE / 2 && zero_until > SIZE / 2 - TRANSFER_BYTES_MAX);
    let middle = client
        .pull(handle, zero_until, zero_until + (1 << 20))
        .await;
    let (_, zero_until, frames) = middle.unwrap();
    assert!(frames.iter().any(|frame| matches!(frame, Frame::Data(_))));
    assert!(
        frames.iter().any(|frame| matches!(frame, Frame::Zero(_))),
        "{}",
        frames.len()
    );
    assert!(zero_until < SIZE && zero_until > SIZE - TRANSFER_BYTES_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_reach_to_the_end_of_the_file() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    let set = SetAttr {
        size: Some(1 << 40),
        ..SetAttr::default()
    };
    let node = file.clone();
    let request = ChangeRequest::SetAttr {
        node,
        handle: None,
        set,
        by: BY,
    };
    client.change(request).await.unwrap();
    let (_, zero_until, _) = client.pull(handle, 4096, 8192).await.unwrap();
    assert_eq!(zero_until, 1 << 40);
    let (_, zero_until, frames) = client.pull(handle, (1 << 40) - 1, 1 << 40).await.unwrap();
    assert_eq!((zero_until, frames), (1 << 40, vec![Frame::Zero(1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn allocation_follows_its_mode() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    client.push(handle, 0, &pattern(16_384)).await.unwrap();
    let allocate = |handle, start, end, mode| ChangeRequest::Allocate {
        handle,
        start,
        end,
        mode,
    };
    let punched = client
        .change(allocate(handle, 4096, 8192, Allocate::PunchHole))
        .await;
    assert_eq!(attr(punched).size, 16_384);
    assert_eq!(
        client
            .bytes(handle, 4095, 8193)
            .await
            .iter()
            .filter(|b| **b > 0)
            .count(),
        2
    );
    let grown = client
        .change(allocate(handle, 0, 20_000, Allocate::Extend))
        .await;
    assert_eq!(attr(grown).size, 20_000);
    let empty = client
        .change(allocate(handle, 5, 5, Allocate::Extend))
        .await;
    assert_eq!(empty, Err(refused(Errno::INVAL)));
    let far = client
        .change(allocate(handle, 5, u64::MAX, Allocate::Extend))
        .await;
    assert_eq!(far, Err(refused(Errno::FBIG)));
    let (reader, _) = client.open(&file, Access::Read).await;
    let read_only = client
        .change(allocate(reader, 0, 5, Allocate::Extend))
        .await;
    assert_eq!(read_only, Err(refused(Errno::BADF)));
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_transfers_are_refused() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    for (start, end) in [(5, 4), (0, TRANSFER_BYTES_MAX + 1), (0, u64::MAX)] {
        let pulled = client.pull(handle, start, end).await.map(|_| ());
        assert_eq!(pulled, Err(refused(Errno::INVAL)), "{start}..{end}");
    }
    let many = (0..=PUSH_EXTENTS_MAX as u64).map(|i| extent(i * 2, i * 2 + 1));
    for (extents, why) in [
        (vec![], Errno::INVAL),
        (vec![extent(5, 5)], Errno::INVAL),
        (vec![extent(5, 4)], Errno::INVAL),
        (vec![extent(0, 5), extent(5, 6)], Errno::INVAL),
        (vec![extent(9, 10), extent(5, 6)], Errno::INVAL),
        (vec![extent(0, TRANSFER_BYTES_MAX + 1)], Errno::INVAL),
        (vec![extent(0, u64::MAX)], Errno::FBIG),
        (
            vec![extent(REGION_BYTES_MAX, REGION_BYTES_MAX + 1)],
            Errno::FBIG,
        ),
        (many.collect(), Errno::INVAL),
    ] {
        let said = format!("{extents:?}");
        let (_, reply) = client
            .push_all(client.sequence(), handle, extents, b"")
            .await;
        assert_eq!(reply.result, Err(refused(why)), "{said}");
    }
    let request = ChangeRequest::Push {
        handle,
        epoch: Epoch(2),
        extents: vec![extent(0, 1)],
    };
    let (mut send, mut receive) = client
        .ask(&Request::Change(client.sequence(), request))
        .await;
    let byte = bytes::Bytes::from_static(b"x");
    stream::send_frame(&mut send, byte, false).await.unwrap();
    send.finish().unwrap();
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(reply.result, Err(refused(Errno::STALE)), "another epoch");
    assert!(
        client.bytes(handle, 0, 10).await.is_empty(),
        "nothing was applied"
    );
}
