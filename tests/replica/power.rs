//! The serving machine loses power: what it had taken and not synced is gone.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_speaks_for_what_a_machine_lost_after_it_was_pushed() {
    // Within the page that the file ended in, and past it.
    for more in [100, 5000] {
        power_is_lost_before_a_sync(more).await;
    }
}

async fn power_is_lost_before_a_sync(more: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let old = pattern(300_000);
    std::fs::write(&path, &old).unwrap();
    let served = Served::new(directory.path());
    let replica = served.mount(ReplicaOptions::default()).await;
    let node = replica.lookup(ROOT, &name("file")).await.unwrap().node;
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    let mut new = old.clone();
    new[4096..12_288].fill(7);
    new.resize(300_000 + more, 8);
    for range in [4096..12_288, 300_000..new.len()] {
        let (start, bytes) = (range.start as u64, &new[range]);
        replica.write(handle, start, bytes, false).await.unwrap();
    }
    replica.flush(handle).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), new);
    // The machine loses power: what was not synced is as it was before.
    let served = served.restart_after(directory.path(), || {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&old, 0).unwrap();
        file.set_len(300_000).unwrap();
    });
    let served = served.await;
    replica.sync(handle, false).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), new);
    drop(served);
}
