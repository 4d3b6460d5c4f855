//! What one mount has touched comes to the next one in that order: replicas and authorities one after the other, over
//! real QUIC on loopback, without a kernel in between; and the commands once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::{Home, Mount, Serve, noise, wait_until};
use memfs::node::authority::{self, AuthorityOptions};
use memfs::node::replica::{HandleNo, ROOT, Replica, ReplicaOptions};
use memfs::store::directory::Directory;
use memfs::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use memfs::wire::Name;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const PAGE: u64 = 4096;
/// In the file.
const PAGES: u64 = 4096;
/// Come with opening it, whatever is touched.
const FIRST: u64 = 32;

/// A directory with one file, and where orders are kept.
struct World {
    served: TempDir,
    orders: TempDir,
    identity: Identity,
}

/// An authority.
struct Served {
    listener: Arc<Listener>,
    task: JoinHandle<()>,
    identity: Identity,
}

impl World {
    fn new() -> World {
        let served = tempfile::tempdir().unwrap();
        let byte = |at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 | 1;
        let bytes: Vec<u8> = (0..PAGES * PAGE).map(byte).collect();
        std::fs::write(served.path().join("file"), bytes).unwrap();
        World {
            served,
            orders: tempfile::tempdir().unwrap(),
            identity: Identity::generate(),
        }
    }

    fn serve(&self, learn: bool) -> Served {
        let store = Arc::new(Directory::open(self.served.path()).unwrap());
        let authorized = Authorized::Keys(vec![self.identity.public()]);
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = Arc::new(Listener::new(any, &self.identity, authorized).unwrap());
        let options = AuthorityOptions {
            learn,
            orders: Some(self.orders.path().into()),
            ..AuthorityOptions::default()
        };
        let task = tokio::spawn(authority::serve(listener.clone(), store, options));
        Served {
            listener,
            task,
            identity: self.identity.clone(),
        }
    }
}

impl Served {
    async fn mount(&self, background: bool, learn: bool) -> (Arc<Replica>, HandleNo) {
        let options = ReplicaOptions {
            background,
            learn,
            ..ReplicaOptions::default()
        };
        let address = self.listener.address().unwrap();
        let trust = ServerTrust::Key(self.identity.public());
        let (host, key) = (address.ip().to_string(), self.identity.clone());
        let dialer = Dialer::new(&host, address.port(), key, trust).unwrap();
        let replica = Replica::connect(dialer, options).await.unwrap();
        let file = Name::new("file").unwrap();
        let node = replica.lookup(ROOT, &file).await.unwrap().node;
        let (handle, _) = replica.open(node, true, false).await.unwrap();
        (replica, handle)
    }

    async fn end(self) {
        self.listener.close();
        self.task.await.unwrap();
    }
}

/// The last page of the file, behind which there is nothing to bring in the background, and then others.
fn places() -> Vec<u64> {
    let scattered = (1..500).map(|i| FIRST + (i * 1999) % (PAGES - 1 - FIRST));
    std::iter::once(PAGES - 1).chain(scattered).collect()
}

async fn touch(replica: &Replica, handle: HandleNo, page: u64) {
    let len = PAGE as u32;
    let read = replica.read(handle, page * PAGE, len, <[u8]>::len).await;
    assert_eq!(read.unwrap(), len as usize);
}

fn is_here(replica: &Replica, handle: HandleNo, page: u64) -> bool {
    let read = replica.try_read(handle, page * PAGE, 1, |_| ());
    read.is_some_and(|read| read.is_ok())
}

