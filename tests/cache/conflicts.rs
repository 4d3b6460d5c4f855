//! Bytes that were not pushed of files that others have changed meanwhile.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_kept_where_others_have_changed_the_file() {
    let world = World::new();
    for file in ["mine", "theirs", "gone"] {
        world.write(file, &pattern(100_000, 7));
    }
    let replica = world.mount().await;
    for file in ["mine", "theirs", "gone"] {
        store(&replica, file, 70_000, b"of this side").await;
    }
    world.kill(replica).await;
    let theirs = pattern(100_000, 8);
    world.write("mine", &theirs);
    world.write("theirs", &theirs);
    std::fs::remove_file(world.served.path().join("gone")).unwrap();

    let replica = world.mount().await;
    let paths = |replica: &Replica| {
        let conflicts = replica.conflicts();
        assert!(
            conflicts
                .iter()
                .all(|conflict| conflict.dirty_bytes == 4096)
        );
        conflicts
            .into_iter()
            .map(|conflict| conflict.path)
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&replica), ["gone", "mine", "theirs"]);
    assert_eq!(read(&replica, "mine").await, theirs);
    assert_eq!(world.read("mine"), theirs);
    world.unmount(replica).await;

    // They are still there at the next mount, and are settled.
    let replica = world.mount().await;
    assert_eq!(paths(&replica), ["gone", "mine", "theirs"]);
    replica.keep_conflict("mine").await.unwrap();
    assert_eq!(&world.read("mine")[70_000..70_012], b"of this side");
    assert!(replica.keep_conflict("gone").await.is_err());
    assert!(replica.drop_conflict("none").is_err());
    replica.drop_conflict("theirs").unwrap();
    replica.drop_conflict("gone").unwrap();
    assert_eq!(world.read("theirs"), theirs);
    assert_eq!(replica.conflicts(), []);
    world.unmount(replica).await;
}

/// As where the disk of the cache is full, or fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_set_aside_stays_until_it_can() {
    let world = World::new();
    for file in ["changed", "gone"] {
        world.write(file, &pattern(100_000, 7));
    }
    let replica = world.mount().await;
    for file in ["changed", "gone"] {
        store(&replica, file, 70_000, b"of this side").await;
    }
    world.kill(replica).await;
    let theirs = pattern(100_000, 8);
    world.write("changed", &theirs);
    std::fs::remove_file(world.served.path().join("gone")).unwrap();
    let aside = world.folder().join("conflicts");
    std::fs::write(&aside, b"no folder").unwrap();

    let replica = world.mount().await;
    assert_eq!(replica.conflicts(), []);
    assert_eq!(read(&replica, "changed").await, theirs);
    world.unmount(replica).await;
    std::fs::remove_file(&aside).unwrap();

    let replica = world.mount().await;
    let kept = replica.conflicts().into_iter();
    let kept: Vec<_> = kept.map(|kept| (kept.path, kept.dirty_bytes)).collect();
    assert_eq!(kept, [("changed".into(), 4096), ("gone".into(), 4096)]);
    assert_eq!(read(&replica, "changed").await, theirs);
    replica.keep_conflict("changed").await.unwrap();
    assert_eq!(&world.read("changed")[70_000..70_012], b"of this side");
    world.unmount(replica).await;
}
