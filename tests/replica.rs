//! Replicas and an authority over real QUIC on loopback, without a kernel in between.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

#[path = "replica/power.rs"]
mod power;

use memfs::node::authority::{self, AuthorityOptions};
use memfs::node::replica::{NodeNo, ROOT, Replica, ReplicaOptions};
use memfs::store::Store;
use memfs::store::directory::Directory;
use memfs::store::memory::Memory;
use memfs::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use memfs::units::ByteRange;
use memfs::wire::{Caller, Make, Name, RenameMode, SetAttr, XattrMode};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const ME: Caller = Caller { uid: 0, gid: 0 };
const LEASE: Duration = Duration::from_millis(1500);

/// An authority that serves a directory, until it is killed.
struct Served {
    address: SocketAddr,
    identity: Identity,
    listener: Arc<Listener>,
    task: JoinHandle<()>,
}

fn serve(directory: &Path, identity: Identity, address: SocketAddr) -> Served {
    let store = Arc::new(Directory::open(directory).unwrap());
    // Beside a directory that is not itself the test's temporary one.
    let beside = directory.parent().filter(|_| directory.ends_with("served"));
    let leases = beside.map(|folder| folder.join("leases"));
    serve_store(store, identity, address, leases)
}

fn serve_store(
    store: Arc<dyn Store>,
    identity: Identity,
    address: SocketAddr,
    leases: Option<PathBuf>,
) -> Served {
    let authorized = Authorized::Keys(vec![identity.public()]);
    let listener = loop {
        // The address may still be held by the tasks of one that was just ended.
        match Listener::new(address, &identity, authorized.clone()) {
            Ok(listener) => break Arc::new(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{address}: {error}"),
        }
    };
    let options = AuthorityOptions {
        lease: LEASE,
        leases,
        ..AuthorityOptions::default()
    };
    let task = tokio::spawn(authority::serve(listener.clone(), store, options));
    Served {
        address: listener.address().unwrap(),
        identity,
        listener,
        task,
    }
}

impl Served {
    fn new(directory: &Path) -> Served {
        serve(
            directory,
            Identity::generate(),
            "127.0.0.1:0".parse().unwrap(),
        )
    }

    fn memory(bytes: u64) -> Served {
        let store = Arc::new(Memory::new(bytes));
        let address = "127.0.0.1:0".parse().unwrap();
        serve_store(store, Identity::generate(), address, None)
    }

    async fn mount(&self, options: ReplicaOptions) -> Arc<Replica> {
        mount(self.address, self.identity.clone(), options).await
    }

    /// Ends it without a word to anybody, and starts another on the same address.
    async fn restart(self, directory: &Path) -> Served {
        self.restart_after(directory, || ()).await
    }

    /// As [`Served::restart`], with something done while nobody serves.
    async fn restart_after(self, directory: &Path, meanwhile: impl FnOnce()) -> Served {
        let (address, identity) = self.kill().await;
        meanwhile();
        serve(directory, identity, address)
    }

    /// Ends it without a word to anybody; where it was, and who.
    async fn kill(self) -> (SocketAddr, Identity) {
        self.task.abort();
        let _ = self.task.await;
        self.listener.close();
        (self.address, self.identity)
    }
}

async fn mount(address: SocketAddr, identity: Identity, options: ReplicaOptions) -> Arc<Replica> {
    let trust = ServerTrust::Key(identity.public());
    let host = address.ip().to_string();
    let dialer = Dialer::new(&host, address.port(), identity, trust).unwrap();
    Replica::connect(dialer, options).await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

async fn read(replica: &Replica, node: NodeNo, offset: u64, len: u32) -> Vec<u8> {
    let (handle, _) = replica.open(node, true, false).await.unwrap();
    let bytes = replica
        .read(handle, offset, len, <[u8]>::to_vec)
        .await
        .unwrap();
    replica.flush(handle).await.unwrap();
    replica.close(handle);
    bytes
}

async fn write(replica: &Replica, node: NodeNo, offset: u64, bytes: &[u8]) {
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    replica.write(handle, offset, bytes, false).await.unwrap();
    replica.flush(handle).await.unwrap();
    replica.close(handle);
}

/// Bytes that differ from page to page and within it.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| {
            (at as u64)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_le_bytes()[7]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(3_000_001);
    std::fs::write(directory.path().join("file"), &bytes).unwrap();
    let served = Served::new(directory.path());
    let replica = served.mount(ReplicaOptions::default()).await;
    let entry = replica.lookup(ROOT, &name("file")).await.unwrap();
    assert_eq!(entry.attr.size, bytes.len() as u64);
    assert_eq!(read(&replica, entry.node, 0, 4096).await, bytes[..4096]);
    assert_eq!(
        read(&replica, entry.node, 2_999_999, 4096).await,
        bytes[2_999_999..]
    );
    assert_eq!(
        read(&replica, entry.node, 1_000_000, 1 << 20).await,
        bytes[1_000_000..2_048_576]
    );
    replica
        .pull(entry.node, ByteRange::new(0, u64::MAX), &mut |_, _| {})
        .await
        .unwrap();
    assert_eq!(read(&replica, entry.node, 0, 3_000_001).await, bytes);
    assert!(replica.lookup(ROOT, &name("none")).await.is_err());
    assert!(replica.shut_down(Duration::from_secs(5)).await.is_empty());
}

/// What a call returns without waiting for anything.
async fn at_once<R>(call: impl Future<Output = R>) -> Option<R> {
    let mut call = std::pin::pin!(call);
    std::future::poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_page_of_a_file_takes_one_round_trip() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(1 << 20);
    std::fs::write(directory.path().join("file"), &bytes).unwrap();
    let served = Served::new(directory.path());
    let replica = served.mount(ReplicaOptions::default()).await;
    let file = name("file");
    let entry = at_once(replica.lookup(ROOT, &file)).await;
    let node = entry.expect("its name came with the welcome").unwrap().node;
    let (handle, _) = replica.open(node, true, false).await.unwrap();
    let pulled = || replica.status().pulled_bytes;
    while pulled() < 128 << 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first = replica.read(handle, 0, 128 << 10, <[u8]>::to_vec);
    let first = at_once(first).await.expect("it came with opening").unwrap();
    assert!(first == bytes[..128 << 10]);
    assert_eq!(pulled(), 128 << 10, "nothing else was asked for");
    replica.close(handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path());
    let replica = served.mount(ReplicaOptions::default()).await;
    let (entry, handle) = replica
        .create(ROOT, &name("new"), 0o644, true, true, ME)
        .await
        .unwrap();
    let bytes = pattern(5_000_000);
    for (index, part) in bytes.chunks(100_000).enumerate() {
        replica
            .write(handle, index as u64 * 100_000, part, false)
            .await
            .unwrap();
    }
    // Read your writes, before they have arrived.
    let middle = replica
        .read(handle, 2_400_000, 200_000, <[u8]>::to_vec)
        .await
        .unwrap();
    assert_eq!(middle, bytes[2_400_000..2_600_000]);
    replica.sync(handle, false).await.unwrap();
    assert_eq!(std::fs::read(directory.path().join("new")).unwrap(), bytes);
    replica.close(handle);
    assert_eq!(
        replica.get_attr(entry.node).await.unwrap().attr.size,
        5_000_000
    );

    // In the middle of a page, across one, and past the end.
    let replica = served.mount(ReplicaOptions::default()).await;
    let node = replica.lookup(ROOT, &name("new")).await.unwrap().node;
    write(&replica, node, 4090, b"across a page").await;
    write(&replica, node, 5_000_100, b"past the end").await;
    let mut expected = bytes.clone();
    expected[4090..4103].copy_from_slice(b"across a page");
    expected.resize(5_000_100, 0);
    expected.extend_from_slice(b"past the end");
    assert_eq!(
        std::fs::read(directory.path().join("new")).unwrap(),
        expected
    );
    assert_eq!(read(&replica, node, 0, 6_000_000).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), pattern(100_000)).unwrap();
    let served = Served::new(directory.path());
    let a = served.mount(ReplicaOptions::default()).await;
    let b = served.mount(ReplicaOptions::default()).await;
    let at_a = a.lookup(ROOT, &name("file")).await.unwrap().node;
    let at_b = b.lookup(ROOT, &name("file")).await.unwrap().node;
    let (open_at_b, _) = b.open(at_b, true, false).await.unwrap();
    for round in 0..50u8 {
        let bytes = vec![round; 5000];
        write(&a, at_a, u64::from(round) * 1000, &bytes).await;
        let seen = b
            .read(open_at_b, u64::from(round) * 1000, 5000, <[u8]>::to_vec)
            .await
            .unwrap();
        assert_eq!(seen, bytes, "round {round}");
    }
    // Names too, and that they are gone.
    assert!(b.lookup(ROOT, &name("later")).await.is_err());
    a.make(ROOT, &name("later"), Make::Directory, 0o755, ME)
        .await
        .unwrap();
    b.lookup(ROOT, &name("later")).await.unwrap();
    a.rename(
        ROOT,
        &name("later"),
        ROOT,
        &name("moved"),
        RenameMode::Replace,
    )
    .await
    .unwrap();
    assert!(b.lookup(ROOT, &name("later")).await.is_err());
    b.lookup(ROOT, &name("moved")).await.unwrap();
    // A truncation by one is seen by the other.
    let set = SetAttr {
        size: Some(10),
        ..SetAttr::default()
    };
    a.set_attr(at_a, None, set, ME).await.unwrap();
    assert_eq!(
        b.read(open_at_b, 0, 5000, <[u8]>::to_vec)
            .await
            .unwrap()
            .len(),
        10
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes_are_cached_and_coherent() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), pattern(10_000)).unwrap();
    let served = Served::new(directory.path());
    let a = served.mount(ReplicaOptions::default()).await;
    let b = served.mount(ReplicaOptions::default()).await;
    let at_a = a.lookup(ROOT, &name("file")).await.unwrap().node;
    let at_b = b.lookup(ROOT, &name("file")).await.unwrap().node;
    match a.set_xattr(at_a, b"user.one", b"1", XattrMode::Set).await {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            eprintln!("SKIP: no extended attributes where temporary files are");
            return;
        }
        outcome => outcome.unwrap(),
    }
    assert_eq!(b.get_xattr(at_b, b"user.one").await.unwrap(), b"1");
    for round in 0..20u8 {
        let absent = b.get_xattr(at_b, b"user.two").await;
        assert_eq!(absent, Err(rustix::io::Errno::NODATA), "round {round}");
        // What is written meanwhile changes none of it.
        write(&b, at_b, 0, &[round; 100]).await;
        // Answered at the first poll: from what is cached.
        let again = std::pin::pin!(b.get_xattr(at_b, b"user.two"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(again.poll(&mut context).is_ready(), "round {round}");

        a.set_xattr(at_a, b"user.two", &[round], XattrMode::Create)
            .await
            .unwrap();
        assert_eq!(b.get_xattr(at_b, b"user.two").await.unwrap(), [round]);
        assert_eq!(b.list_xattr(at_b).await.unwrap().len(), 18);
        a.remove_xattr(at_a, b"user.two").await.unwrap();
    }
    assert_eq!(a.list_xattr(at_a).await.unwrap(), b"user.one\0");
}

/// The kernel takes a size from any answer made after a store it knows to have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_never_shows_an_older_size_than_a_store_before_it() {
    let served = Served::memory(1 << 20);
    let replica = served.mount(ReplicaOptions::default()).await;
    let made = replica
        .create(ROOT, &name("file"), 0o644, true, true, ME)
        .await;
    let (_, handle) = made.unwrap();
    let size = Arc::new(AtomicU64::new(0));
    let seers: Vec<_> = (0..3)
        .map(|_| {
            let (size, runtime) = (size.clone(), tokio::runtime::Handle::current());
            let replica = replica.clone();
            std::thread::spawn(move || {
                loop {
                    let before = size.load(Ordering::Acquire);
                    let entry = runtime.block_on(replica.lookup(ROOT, &name("file")));
                    let entry = entry.unwrap();
                    replica.forget(entry.node, 1);
                    if before == u64::MAX {
                        break;
                    }
                    assert!(entry.attr.size >= before, "{} {before}", entry.attr.size);
                }
            })
        })
        .collect();
    for step in 1..=3000 {
        let stored = replica.write(handle, step - 1, b"x", false).await;
        stored.unwrap();
        size.store(step, Ordering::Release);
        replica.flush(handle).await.unwrap();
    }
    size.store(u64::MAX, Ordering::Release);
    for seer in seers {
        seer.join().unwrap();
    }
    replica.close(handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_replica_holds_up_a_change_for_its_lease_only() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), pattern(10_000)).unwrap();
    let served = Served::new(directory.path());
    let a = served.mount(ReplicaOptions::default()).await;
    let at_a = a.lookup(ROOT, &name("file")).await.unwrap().node;
    {
        let gone = served.mount(ReplicaOptions::default()).await;
        let node = gone.lookup(ROOT, &name("file")).await.unwrap().node;
        read(&gone, node, 0, 10_000).await;
        // Dropped without goodbye: its tasks end, its connection is not closed by anybody.
    }
    write(&a, at_a, 0, b"goes on").await;
    assert_eq!(
        &std::fs::read(directory.path().join("file")).unwrap()[..7],
        b"goes on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_run_waits_for_replicas_of_the_one_before() {
    let around = tempfile::tempdir().unwrap();
    let directory = around.path().join("served");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), pattern(10_000)).unwrap();
    let served = Served::new(&directory);
    let its_machine = tokio::runtime::Runtime::new().unwrap();
    let (address, identity) = (served.address, served.identity.clone());
    let reading = its_machine.spawn(async move {
        let gone = mount(address, identity, ReplicaOptions::default()).await;
        let node = gone.lookup(ROOT, &name("file")).await.unwrap().node;
        let granted = Instant::now();
        read(&gone, node, 0, 10_000).await;
        std::mem::forget(gone); // it says nothing
        granted
    });
    let granted = reading.await.unwrap();
    its_machine.shutdown_background(); // may still answer from its copy, for all anybody knows
    let served = served.restart(&directory).await;
    let a = served.mount(ReplicaOptions::default()).await;
    let at_a = a.lookup(ROOT, &name("file")).await.unwrap().node;
    write(&a, at_a, 0, b"not before").await;
    assert!(granted.elapsed() >= LEASE, "{:?}", granted.elapsed());

    // Who says goodbye is not waited for.
    let note = around.path().join("leases");
    assert!(note.exists());
    assert_eq!(a.shut_down(LEASE).await, []);
    while note.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_authority_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(2_000_000);
    std::fs::write(directory.path().join("file"), &bytes).unwrap();
    let served = Served::new(directory.path());
    let options = ReplicaOptions {
        background: false,
        ..ReplicaOptions::default()
    };
    let replica = served.mount(options).await;
    let node = replica.lookup(ROOT, &name("file")).await.unwrap().node;
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    replica.read(handle, 0, 4096, |_| ()).await.unwrap();
    replica
        .write(handle, 100_000, b"stored before", false)
        .await
        .unwrap();
    let served = served.restart(directory.path()).await;
    replica
        .write(handle, 200_000, b"stored after", false)
        .await
        .unwrap();
    let seen = replica
        .read(handle, 1_000_000, 100_000, <[u8]>::to_vec)
        .await
        .unwrap();
    assert_eq!(seen, bytes[1_000_000..1_100_000]);
    replica.sync(handle, false).await.unwrap();
    let mut expected = bytes;
    expected[100_000..100_013].copy_from_slice(b"stored before");
    expected[200_000..200_012].copy_from_slice(b"stored after");
    assert_eq!(
        std::fs::read(directory.path().join("file")).unwrap(),
        expected
    );
    drop(served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soft_gives_up_in_time_and_works_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), pattern(2_000_000)).unwrap();
    let served = Served::new(directory.path());
    let options = ReplicaOptions {
        background: false,
        soft: Some(Duration::from_millis(300)),
        ..ReplicaOptions::default()
    };
    let replica = served.mount(options).await;
    let node = replica.lookup(ROOT, &name("file")).await.unwrap().node;
    let (handle, _) = replica.open(node, true, false).await.unwrap();
    replica.read(handle, 0, 4096, |_| ()).await.unwrap();
    let (address, identity) = (served.address, served.identity.clone());
    served.task.abort();
    let _ = served.task.await;
    served.listener.close();
    drop(served.listener);
    let outcome = replica.read(handle, 1_000_000, 4096, |_| ()).await;
    assert_eq!(outcome.unwrap_err(), rustix::io::Errno::IO);
    let _served = serve(directory.path(), identity, address);
    while replica.read(handle, 1_000_000, 4096, |_| ()).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_tebibyte_costs_what_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"in the middle", 1 << 39).unwrap();
    let served = Served::new(directory.path());
    let replica = served.mount(ReplicaOptions::default()).await;
    let node = replica.lookup(ROOT, &name("sparse")).await.unwrap().node;
    assert_eq!(read(&replica, node, 1 << 30, 10).await, vec![0; 10]);
    assert_eq!(read(&replica, node, 1 << 39, 13).await, b"in the middle");
    write(&replica, node, (1 << 40) - 5, b"tail!").await;
    assert_eq!(read(&replica, node, (1 << 40) - 6, 10).await, b"\0tail!");
    replica
        .pull(node, ByteRange::new(0, u64::MAX), &mut |_, _| {})
        .await
        .unwrap();
    let status = replica.status();
    assert_eq!(status.regions[0].present_bytes, 1 << 40);
    assert!(status.pulled_bytes < 1 << 30, "{}", status.pulled_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dirty_of_a_file_without_a_name_is_let_go() {
    let served = Served::memory(1 << 20);
    let replica = served.mount(ReplicaOptions::default()).await;
    let (_, handle) = replica
        .create(ROOT, &name("full"), 0o644, true, true, ME)
        .await
        .unwrap();
    replica
        .write(handle, 0, &pattern(2 << 20), false)
        .await
        .unwrap();
    assert_eq!(
        replica.flush(handle).await.unwrap_err(),
        rustix::io::Errno::NOSPC
    );
    replica.close(handle);
    replica.remove(ROOT, &name("full"), false).await.unwrap();
    while !replica.dirty_nodes().is_empty() {
        tokio::task::yield_now().await;
    }
    let (_, handle) = replica
        .create(ROOT, &name("fits"), 0o644, true, true, ME)
        .await
        .unwrap();
    replica
        .write(handle, 0, &pattern(100_000), false)
        .await
        .unwrap();
    // The authority closes the handle of the other one by and by.
    while replica.flush(handle).await.is_err() {}
}
