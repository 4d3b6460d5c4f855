//! What is kept of files that replicas have forgotten, or that are no more: nothing.

use crate::node::authority::{AuthorityOptions, Service, run};
use crate::node::replica::{NodeNo, ROOT, Replica, ReplicaOptions};
use crate::store::memory::Memory;
use crate::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use crate::units::ByteRange;
use crate::wire::{Allocate, Caller, FileId, Make, Name, RenameMode, SetAttr, Stale, XattrMode};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

const ME: Caller = Caller { uid: 0, gid: 0 };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// An authority to be looked into, and replicas of it.
struct World {
    service: Arc<Service>,
    identity: Identity,
    port: u16,
}

impl World {
    fn new() -> World {
        let identity = Identity::generate();
        let authorized = Authorized::Keys(vec![identity.public()]);
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = Arc::new(Listener::new(address, &identity, authorized).unwrap());
        let port = listener.address().unwrap().port();
        let store = Arc::new(Memory::new(1 << 30));
        let service = Arc::new(Service::new(store, AuthorityOptions::default()));
        tokio::spawn(run(listener, service.clone()));
        World {
            service,
            identity,
            port,
        }
    }

    async fn replica(&self) -> Arc<Replica> {
        let trust = ServerTrust::Key(self.identity.public());
        let dialer = Dialer::new("127.0.0.1", self.port, self.identity.clone(), trust).unwrap();
        let options = ReplicaOptions::default();
        Replica::connect(dialer, options).await.unwrap()
    }

    /// Waits until somebody has copies of the root and of nothing else.
    async fn wait_until_all_is_forgotten(&self) {
        let root = self.service.trees.get(&Default::default());
        let root = root.unwrap().store.root().unwrap().id;
        loop {
            let nodes = self.service.coherence.nodes();
            if nodes.iter().all(|node| *node == root) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await; // between two looks
        }
    }

    fn remembers(&self, node: FileId) -> bool {
        self.service.nodes.find(node).is_some()
    }
}

/// Asks for all there is about a node.
async fn look_at(replica: &Replica, node: NodeNo) {
    replica.list_xattr(node).await.unwrap();
    let value = replica.get_xattr(node, b"user.one").await.unwrap();
    assert_eq!(value, b"1");
    replica.get_attr(node).await.unwrap();
    let (handle, _) = replica.open(node, true, false).await.unwrap();
    for at in [0, 8 << 20] {
        let read = replica.read(handle, at, 4096, <[u8]>::to_vec);
        assert_eq!(read.await.unwrap()[..4], *b"byte");
    }
    replica.seek(handle, 0, true).await.unwrap();
    replica.close(handle);
}

/// Changes all there is of a node.
async fn change(replica: &Replica, node: NodeNo) {
    let set = replica.set_xattr(node, b"user.one", b"1", XattrMode::Set);
    set.await.unwrap();
    let (handle, _) = replica.open(node, true, true).await.unwrap();
    let bytes = b"bytes".repeat(1000);
    for at in [0, 8 << 20] {
        let written = replica.write(handle, at, &bytes, false);
        written.await.unwrap();
    }
    replica.sync(handle, true).await.unwrap();
    let range = ByteRange::new(4 << 20, 5 << 20);
    let punched = replica.allocate(handle, range, Allocate::PunchHole);
    punched.await.unwrap();
    replica.close(handle);
    let set = SetAttr {
        mode: Some(0o640),
        size: Some(9 << 20),
        ..SetAttr::default()
    };
    replica.set_attr(node, None, set, ME).await.unwrap();
    let removed = replica.set_xattr(node, b"user.two", b"2", XattrMode::Create);
    removed.await.unwrap();
    replica.remove_xattr(node, b"user.two").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_have_forgotten() {
    let world = World::new();
    let (a, b) = (world.replica().await, world.replica().await);
    let (file, handle) = (a.create(ROOT, &name("file"), 0o600, true, true, ME).await).unwrap();
    a.close(handle);
    change(&a, file.node).await;
    let seen = b.lookup(ROOT, &name("file")).await.unwrap();
    look_at(&b, seen.node).await;
    look_at(&a, file.node).await;
    let linked = a.link(file.node, ROOT, &name("further")).await.unwrap();
    assert_eq!(linked.node, file.node);
    let make = Make::Symlink(b"file".to_vec());
    let link = a.make(ROOT, &name("link"), make, 0o777, ME).await.unwrap();
    let also = b.lookup(ROOT, &name("link")).await.unwrap();
    assert_eq!(b.read_link(also.node).await.unwrap(), b"file");
    b.forget(seen.node, 1);
    b.forget(also.node, 1);
    a.forget(file.node, 2);
    a.forget(link.node, 1);
    world.wait_until_all_is_forgotten().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_never_knew() {
    let world = World::new();
    let (a, b) = (world.replica().await, world.replica().await);
    let (file, handle) = (a.create(ROOT, &name("file"), 0o600, true, true, ME).await).unwrap();
    a.close(handle);
    // As for an answer that is read again, and tells of another node then.
    let clients = world.service.sessions.clients();
    for client in &clients {
        let coherence = &world.service.coherence;
        coherence.subscribe_first(*client, file.attr.id);
    }
    assert_eq!(clients.len(), 2);
    a.forget(file.node, 1);
    let change = [(file.attr.id, Stale::Attributes)];
    world.service.coherence.change_by_others(change);
    world.wait_until_all_is_forgotten().await;
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_more() {
    let world = World::new();
    let a = world.replica().await;
    let mut gone = HashSet::new();
    let make = async |text: &str| {
        let created = a.create(ROOT, &name(text), 0o600, true, true, ME).await;
        let (file, handle) = created.unwrap();
        let written = a.write(handle, 0, b"bytes", false);
        written.await.unwrap();
        a.flush(handle).await.unwrap();
        a.close(handle);
        file
    };
    for round in 0..20 {
        let new = make("new").await;
        assert!(world.remembers(new.attr.id));
        let (from, to) = (name("new"), name("kept"));
        let replaced = a.rename(ROOT, &from, ROOT, &to, RenameMode::Replace);
        replaced.await.unwrap();
        let removed = make("removed").await;
        a.remove(ROOT, &name("removed"), false).await.unwrap();
        let folder = name(&format!("folder {round}"));
        let made = a.make(ROOT, &folder, Make::Directory, 0o700, ME);
        let made = made.await.unwrap();
        a.remove(ROOT, &folder, true).await.unwrap();
        gone.extend([removed.attr.id, made.attr.id]);
        if round < 19 {
            gone.insert(new.attr.id);
        }
    }
    // A handle is closed a little later than its file, and what is gone then is swept.
    let left: Vec<_> = gone.iter().filter(|id| world.remembers(**id)).collect();
    assert!(left.len() < gone.len() / 2, "{left:?}");
}
