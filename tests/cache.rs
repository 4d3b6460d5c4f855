//! Copies that outlive their mount: replicas one after the other with one cache folder, over real QUIC on
//! loopback, without a kernel in between.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

#[path = "cache/conflicts.rs"]
mod conflicts;

use memfs::node::authority::{self, AuthorityOptions};
use memfs::node::replica::{NodeNo, ROOT, Replica, ReplicaOptions, SourceName};
use memfs::store::directory::Directory;
use memfs::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use memfs::units::ByteRange;
use memfs::wire::{Caller, Name, RenameMode};
use rustix::fs::FlockOperation;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const ME: Caller = Caller { uid: 0, gid: 0 };

/// A served directory, a cache folder, and replicas of the one that use the other.
struct World {
    served: TempDir,
    cache: TempDir,
    address: SocketAddr,
    identity: Identity,
    listener: Arc<Listener>,
    task: JoinHandle<()>,
}

impl World {
    fn new() -> World {
        let served = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let any = "127.0.0.1:0".parse().unwrap();
        let (listener, task) = serve(served.path(), &identity, any);
        World {
            served,
            cache: tempfile::tempdir().unwrap(),
            address: listener.address().unwrap(),
            identity,
            listener,
            task,
        }
    }

    /// The authority ends and is started again.
    async fn restart(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.listener.close();
        let any = "127.0.0.1:0".parse().unwrap();
        (self.listener, self.task) = serve(self.served.path(), &self.identity, any);
        self.address = self.listener.address().unwrap();
    }

    fn options(&self) -> ReplicaOptions {
        ReplicaOptions {
            cache: Some(self.cache.path().into()),
            background: false,
            // Nothing is pushed unless it is asked for.
            push_interval: Duration::from_secs(3600),
            ..ReplicaOptions::default()
        }
    }

    async fn mount(&self) -> Arc<Replica> {
        self.mount_with(self.options()).await
    }

    async fn mount_with(&self, options: ReplicaOptions) -> Arc<Replica> {
        let trust = ServerTrust::Key(self.identity.public());
        let (host, port) = (self.address.ip().to_string(), self.address.port());
        let dialer = Dialer::new(&host, port, self.identity.clone(), trust).unwrap();
        Replica::connect(dialer, options).await.unwrap()
    }

    /// The mount ends in order.
    async fn unmount(&self, replica: Arc<Replica>) {
        assert_eq!(replica.shut_down(Duration::from_secs(20)).await, []);
        self.kill(replica).await;
    }

    /// The mount's process ends where it is. Waits until it has let go of the folder.
    async fn kill(&self, replica: Arc<Replica>) {
        drop(replica);
        let lock = std::fs::File::open(self.folder().join("lock")).unwrap();
        while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The folder of the only source.
    fn folder(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.cache.path()).unwrap();
        entries.next().unwrap().unwrap().path()
    }

    fn file(&self, suffix: &str) -> PathBuf {
        let entries = std::fs::read_dir(self.folder()).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| path.extension().is_some_and(|found| found == suffix);
        paths.find(is_it).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.served.path().join(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.served.path().join(name)).unwrap()
    }

    /// Bytes that all copies take.
    fn allocated(&self) -> u64 {
        let entries = std::fs::read_dir(self.folder()).unwrap();
        // One that is gone by now takes nothing.
        let there = entries.filter_map(|entry| entry.unwrap().metadata().ok());
        let sizes = there.map(|metadata| metadata.blocks() * 512);
        sizes.sum()
    }
}

fn serve(
    directory: &Path,
    identity: &Identity,
    address: SocketAddr,
) -> (Arc<Listener>, JoinHandle<()>) {
    let store = Arc::new(Directory::open(directory).unwrap());
    let authorized = Authorized::Keys(vec![identity.public()]);
    let listener = Arc::new(Listener::new(address, identity, authorized).unwrap());
    let options = AuthorityOptions {
        lease: Duration::from_millis(1500),
        ..AuthorityOptions::default()
    };
    let task = tokio::spawn(authority::serve(listener.clone(), store, options));
    (listener, task)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

async fn find(replica: &Replica, path: &str) -> NodeNo {
    replica.lookup(ROOT, &name(path)).await.unwrap().node
}

async fn read(replica: &Replica, path: &str) -> Vec<u8> {
    let node = find(replica, path).await;
    let (handle, _) = replica.open(node, true, false).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let part = replica.read(handle, bytes.len() as u64, 1 << 20, <[u8]>::to_vec);
        let part = part.await.unwrap();
        if part.is_empty() {
            break;
        }
        bytes.extend(part);
    }
    replica.close(handle);
    bytes
}

