//! Pulls and pushes.

use super::client::*;
use crate::wire::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1)
        .collect()
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
    let (size, zero_until, frames) = client
        .pull(handle, attr.size - 1, attr.size + 9)
        .await
        .unwrap();
    assert_eq!((size, zero_until), (attr.size, attr.size + 9));
    assert_eq!(
        frames.iter().map(len).sum::<u64>(),
        1,
        "no further than the end"
    );
    let (_, _, frames) = client
        .pull(handle, attr.size + 1, attr.size + 9)
        .await
        .unwrap();
    assert!(frames.is_empty());
}
