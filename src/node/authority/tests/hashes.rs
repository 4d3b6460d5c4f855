//! Hashes: right, and bounded.

use super::client::*;
use crate::store::Errno;
use crate::units::REGION_BYTES_MAX;
use crate::wire::*;

async fn hashes(
    client: &Client,
    handle: HandleId,
    extents: &[(u64, u64)],
    unit: u32,
) -> Result<(u64, Vec<Hash>), i32> {
    let extents = extents.iter().map(|&(start, end)| Extent { start, end });
    let extents = extents.collect();
    let request = ReadRequest::Hashes {
        handle,
        extents,
        unit,
    };
    match client.read(request).await? {
        Answer::Hashed { size, hashes } => Ok((size, hashes)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_unit_of_each_extent_has_its_hash() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at / 3 % 251) as u8).collect();
    client.push(handle, 0, &bytes).await.unwrap();
    // A hole, and an end amid a page.
    let far = 10 << 20;
    let attr = client.push(handle, far, &bytes[..5000]).await.unwrap();
    let extents = [
        (0, 4096),
        (8192, 8192 + 200_000),
        (1 << 20, (1 << 20) + 131_072),
    ];
    let last = (far, far + 16_384);
    for unit in [4096, 12_288, HASH_UNIT_BYTES_MAX] {
        let all = [&extents[..], &[last]].concat();
        let (size, found) = hashes(&client, handle, &all, unit).await.unwrap();
        assert_eq!(size, attr.size);
        let mut expected = Vec::new();
        for (start, end) in all {
            let bytes = client.bytes(handle, start, end.min(size)).await;
            expected.extend(bytes.chunks(unit as usize).map(Hash::of));
        }
        assert_eq!(found, expected, "units of {unit}");
    }
    let (_, found) = hashes(&client, handle, &[(far * 2, far * 2 + 4096)], 4096)
        .await
        .unwrap();
    assert_eq!(found, [], "nothing past the end");
    assert_eq!(hashes(&client, handle, &[], 4096).await.unwrap().1, []);
    let most = [(0, HASHED_BYTES_MAX)];
    let (_, found) = hashes(&client, handle, &most, 4096).await.unwrap();
    assert_eq!(found.len() as u64, HASHED_BYTES_MAX / 4096);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_asked_is_refused() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.push(handle, 0, &[1; 10_000]).await.unwrap();
    let page = |at: u64| (at * 4096, at * 4096 + 4096);
    let many: Vec<_> = (0..=HASH_EXTENTS_MAX as u64)
        .map(|at| page(2 * at))
        .collect();
    type Wrong<'a> = (&'a str, &'a [(u64, u64)], u32);
    let wrong: [Wrong; 13] = [
        ("no unit", &[page(0)], 0),
        ("half a page", &[page(0)], 2048),
        ("no whole pages", &[page(0)], 4097),
        ("a large unit", &[page(0)], HASH_UNIT_BYTES_MAX + 4096),
        ("the largest unit", &[page(0)], u32::MAX),
        ("empty", &[(4096, 4096)], 4096),
        ("backwards", &[(8192, 4096)], 4096),
        ("amid a page", &[(1, 4096)], 4096),
        ("not ascending", &[page(1), page(0)], 4096),
        ("twice", &[page(1), page(1)], 4096),
        ("too long", &[(0, HASHED_BYTES_MAX + 1)], 4096),
        ("past all", &[(0, u64::MAX)], 4096),
        ("too many", &many, 4096),
    ];
    for (what, extents, unit) in wrong {
        let found = hashes(&client, handle, extents, unit).await;
        assert_eq!(found, Err(Errno::INVAL.raw_os_error()), "{what}");
    }
    let last = [(REGION_BYTES_MAX - 4096, REGION_BYTES_MAX)];
    assert_eq!(hashes(&client, handle, &last, 4096).await.unwrap().1, []);
    let none = HandleId {
        number: handle.number ^ 1,
        ..handle
    };
    let none = hashes(&client, none, &[page(0)], 4096).await;
    assert_eq!(none, Err(Errno::BADF.raw_os_error()));
}

/// Who asks for hashes again and again does not keep others, nor itself, from what they wait for.
#[tokio::test(flavor = "multi_thread")]
async fn hashing_keeps_nobody_from_pulling() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    for at in 0..4 {
        let bytes = vec![at as u8 + 1; 1 << 20];
        client.push(handle, at << 20, &bytes).await.unwrap();
    }
    let mut asked = Vec::new();
    for _ in 0..200 {
        let request = ReadRequest::Hashes {
            handle,
            extents: vec![Extent {
                start: 0,
                end: HASHED_BYTES_MAX,
            }],
            unit: 4096,
        };
        let (mut send, receive) = client.ask(&Request::Read(request)).await;
        send.finish().unwrap();
        asked.push(receive);
    }
    let mut pulled = 0;
    let all = async {
        for mut receive in asked {
            let reply: Option<Reply> = crate::transport::stream::receive(&mut receive)
                .await
                .unwrap();
            assert!(matches!(reply.unwrap().result, Ok(Answer::Hashed { .. })));
        }
    };
    let pulls = async {
        loop {
            assert_eq!(client.bytes(handle, 4096, 8192).await, [1; 4096]);
            pulled += 1;
        }
    };
    tokio::select! {
        () = all => {}
        () = pulls => {}
    }
    assert!(
        pulled > 200,
        "only {pulled} pulls beside 200 requests for hashes"
    );
}