/// Stores, and neither pushes nor closes.
async fn store(replica: &Replica, path: &str, offset: u64, bytes: &[u8]) {
    let node = find(replica, path).await;
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    replica.write(handle, offset, bytes, false).await.unwrap();
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bytes that differ from page to page and within it.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| {
        (at + seed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .to_le_bytes()[7]
    };
    (0..len as u64).map(word).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_pulled_twice() {
    let world = World::new();
    let bytes = pattern(3_000_001, 1);
    world.write("file", &bytes);
    let replica = world.mount().await;
    assert_eq!(read(&replica, "file").await, bytes);
    assert_eq!(replica.status().pulled_bytes, 3_000_001);
    world.unmount(replica).await;

    for round in 0..3 {
        let replica = world.mount().await;
        assert_eq!(read(&replica, "file").await, bytes, "round {round}");
        assert_eq!(replica.status().pulled_bytes, 0, "round {round}");
        match round {
            1 => world.kill(replica).await,
            _ => world.unmount(replica).await,
        }
    }
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&world.folder()), 0o700);
    for suffix in ["copy", "map"] {
        assert_eq!(mode(&world.file(suffix)), 0o600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_need_not_be_pulled() {
    let world = World::new();
    let replica = world.mount().await;
    let made = replica
        .create(ROOT, &name("new"), 0o644, true, true, ME)
        .await;
    let (_, handle) = made.unwrap();
    let bytes = pattern(500_000, 2);
    replica.write(handle, 0, &bytes, false).await.unwrap();
    replica.sync(handle, false).await.unwrap();
    replica.close(handle);
    world.unmount(replica).await;
    let replica = world.mount().await;
    assert_eq!(read(&replica, "new").await, bytes);
    assert_eq!(replica.status().pulled_bytes, 0);
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_pulled_anew() {
    let world = World::new();
    world.write("file", &pattern(300_000, 3));
    let replica = world.mount().await;
    read(&replica, "file").await;
    world.unmount(replica).await;

    let bytes = pattern(250_000, 4);
    world.write("file", &bytes);
    let replica = world.mount().await;
    assert_eq!(read(&replica, "file").await, bytes);
    assert_eq!(replica.status().pulled_bytes, 250_000);
    world.unmount(replica).await;
}

/// Promise 4, without the restart of a process: what is dirty when a mount ends is pushed by the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dirty_pages_are_pushed_by_the_next_mount() {
    let mut world = World::new();
    let mut bytes = pattern(1_000_000, 5);
    world.write("file", &bytes);
    world.write("other", b"untouched");
    let replica = world.mount().await;
    store(&replica, "file", 5_000, b"in the midst of a page").await;
    store(&replica, "file", 999_990, &[7; 20_000]).await;
    bytes[5_000..5_022].copy_from_slice(b"in the midst of a page");
    bytes.resize(1_019_990, 0);
    bytes[999_990..].fill(7);
    world.kill(replica).await;
    assert_eq!(world.read("file").len(), 1_000_000);
    world.restart().await;

    let replica = world.mount().await;
    until("pushed without anybody opening it", || {
        world.read("file") == bytes
    })
    .await;
    let pulled = replica.status().pulled_bytes;
    assert_eq!(pulled, 0, "pushing needs no bytes from there");
    assert_eq!(read(&replica, "file").await, bytes);
    world.unmount(replica).await;
    assert_eq!(world.read("file"), bytes);
}

/// A push that was applied, but whose answer came too late for the record, does not look like somebody else's
/// change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_pushes_are_no_conflict() {
    let world = World::new();
    world.write("file", &pattern(100_000, 6));
    let replica = world.mount().await;
    let node = find(&replica, "file").await;
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    replica.write(handle, 0, b"pushed", false).await.unwrap();
    replica.flush(handle).await.unwrap();
    replica
        .write(handle, 50_000, b"not pushed", false)
        .await
        .unwrap();
    world.kill(replica).await;

    let replica = world.mount().await;
    until("pushed", || {
        &world.read("file")[50_000..50_010] == b"not pushed"
    })
    .await;
    assert_eq!(&world.read("file")[..6], b"pushed");
    assert!(replica.conflicts().is_empty());
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_file_is_found() {
    let world = World::new();
    std::fs::create_dir(world.served.path().join("dir")).unwrap();
    world.write("file", &pattern(10_000, 9));
    let replica = world.mount().await;
    store(&replica, "file", 100, b"follows its file").await;
    let dir = find(&replica, "dir").await;
    let (old, new) = (name("file"), name("moved"));
    let moved = replica.rename(ROOT, &old, dir, &new, RenameMode::Replace);
    moved.await.unwrap();
    world.kill(replica).await;
    let replica = world.mount().await;
    until("pushed", || {
        &world.read("dir/moved")[100..116] == b"follows its file"
    })
    .await;
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_maps_are_dropped() {
    let world = World::new();
    let bytes = pattern(200_000, 10);
    world.write("file", &bytes);
    let mount = async || {
        let replica = world.mount().await;
        assert_eq!(read(&replica, "file").await, bytes);
        let pulled = replica.status().pulled_bytes;
        world.unmount(replica).await;
        pulled
    };
    assert_eq!(mount().await, 200_000);
    let open = |suffix| {
        let mut options = std::fs::File::options();
        options
            .read(true)
            .write(true)
            .open(world.file(suffix))
            .unwrap()
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("another magic", &|| {
            open("map").write_all_at(b"x", 0).unwrap()
        }),
        ("another version", &|| {
            open("map").write_all_at(&[9], 8).unwrap()
        }),
        ("another file's", &|| {
            // Another inode number, whatever it was.
            let (map, mut byte) = (open("map"), [0]);
            map.read_exact_at(&mut byte, 25).unwrap();
            map.write_all_at(&[!byte[0]], 25).unwrap()
        }),
        ("cut off", &|| open("map").set_len(5000).unwrap()),
        ("no copy", &|| {
            std::fs::remove_file(world.file("copy")).unwrap()
        }),
        ("a copy cut off", &|| open("copy").set_len(100_000).unwrap()),
    ];
    for (what, damage) in damages {
        assert_eq!(mount().await, 0, "before {what}");
        damage();
        assert_eq!(mount().await, 200_000, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_machine_that_crashed_are_dropped() {
    let world = World::new();
    let bytes = pattern(200_000, 11);
    world.write("file", &bytes);
    let replica = world.mount().await;
    read(&replica, "file").await;
    world.unmount(replica).await;
    // Unmounted, then the machine was started anew.
    let boot = world.folder().join("boot");
    let text = std::fs::read_to_string(&boot).unwrap();
    assert!(text.starts_with("memfs cache 1 closed "), "{text}");
    std::fs::write(&boot, "memfs cache 1 closed 00000000-0000\n").unwrap();
    let replica = world.mount().await;
    assert_eq!(read(&replica, "file").await, bytes);
    assert_eq!(replica.status().pulled_bytes, 0);
    store(&replica, "file", 0, b"lost").await;
    world.kill(replica).await;
    // It crashed while there was a mount.
    std::fs::write(&boot, "memfs cache 1 open 00000000-0000\n").unwrap();
    let replica = world.mount().await;
    assert_eq!(read(&replica, "file").await, bytes);
    assert_eq!(replica.status().pulled_bytes, 200_000);
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_mount_at_the_same_time_has_copies_of_its_own() {
    let world = World::new();
    let bytes = pattern(200_000, 12);
    world.write("file", &bytes);
    let first = world.mount().await;
    let second = world.mount().await;
    assert_eq!(read(&first, "file").await, bytes);
    assert_eq!(read(&second, "file").await, bytes);
    store(&second, "file", 9, b"by the second").await;
    let node = find(&second, "file").await;
    second.push(node).await.unwrap();
    assert_eq!(&read(&first, "file").await[9..22], b"by the second");
    assert_eq!(second.shut_down(Duration::from_secs(20)).await, []);
    drop(second);
    world.unmount(first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_mount_leaves_dirty_pages_alone() {
    let world = World::new();
    let bytes = pattern(100_000, 13);
    world.write("file", &bytes);
    let replica = world.mount().await;
    store(&replica, "file", 10, b"later").await;
    world.kill(replica).await;
    let read_only = ReplicaOptions {
        read_only: true,
        ..world.options()
    };
    let replica = world.mount_with(read_only).await;
    assert_eq!(read(&replica, "file").await, bytes);
    world.unmount(replica).await;
    let replica = world.mount().await;
    until("pushed", || &world.read("file")[10..15] == b"later").await;
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_has_another_folder() {
    let world = World::new();
    world.write("file", b"bytes");
    for source in ["a", "b"] {
        let options = ReplicaOptions {
            source: SourceName::Name(source.into()),
            ..world.options()
        };
        let replica = world.mount_with(options).await;
        assert_eq!(read(&replica, "file").await, b"bytes");
        assert_eq!(replica.status().pulled_bytes, 5);
        assert_eq!(replica.shut_down(Duration::from_secs(20)).await, []);
    }
    assert_eq!(std::fs::read_dir(world.cache.path()).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_tebibyte_costs_what_is_touched() {
    let world = World::new();
    let file = std::fs::File::create(world.served.path().join("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"in the middle", 1 << 39).unwrap();
    let look = async |replica: &Replica| {
        let node = find(replica, "sparse").await;
        let (handle, _) = replica.open(node, true, false).await.unwrap();
        let seen = replica.read(handle, 1 << 39, 13, <[u8]>::to_vec).await;
        assert_eq!(seen.unwrap(), b"in the middle");
        let seen = replica
            .read(handle, (1 << 40) - 9, 99, <[u8]>::to_vec)
            .await;
        assert_eq!(seen.unwrap(), [0; 9]);
        replica.close(handle);
        node
    };
    let replica = world.mount().await;
    let node = look(&replica).await;
    let whole = ByteRange::new(0, u64::MAX);
    replica.pull(node, whole, &mut |_, _| {}).await.unwrap();
    world.unmount(replica).await;
    assert!(world.allocated() < 64 << 20, "{}", world.allocated());
    let replica = world.mount().await;
    look(&replica).await;
    let status = replica.status();
    assert_eq!(status.pulled_bytes, 0);
    assert_eq!(status.regions[0].present_bytes, 1 << 40);
    world.unmount(replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_take_no_more_than_they_may() {
    const ROOM: u64 = 16 << 20;
    let world = World::new();
    let large = pattern(40 << 20, 14);
    world.write("large", &large);
    for file in 0..20 {
        world.write(&format!("small-{file}"), &pattern(2 << 20, file));
    }
    let options = ReplicaOptions {
        cache_bytes_max: ROOM,
        ..world.options()
    };
    let replica = world.mount_with(options.clone()).await;
    for file in 0..20 {
        assert_eq!(
            read(&replica, &format!("small-{file}")).await,
            pattern(2 << 20, file)
        );
        until("there is room", || world.allocated() < ROOM).await;
    }
    let node = find(&replica, "large").await;
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    // What is dirty stays, whatever else goes.
    replica
        .write(handle, 5 << 20, b"dirty", false)
        .await
        .unwrap();
    for round in 0..2 {
        for at in (0..large.len()).step_by(128 << 10) {
            let part = replica
                .read(handle, at as u64, 128 << 10, <[u8]>::to_vec)
                .await
                .unwrap();
            let mut expected = large[at..at + (128 << 10)].to_vec();
            if at == 5 << 20 {
                expected[..5].copy_from_slice(b"dirty");
            }
            assert!(part == expected, "round {round} at {at}");
            if at % (1 << 20) == 0 {
                until("there is room", || world.allocated() < ROOM).await;
            }
        }
    }
    assert!(replica.status().pulled_bytes > 80 << 20);
    assert_eq!(replica.dirty_nodes(), [node]);
    replica.flush(handle).await.unwrap();
    assert_eq!(&world.read("large")[5 << 20..][..5], b"dirty");
    world.unmount(replica).await;

    // What an earlier mount left counts, and goes first.
    let replica = world.mount_with(options).await;
    for file in 0..20 {
        assert_eq!(
            read(&replica, &format!("small-{file}")).await,
            pattern(2 << 20, file)
        );
    }
    until("there is room", || world.allocated() < ROOM).await;
    world.unmount(replica).await;
}
