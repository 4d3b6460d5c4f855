//! What happens between two calls to the store, and stores that fail, linger, or lose count.

use super::client::*;
use super::filter::{Filter, When};
use crate::node::authority::AuthorityOptions;
use crate::node::replica::{ROOT, Replica, ReplicaOptions};
use crate::store::memory::Memory;
use crate::store::{Errno, Noticed, Store};
use crate::transport::stream;
use crate::wire::*;
use parking_lot::{Condvar, Mutex};
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Stops calls of one name, before or after they are made, until it is told to let them go on.
#[derive(Default)]
struct Gate {
    state: Mutex<(Option<(&'static str, When)>, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self, name: &'static str, when: When) {
        let mut state = self.state.lock();
        if state.0 == Some((name, when)) {
            state.1 += 1;
            self.changed.notify_all();
            while state.0.is_some() {
                self.changed.wait(&mut state);
            }
        }
    }

    fn shut(&self, name: &'static str, when: When) {
        *self.state.lock() = (Some((name, when)), 0);
    }

    /// Waits until somebody stands before it.
    async fn reached(self: &Arc<Self>) {
        self.reached_by(1).await;
    }

    async fn reached_by(self: &Arc<Self>, number: usize) {
        let gate = self.clone();
        let wait = move || {
            let mut state = gate.state.lock();
            while state.1 < number {
                gate.changed.wait(&mut state);
            }
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    fn open(&self) {
        self.state.lock().0 = None;
        self.changed.notify_all();
    }
}

fn gated() -> (Arc<Gate>, Server) {
    let gate = Arc::new(Gate::default());
    let passing = gate.clone();
    let store = Filter::new(Memory::new(1 << 30), move |name, when| {
        passing.pass(name, when);
        Ok(())
    });
    let options = AuthorityOptions {
        lease: Duration::from_secs(3600),
        ..AuthorityOptions::default()
    };
    (gate, Server::over(store, options))
}

fn chmod(node: &Node, mode: u16) -> ChangeRequest {
    ChangeRequest::SetAttr {
        node: node.clone(),
        handle: None,
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
        by: BY,
    }
}

/// A change right after the store was asked for an answer, and before anybody is subscribed to what it tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answer_that_is_overtaken_is_read_again() {
    let (gate, server) = gated();
    let writer = server.client(1).await;
    let (_, file) = writer.create("file").await;
    let root = writer.root();
    let lookup = ReadRequest::Lookup {
        dir: root.clone(),
        name: name("file"),
    };
    let list = ReadRequest::ReadDir {
        dir: root.clone(),
        cursor: 0,
        xattrs: false,
    };
    let get = ReadRequest::GetAttr {
        node: file.clone(),
        handle: None,
    };
    let cases = [("lookup", lookup), ("read_dir", list), ("attr", get)];
    for (number, (call, request)) in (2..).zip(cases) {
        let mode = 0o600 + u16::from(number);
        let reader = server.client(number).await;
        gate.shut(call, When::After);
        let done = AtomicBool::new(false);
        let reading = async {
            let answer = reader.read(request).await;
            let mut told = Vec::new();
            while !done.load(Ordering::SeqCst) {
                told.extend(reader.settle().await);
            }
            told.extend(reader.settle().await);
            (answer, told)
        };
        let changing = async {
            gate.reached().await;
            let mut setting = std::pin::pin!(writer.change(chmod(&file, mode)));
            if call == "attr" {
                // The change asks for attributes as well.
                tokio::select! {
                    biased;
                    _ = &mut setting => panic!("it cannot have passed"),
                    () = gate.reached_by(2) => gate.open(),
                }
            }
            setting.await.unwrap();
            gate.open();
            done.store(true, Ordering::SeqCst);
        };
        let ((answer, told), ()) = tokio::join!(reading, changing);
        let seen = match answer.unwrap() {
            Answer::Attr(attr) => attr.mode,
            Answer::Entries(entries) => entries[0].attr.mode,
            other => panic!("{other:?}"),
        };
        let current = seen == mode || told.contains(&(file.id, Stale::Attributes));
        assert!(current, "{call}: {seen:o} is kept, it is {mode:o}");
        reader.tell(ReplicaEvent::Goodbye).await;
        reader.connection.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_missing_name_that_is_made_meanwhile_is_found() {
    let (gate, server) = gated();
    let writer = server.client(1).await;
    let reader = server.client(2).await;
    reader.list(&reader.root(), 0).await;
    reader
        .tell(ReplicaEvent::Forget(vec![(
            reader.root().id,
            crate::region::Tick(u64::MAX),
        )]))
        .await;
    reader.settle().await;
    gate.shut("lookup", When::After);
    let root = reader.root();
    let (found, ()) = tokio::join!(reader.look_up(&root, "file"), async {
        gate.reached().await;
        let make = ChangeRequest::Make {
            dir: writer.root(),
            name: name("file"),
            make: Make::File,
            mode: 0o600,
            by: BY,
        };
        writer.change(make).await.unwrap();
        gate.open();
    });
    assert!(found.is_ok() || !reader.settle().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_to_one_file_take_turns_and_others_go_on() {
    let (gate, server) = gated();
    let client = server.client(1).await;
    let (slow, file) = client.create("slow").await;
    let (other, _) = client.create("other").await;
    gate.shut("write_at", When::Before);
    let first = client.push(slow, 0, &[1; 5000]);
    let (first, second) = tokio::join!(first, async {
        gate.reached().await;
        // Needs no turn, and nothing of what is stuck.
        assert!(client.bytes(slow, 0, 10).await.is_empty());
        client.change(chmod(&client.root(), 0o700)).await.unwrap();
        let empty = ChangeRequest::Allocate {
            handle: other,
            start: 0,
            end: 10,
            mode: Allocate::Extend,
        };
        client.change(empty).await.unwrap();
        let mut second = std::pin::pin!(client.change(chmod(&file, 0o600)));
        tokio::select! {
            biased;
            done = &mut second => panic!("out of turn: {done:?}"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        gate.open();
        second.await
    });
    assert_eq!(first.unwrap().mode, 0o644, "answered as of its own turn");
    assert_eq!(attr(second).size, 5000);
}

/// Fails calls of one name: those of these numbers.
fn failing(
    name: &'static str,
    bad: impl RangeBounds<usize> + Send + Sync + 'static,
    errno: Errno,
) -> Server {
    let calls = AtomicUsize::new(0);
    let store = Filter::new(Memory::new(1 << 30), move |call, when| {
        let meant = call == name && when == When::Before;
        match meant && bad.contains(&calls.fetch_add(1, Ordering::SeqCst)) {
            true => Err(errno),
            false => Ok(()),
        }
    });
    Server::over(store, AuthorityOptions::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_at_once_gives_the_errno() {
    let server = failing("read_at", 0.., Errno::IO);
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.push(handle, 0, &[1; 100]).await.unwrap();
    let pulled = client.pull(handle, 0, 100).await.map(|_| ());
    assert_eq!(pulled, Err(Errno::IO.raw_os_error()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_later_does_not_end_as_if_it_were_complete() {
    let server = failing("read_at", 20.., Errno::IO);
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    let len = TRANSFER_BYTES_MAX;
    client
        .push(handle, 0, &vec![1; len as usize])
        .await
        .unwrap();
    let pull = Request::Read(ReadRequest::Pull {
        handle,
        start: 0,
        end: len,
        demand: true,
        compress: true,
    });
    let (mut send, mut receive) = client.ask(&pull).await;
    send.finish().unwrap();
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert!(reply.result.is_ok());
    let broken = loop {
        match stream::receive_frame(&mut receive, len).await {
            Ok(frame) => assert!(super::client::len(&frame) > 0),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, stream::StreamError::Link(_)), "{broken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_goes_on_with_a_pull_that_broke_off() {
    let server = failing("read_at", 5..8, Errno::IO);
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    let bytes: Vec<u8> = (0..TRANSFER_BYTES_MAX as u32 / 4)
        .flat_map(u32::to_le_bytes)
        .collect();
    client.push(handle, 0, &bytes).await.unwrap();
    let options = ReplicaOptions {
        background: false,
        ..ReplicaOptions::default()
    };
    let replica = Replica::connect(server.dialer(&server.key), options)
        .await
        .unwrap();
    let entry = replica.lookup(ROOT, &name("file")).await.unwrap();
    assert_eq!(entry.attr.id, file.id);
    let (handle, _) = replica.open(entry.node, true, false).await.unwrap();
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        let part = replica
            .read(handle, read.len() as u64, 1 << 20, <[u8]>::to_vec)
            .await;
        match part {
            Ok(part) => read.extend(part),
            // From the beginning of a pull an errno is handed on.
            Err(errno) => assert_eq!(errno, Errno::IO),
        }
    }
    assert!(read == bytes, "bytes differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_fails_halfway_is_told_to_the_others() {
    let server = failing("write_at", 2.., Errno::NOSPC);
    let writer = server.client(1).await;
    let (handle, file) = writer.create("file").await;
    writer.push(handle, 0, &[1; 8192]).await.unwrap();
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    let extents = [(0, 4096), (8192, 12_288)].map(|(start, end)| Extent { start, end });
    let request = ChangeRequest::Push {
        handle,
        epoch: EPOCH,
        extents: extents.to_vec(),
    };
    let pushing = async {
        let request = Request::Change(writer.sequence(), request);
        let (mut send, mut receive) = writer.ask(&request).await;
        for _ in 0..2 {
            let page = bytes::Bytes::from(vec![2; 4096]);
            stream::send_frame(&mut send, page, false).await.unwrap();
        }
        send.finish().unwrap();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        reply.result
    };
    let (pushed, taken) = tokio::join!(pushing, reader.take());
    assert_eq!(pushed, Err(Errno::NOSPC.raw_os_error()));
    let (start, end) = (0, 12_288);
    assert_eq!(taken, (file.id, Stale::Bytes { start, end }));
    assert_eq!(writer.bytes(handle, 0, 1).await, [2], "a part was applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_notices_mean_that_everything_may_have_changed() {
    let store = Filter::new(Memory::new(1 << 30), |_, _| Ok(()));
    let server = Server::over(store.clone(), AuthorityOptions::default());
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    client.read(ReadRequest::Close { handle }).await.unwrap();
    client.list(&client.root(), 0).await;
    store.notice(Noticed::Overflow);
    let mut told = [client.take().await, client.take().await];
    told.sort_by_key(|(id, _)| *id != file.id);
    let root = client.root();
    assert_eq!(
        told,
        [(file.id, bytes_from(0)), (root.id, Stale::Attributes)]
    );
    // A notice of what was never told before, one of how it is known to be, and one about nothing known.
    let mut attr = store.attr(&file).unwrap();
    store.notice(Noticed::Changed(attr));
    attr.mtime.secs += 1;
    store.notice(Noticed::Changed(attr));
    assert_eq!(client.take().await, (file.id, bytes_from(0)));
    store.notice(Noticed::Changed(attr));
    attr.id.ino += 1000;
    store.notice(Noticed::Changed(attr));
    store.notice(Noticed::Overflow);
    client.take().await;
    client.take().await;
    assert_eq!(client.settle().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_watched_as_long_as_somebody_has_copies() {
    let store = Filter::new(Memory::new(1 << 30), |_, _| Ok(()));
    let server = Server::over(store.clone(), AuthorityOptions::default());
    let [first, second] = [server.client(1).await, server.client(2).await];
    let root = first.root();
    first.list(&root, 0).await;
    second.list(&root, 0).await;
    assert!(second.look_up(&root, "x").await.is_err());
    assert_eq!(*store.observed.lock(), [(root.id, true)]);
    let forget = ReplicaEvent::Forget(vec![(root.id, crate::region::Tick(u64::MAX))]);
    first.tell(forget.clone()).await;
    first.tell(forget).await;
    first.settle().await;
    assert_eq!(*store.observed.lock(), [(root.id, true)]);
    second.tell(ReplicaEvent::Goodbye).await;
    second.connection.closed().await;
    assert_eq!(*store.observed.lock(), [(root.id, true), (root.id, false)]);
    first.list(&root, 0).await;
    assert_eq!(store.observed.lock().last(), Some(&(root.id, true)));
}
