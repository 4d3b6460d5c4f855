//! Two and more replicas of one file: who is told, and who waits for whom.

use super::client::*;
use crate::wire::*;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A lease that no test waits for.
const LONG: Duration = Duration::from_secs(3600);
/// A lease that a test waits for.
const SHORT: Duration = Duration::from_millis(300);

/// Two clients that hold copies of one file, which the first has open for writing.
async fn two(server: &Server) -> (Client, HandleId, Node, Client, HandleId) {
    let writer = server.client(1).await;
    let (handle, file) = writer.create("file").await;
    writer.push(handle, 0, &[1; 8192]).await.unwrap();
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    let (reading, _) = reader.open(&file, Access::Read).await;
    assert_eq!(reader.bytes(reading, 0, 8192).await, [1; 8192]);
    (writer, handle, file, reader, reading)
}

/// The outcome of `waiting`, and whether it came only after `taking` had begun to say so.
async fn after<W, T>(
    waiting: impl Future<Output = W>,
    taking: impl AsyncFnOnce(&AtomicBool) -> T,
) -> (W, T) {
    let taken = AtomicBool::new(false);
    let (mut waiting, mut taking) = (pin!(waiting), pin!(taking(&taken)));
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("answered before everyone has taken it in"),
        value = &mut taking => {
            assert!(taken.load(Ordering::SeqCst));
            (waiting.await, value)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_answered_when_the_others_have_taken_it_in() {
    let server = Server::leasing(LONG);
    let (writer, handle, file, reader, reading) = two(&server).await;
    let push = writer.push(handle, 4096, &[2; 4096]);
    let (pushed, (at, pulled)) = after(push, async |taken| {
        let (change, id, at, what) = reader.stale().await;
        let (start, end) = (4096, 8192);
        assert_eq!((id, what), (file.id, Stale::Bytes { start, end }));
        // The bytes can be read from when it is told, and long before anybody has been answered.
        let pulled = reader.bytes(reading, 4096, 8192).await;
        let still_waiting = reader.settle().await;
        assert_eq!(still_waiting, []);
        taken.store(true, Ordering::SeqCst);
        reader.tell(ReplicaEvent::Taken { change }).await;
        (at, pulled)
    })
    .await;
    assert_eq!(pulled, [2; 4096]);
    assert_eq!(pushed.unwrap().size, 8192);
    let reread = reader.exchange(Request::Read(ReadRequest::GetAttr {
        node: file,
        handle: None,
    }));
    assert!(
        reread.await.at >= at,
        "an answer from after the change has its stamp"
    );
    assert_eq!(
        writer.settle().await,
        [],
        "who made the change is not told of it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_answered_when_the_lease_of_the_others_has_run_out() {
    let server = Server::leasing(SHORT);
    let (writer, handle, _, reader, _) = two(&server).await;
    // It neither takes the change in nor renews its lease.
    writer.push(handle, 0, b"x").await.unwrap();
    reader.connection.closed().await;
    let again = server.client(2).await;
    assert!(!again.welcome.resumed, "it has missed something");
    writer.push(handle, 0, b"y").await.unwrap();
    assert_eq!(again.settle().await, [], "it has subscribed to nothing yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_renews_and_never_takes_a_change_in_does_not_stop_the_others() {
    let server = Server::leasing(SHORT);
    let (writer, handle, _, reader, _) = two(&server).await;
    let renewing = async {
        for sent in 0.. {
            let renew = ReplicaEvent::Renew { sent };
            let mut alive = pin!(async {
                reader.tell(renew).await;
                tokio::time::sleep(SHORT / 10).await;
            });
            tokio::select! {
                () = &mut alive => {}
                _ = reader.connection.closed() => return,
            }
        }
    };
    let (pushed, ()) = tokio::join!(writer.push(handle, 0, b"x"), renewing);
    pushed.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_again_and_never_takes_a_change_in_does_not_stop_the_others() {
    let server = Server::leasing(SHORT);
    let (writer, handle, _, reader, _) = two(&server).await;
    let coming = async {
        let _first = reader;
        loop {
            tokio::time::sleep(SHORT / 3).await;
            let last = server.client(2).await;
            if !last.welcome.resumed {
                return last;
            }
            assert!(
                matches!(last.event().await, AuthorityEvent::Invalidate { .. }),
                "told again"
            );
        }
    };
    let (pushed, _last) = tokio::join!(writer.push(handle, 0, b"x"), coming);
    pushed.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_not_waited_for() {
    let server = Server::leasing(LONG);
    let (writer, handle, file, reader, _) = two(&server).await;
    let lookup = Request::Read(ReadRequest::Lookup {
        dir: reader.root(),
        name: name("file"),
    });
    let seen = reader.exchange(lookup).await.at;
    reader
        .tell(ReplicaEvent::Forget(vec![(file.id, seen)]))
        .await;
    reader.settle().await;
    writer.push(handle, 0, b"x").await.unwrap();
    assert_eq!(reader.settle().await, []);
    reader.tell(ReplicaEvent::Goodbye).await;
    reader.connection.closed().await;
    writer.push(handle, 0, b"y").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_kind_subscribes() {
    let server = Server::leasing(LONG);
    let (writer, handle, file, reader, reading) = two(&server).await;
    let root = reader.root();
    reader.list(&root, 0).await;
    let seen = |reply: Reply| reply.at;
    let reads = [
        ReadRequest::GetAttr {
            node: file.clone(),
            handle: None,
        },
        ReadRequest::GetAttr {
            node: file.clone(),
            handle: Some(reading),
        },
        ReadRequest::Lookup {
            dir: root.clone(),
            name: name("file"),
        },
        ReadRequest::ReadDir {
            dir: root.clone(),
            cursor: 0,
            xattrs: true,
        },
        ReadRequest::Open {
            node: file.clone(),
            access: Access::Read,
        },
        ReadRequest::ListXattr { node: file.clone() },
        ReadRequest::Pull {
            handle: reading,
            start: 0,
            end: 1,
            demand: true,
            compress: false,
        },
    ];
    for request in reads {
        let said = format!("{request:?}");
        let at = seen(reader.exchange(Request::Read(request)).await);
        let (pushed, (id, _)) = tokio::join!(writer.push(handle, 0, b"x"), reader.take());
        pushed.unwrap();
        assert_eq!(id, file.id, "{said}");
        // All of it is given up again.
        let later = seen(reader.exchange(Request::Read(ReadRequest::StatFs)).await);
        assert!(later >= at);
        reader
            .tell(ReplicaEvent::Forget(vec![(file.id, later)]))
            .await;
        assert_eq!(reader.settle().await, []);
        writer.push(handle, 0, b"x").await.unwrap();
        assert_eq!(reader.settle().await, [], "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "a table of changes")]
async fn changes_of_every_kind_are_told() {
    let server = Server::leasing(LONG);
    let (writer, handle, file, reader, _) = two(&server).await;
    let root = writer.root();
    let (whole, gone) = (Stale::Attributes, name("gone"));
    assert!(
        reader.look_up(&root, "gone").await.is_err(),
        "kept as missing"
    );
    let file_now = |path: &str| Node {
        id: file.id,
        path: RelPath::new(path).unwrap(),
    };
    let set = |set: SetAttr| ChangeRequest::SetAttr {
        node: file.clone(),
        handle: None,
        set,
        by: BY,
    };
    let chmod = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let shorter = SetAttr {
        size: Some(5000),
        ..SetAttr::default()
    };
    let longer = SetAttr {
        size: Some(9000),
        ..SetAttr::default()
    };
    let (start, end) = (0, 4096);
    let cases = [
        (set(chmod), vec![(file.id, whole)]),
        (set(shorter), vec![(file.id, bytes_from(5000))]),
        (set(longer), vec![(file.id, bytes_from(5000))]),
        (
            ChangeRequest::Allocate {
                handle,
                start,
                end,
                mode: Allocate::PunchHole,
            },
            vec![(file.id, Stale::Bytes { start, end })],
        ),
        (
            ChangeRequest::SetXattr {
                node: file.clone(),
                name: b"user.x".to_vec(),
                value: vec![],
                mode: XattrMode::Set,
            },
            vec![(file.id, whole)],
        ),
        (
            ChangeRequest::Link {
                node: file.clone(),
                dir: root.clone(),
                name: gone.clone(),
            },
            vec![(root.id, whole), (file.id, whole)],
        ),
        (
            ChangeRequest::Remove {
                dir: root.clone(),
                name: gone.clone(),
                directory: false,
            },
            vec![(root.id, whole), (file.id, whole)],
        ),
        (
            ChangeRequest::Rename {
                from_dir: root.clone(),
                from: name("file"),
                to_dir: root.clone(),
                to: gone.clone(),
                mode: RenameMode::Replace,
            },
            vec![(root.id, whole), (file.id, whole)],
        ),
        (
            ChangeRequest::Make {
                dir: root.clone(),
                name: name("new"),
                make: Make::File,
                mode: 0o600,
                by: BY,
            },
            vec![(root.id, whole)],
        ),
    ];
    for (request, expected) in cases {
        let said = format!("{request:?}");
        let taking = async {
            let mut taken = Vec::new();
            for _ in &expected {
                taken.push(reader.take().await);
            }
            taken
        };
        let (changed, taken) = tokio::join!(writer.change(request), taking);
        assert!(changed.is_ok(), "{said}: {changed:?}");
        assert_eq!(taken, expected, "{said}");
    }
    let request = ReadRequest::GetAttr {
        node: file_now("gone"),
        handle: None,
    };
    assert_eq!(reader.attr(request).await.size, 9000);
    assert_eq!(reader.settle().await, []);
    // What fails changes nothing.
    let missing = ChangeRequest::Remove {
        dir: root,
        name: name("file"),
        directory: false,
    };
    assert!(writer.change(missing).await.is_err());
    assert_eq!(reader.settle().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn extents_far_from_each_other_are_told_apart() {
    let server = Server::leasing(LONG);
    let (writer, handle, file, reader, _) = two(&server).await;
    let extents = [(0, 4096), (8192, 8193), (1 << 20, (1 << 20) + 1)];
    let extents = extents.map(|(start, end)| Extent { start, end }).to_vec();
    let bytes = [7; 4098];
    let push = writer.push_all(writer.sequence(), handle, extents, &bytes);
    let taking = async { [reader.take().await, reader.take().await] };
    let ((_, reply), taken) = tokio::join!(push, taking);
    assert!(reply.result.is_ok());
    let stale = |start, end| (file.id, Stale::Bytes { start, end });
    assert_eq!(taken, [stale(0, 8193), stale(1 << 20, (1 << 20) + 1)]);
}

/// Readers who list and look up while others change: whatever a reader was answered last and was not told
/// to be stale since is how it is.
#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_missed_while_names_come_and_go() {
    let server = Server::leasing(LONG);
    let writer = server.client(1).await;
    let reader = server.client(2).await;
    let root = writer.root();
    let done = AtomicBool::new(false);
    let changing = async {
        for round in 0..300u64 {
            let text = format!("file{}", round % 7);
            let make = ChangeRequest::Create {
                dir: root.clone(),
                name: name(&text),
                mode: 0o600,
                exclusive: false,
                by: BY,
            };
            let (handle, _) = opened(writer.change(make).await);
            writer.push(handle, round, b"x").await.unwrap();
            writer.read(ReadRequest::Close { handle }).await.unwrap();
            if round % 5 == 0 {
                let remove = ChangeRequest::Remove {
                    dir: root.clone(),
                    name: name(&text),
                    directory: false,
                };
                writer.change(remove).await.unwrap();
            }
        }
        done.store(true, Ordering::SeqCst);
    };
    // What the reader believes: entries as it got them, with the tick of the answer.
    let mut believed: Option<(crate::region::Tick, Vec<DirEntry>)> = None;
    let mut stale: Vec<(FileId, crate::region::Tick)> = Vec::new();
    let reading = async {
        let mut complete = false;
        loop {
            let last = complete;
            let request = Request::Read(ReadRequest::ReadDir {
                dir: reader.root(),
                cursor: 0,
                xattrs: true,
            });
            if !last {
                let reply = reader.exchange(request).await;
                if let Ok(Answer::Entries(entries)) = reply.result {
                    believed = Some((reply.at, entries));
                }
            }
            reader.tell(ReplicaEvent::Renew { sent: 0 }).await;
            while let AuthorityEvent::Invalidate { change, id, at, .. } = reader.event().await {
                stale.push((id, at));
                reader.tell(ReplicaEvent::Taken { change }).await;
            }
            if last {
                return;
            }
            complete = done.load(Ordering::SeqCst);
        }
    };
    tokio::join!(changing, reading);
    let (at, believed) = believed.unwrap();
    let current = |id: FileId| !stale.iter().any(|(node, told)| *node == id && *told > at);
    let now = server.client(3).await.list(&root, 0).await;
    if current(root.id) {
        let names =
            |entries: &[DirEntry]| entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&believed), names(&now));
    }
    for entry in believed.iter().filter(|entry| current(entry.attr.id)) {
        let found = now.iter().find(|now| now.attr.id == entry.attr.id);
        assert_eq!(found.map(|now| now.attr), Some(entry.attr));
    }
}