async fn until_here(replica: &Replica, handle: HandleNo, page: u64) {
    while !is_here(replica, handle, page) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Closes the file and ends the mount.
async fn unmount(replica: Arc<Replica>, handle: HandleNo) {
    replica.close(handle);
    assert_eq!(replica.shut_down(Duration::from_secs(20)).await, []);
}

/// Bytes that a mount has brought, when nothing more is on its way.
async fn brought(replica: &Replica) -> u64 {
    while replica.status().regions[0].in_flight_bytes > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    replica.status().pulled_bytes
}

/// Bytes that a mount has brought which touched one page and nothing else.
async fn brought_for_one_touch(served: &Served, learn: bool) -> u64 {
    let (replica, handle) = served.mount(true, learn).await;
    touch(&replica, handle, PAGES - 1).await;
    let brought = brought(&replica).await;
    unmount(replica, handle).await;
    brought
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_touched_comes_to_a_later_mount() {
    let world = World::new();
    let served = world.serve(true);
    let (replica, handle) = served.mount(false, true).await;
    for page in places() {
        touch(&replica, handle, page).await;
    }
    unmount(replica, handle).await;
    for restarted in [false, true] {
        let again = world.serve(true);
        let served = if restarted { &again } else { &served };
        let (replica, handle) = served.mount(true, true).await;
        touch(&replica, handle, PAGES - 1).await;
        for page in places() {
            until_here(&replica, handle, page).await;
        }
        let all = (FIRST + 500) * PAGE;
        assert_eq!(brought(&replica).await, all, "and nothing else");
        unmount(replica, handle).await;
        let one = (FIRST + 1) * PAGE;
        assert_eq!(brought_for_one_touch(served, false).await, one);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn touches_of_what_was_here_already_are_learned() {
    let world = World::new();
    let served = world.serve(true);
    let (replica, handle) = served.mount(true, true).await;
    touch(&replica, handle, 0).await;
    while replica.status().regions[0].present_bytes < PAGES * PAGE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for page in places() {
        touch(&replica, handle, page).await;
    }
    unmount(replica, handle).await;
    // Ends in order: what it knows is written.
    served.end().await;
    let served = world.serve(true);
    let (replica, handle) = served.mount(true, true).await;
    touch(&replica, handle, PAGES - 1).await;
    for page in places() {
        until_here(&replica, handle, page).await;
    }
    unmount(replica, handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_learned_where_it_was_said_so() {
    for (serve, mount) in [(false, true), (true, false)] {
        let world = World::new();
        let served = world.serve(serve);
        let (replica, handle) = served.mount(false, mount).await;
        for page in places() {
            touch(&replica, handle, page).await;
        }
        unmount(replica, handle).await;
        let one = (FIRST + 1) * PAGE;
        assert_eq!(brought_for_one_touch(&served, true).await, one);
        served.end().await;
        let kept = std::fs::read_dir(world.orders.path()).unwrap();
        assert_eq!(kept.count(), 0);
    }
}

#[test]
fn the_commands_keep_what_was_touched() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise((PAGES * PAGE) as usize, 1)).unwrap();
    let touch = |mount: &Mount, pages: &[u64]| {
        let file = File::open(mount.path("file")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        for page in pages {
            file.read_exact_at(&mut [0; PAGE as usize], page * PAGE)
                .unwrap();
        }
        file
    };
    let present = |mount: &Mount| mount.region("file")["present_bytes"].clone();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "first");
    drop(touch(&mount, &places()));
    mount.unmount();
    serve.stop();
    let orders = home.path("home/.local/state/memfs/order");
    assert_eq!(orders.metadata().unwrap().mode() & 0o777, 0o700);
    let kept: Vec<_> = fs::read_dir(&orders).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].metadata().unwrap().mode() & 0o777, 0o600);

    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "second");
    let held = touch(&mount, &[PAGES - 1]);
    wait_until("all that was touched is here", || {
        present(&mount) == (FIRST + 500) * PAGE
    });
    drop(held);
    mount.unmount();
    let mount = Mount::with(&home, &serve.source(), "third", &["-o", "no_learn"]);
    let held = touch(&mount, &[PAGES - 1]);
    let one = (FIRST + 1) * PAGE;
    wait_until("what was touched is here", || present(&mount) == one);
    drop(held);
    mount.unmount();
}
