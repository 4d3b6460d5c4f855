//! Requests about nodes and names, each with what it refuses.

use super::client::*;
use crate::node::authority::AuthorityOptions;
use crate::region::Tick;
use crate::store::{Errno, memory::Memory};
use crate::units::REGION_BYTES_MAX;
use crate::wire::*;

fn errno<T: std::fmt::Debug>(result: Result<T, i32>) -> Errno {
    Errno::from_raw_os_error(result.expect_err("it should have been refused"))
}

fn make(dir: &Node, text: &str, make: Make) -> ChangeRequest {
    ChangeRequest::Make {
        dir: dir.clone(),
        name: name(text),
        make,
        mode: 0o177_750,
        by: BY,
    }
}

fn set(node: &Node, handle: Option<HandleId>, set: SetAttr) -> ChangeRequest {
    ChangeRequest::SetAttr {
        node: node.clone(),
        handle,
        set,
        by: BY,
    }
}

fn rename(from: (&Node, &str), to: (&Node, &str), mode: RenameMode) -> ChangeRequest {
    ChangeRequest::Rename {
        from_dir: from.0.clone(),
        from: name(from.1),
        to_dir: to.0.clone(),
        to: name(to.1),
        mode,
    }
}

fn remove(dir: &Node, text: &str, directory: bool) -> ChangeRequest {
    ChangeRequest::Remove {
        dir: dir.clone(),
        name: name(text),
        directory,
    }
}

/// A node that never was.
fn nobody() -> Node {
    let id = FileId {
        dev: 7,
        ino: 7,
        born: 7,
    };
    Node {
        id,
        path: RelPath::new("nobody").unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_found_and_taken_away() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let root = client.root();
    let dir = attr(client.change(make(&root, "dir", Make::Directory)).await);
    assert_eq!(
        (dir.kind, dir.mode),
        (Kind::Directory, 0o7750),
        "only permission bits"
    );
    assert_eq!(client.look_up(&root, "dir").await.unwrap().id, dir.id);
    let again = client.change(make(&root, "dir", Make::File)).await;
    assert_eq!(errno(again), Errno::EXIST);
    assert_eq!(errno(client.look_up(&root, "other").await), Errno::NOENT);
    assert_eq!(errno(client.look_up(&nobody(), "x").await), Errno::STALE);
    let orphan = client.change(make(&nobody(), "x", Make::File)).await;
    assert_eq!(errno(orphan), Errno::STALE);

    let dir = node(&dir, "dir");
    let file = attr(client.change(make(&dir, "file", Make::File)).await);
    assert_eq!((file.kind, file.size), (Kind::File, 0));
    let full = client.change(remove(&root, "dir", true)).await;
    assert_eq!(errno(full), Errno::NOTEMPTY);
    assert_eq!(
        errno(client.change(remove(&root, "dir", false)).await),
        Errno::ISDIR
    );
    assert_eq!(
        errno(client.change(remove(&dir, "file", true)).await),
        Errno::NOTDIR
    );
    assert_eq!(
        client.change(remove(&dir, "file", false)).await,
        Ok(Answer::Done)
    );
    assert_eq!(
        client.change(remove(&root, "dir", true)).await,
        Ok(Answer::Done)
    );
    assert_eq!(
        errno(client.change(remove(&root, "dir", true)).await),
        Errno::NOENT
    );
    assert!(client.list(&root, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_where_they_should() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let root = client.root();
    let symlink = |to: &[u8]| make(&root, "symlink", Make::Symlink(to.to_vec()));
    for (bad, why) in [
        (&b""[..], Errno::NOENT),
        (b"a\0b", Errno::INVAL),
        (&[b'x'; 4096], Errno::NAMETOOLONG),
    ] {
        assert_eq!(errno(client.change(symlink(bad)).await), why);
    }
    let made = attr(client.change(symlink(b"/far/away")).await);
    let node_of = node(&made, "symlink");
    let content = client.read(ReadRequest::ReadLink { node: node_of }).await;
    assert_eq!(content, Ok(Answer::Bytes(b"/far/away".to_vec())));
    let content = client
        .read(ReadRequest::ReadLink { node: root.clone() })
        .await;
    assert_eq!(errno(content), Errno::INVAL);

    let (_, file) = client.create("file").await;
    let link = ChangeRequest::Link {
        node: file.clone(),
        dir: root.clone(),
        name: name("further"),
    };
    let linked = attr(client.change(link.clone()).await);
    assert_eq!((linked.id, linked.nlink), (file.id, 2));
    assert_eq!(errno(client.change(link).await), Errno::EXIST);
    client
        .change(remove(&root, "further", false))
        .await
        .unwrap();
    assert_eq!(client.look_up(&root, "file").await.unwrap().nlink, 1);

    let fifo = attr(client.change(make(&root, "fifo", Make::Fifo)).await);
    assert_eq!(fifo.kind, Kind::Fifo);
    let opened = ReadRequest::Open {
        node: node(&fifo, "fifo"),
        access: Access::Read,
    };
    assert_eq!(errno(client.read(opened).await), Errno::INVAL);
    let opened = ReadRequest::Open {
        node: root.clone(),
        access: Access::Read,
    };
    assert_eq!(errno(client.read(opened).await), Errno::ISDIR);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_move() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let root = client.root();
    let (handle, a) = client.create("a").await;
    let (_, b) = client.create("b").await;
    let dir = attr(client.change(make(&root, "dir", Make::Directory)).await);
    let dir = node(&dir, "dir");
    let taken = client.change(rename((&root, "a"), (&root, "b"), RenameMode::NoReplace));
    assert_eq!(errno(taken.await), Errno::EXIST);
    let exchange = rename((&root, "a"), (&root, "b"), RenameMode::Exchange);
    assert_eq!(client.change(exchange).await, Ok(Answer::Done));
    assert_eq!(client.look_up(&root, "a").await.unwrap().id, b.id);
    let into = rename((&root, "b"), (&dir, "c"), RenameMode::Replace);
    assert_eq!(client.change(into).await, Ok(Answer::Done));
    assert_eq!(client.look_up(&dir, "c").await.unwrap().id, a.id);
    assert_eq!(errno(client.look_up(&root, "b").await), Errno::NOENT);
    let replace = rename((&root, "a"), (&dir, "c"), RenameMode::Replace);
    assert_eq!(client.change(replace).await, Ok(Answer::Done));
    assert_eq!(client.look_up(&dir, "c").await.unwrap().id, b.id);
    let itself = rename((&root, "dir"), (&dir, "x"), RenameMode::Replace);
    assert_eq!(errno(client.change(itself).await), Errno::INVAL);
    let missing = rename((&root, "no"), (&dir, "x"), RenameMode::Replace);
    assert_eq!(errno(client.change(missing).await), Errno::NOENT);
    // It has no name any more, but it is open.
    client.push(handle, 0, b"still here").await.unwrap();
    let request = ReadRequest::GetAttr {
        node: a,
        handle: Some(handle),
    };
    let last = client.attr(request).await;
    assert_eq!((last.nlink, last.size), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_set() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    let time = Time {
        secs: -5,
        nanos: 999_999_999,
    };
    let all = SetAttr {
        mode: Some(0o170_644),
        size: Some(1 << 40),
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    };
    let changed = attr(client.change(set(&file, None, all)).await);
    assert_eq!(
        (changed.mode, changed.size, changed.mtime),
        (0o644, 1 << 40, time)
    );
    let bad_time = SetAttr {
        atime: Some(SetTime::At(Time {
            secs: 0,
            nanos: 1_000_000_000,
        })),
        ..SetAttr::default()
    };
    assert_eq!(
        errno(client.change(set(&file, None, bad_time)).await),
        Errno::INVAL
    );
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    let huge = client
        .change(set(&file, None, size(REGION_BYTES_MAX + 1)))
        .await;
    assert_eq!(errno(huge), Errno::FBIG);
    let (reader, _) = client.open(&file, Access::Read).await;
    let through = client.change(set(&file, Some(reader), size(7))).await;
    assert_eq!(errno(through), Errno::BADF, "open for reading");
    let through = attr(client.change(set(&file, Some(handle), size(7))).await);
    assert_eq!(through.size, 7);
    let root = client.root();
    let other = client.change(set(&root, Some(handle), size(7))).await;
    assert_eq!(errno(other), Errno::BADF, "a handle of another node");
    let gone = client.change(set(&nobody(), None, size(7))).await;
    assert_eq!(errno(gone), Errno::STALE);
    let request = ReadRequest::GetAttr {
        node: file.clone(),
        handle: None,
    };
    assert_eq!(client.attr(request).await.size, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (_, file) = client.create("file").await;
    let set = |key: &[u8], value: &[u8], mode| ChangeRequest::SetXattr {
        node: file.clone(),
        name: key.to_vec(),
        value: value.to_vec(),
        mode,
    };
    let get = |key: &[u8]| ReadRequest::GetXattr {
        node: file.clone(),
        name: key.to_vec(),
    };
    let largest = vec![1; XATTR_BYTES_MAX];
    client
        .change(set(b"user.a", &largest, XattrMode::Create))
        .await
        .unwrap();
    let again = client.change(set(b"user.a", b"", XattrMode::Create)).await;
    assert_eq!(errno(again), Errno::EXIST);
    let too_long = vec![1; XATTR_BYTES_MAX + 1];
    let too_long = client
        .change(set(b"user.b", &too_long, XattrMode::Set))
        .await;
    assert_eq!(errno(too_long), Errno::TOOBIG);
    for bad in [&b""[..], b"user.\0", &[b'x'; 256]] {
        assert_eq!(
            errno(client.change(set(bad, b"", XattrMode::Set)).await),
            Errno::RANGE
        );
        assert_eq!(errno(client.read(get(bad)).await), Errno::RANGE);
    }
    assert_eq!(
        client.read(get(b"user.a")).await,
        Ok(Answer::Bytes(largest))
    );
    let names = client
        .read(ReadRequest::ListXattr { node: file.clone() })
        .await;
    assert_eq!(names, Ok(Answer::Bytes(b"user.a\0".to_vec())));
    let remove = ChangeRequest::RemoveXattr {
        node: file.clone(),
        name: b"user.a".to_vec(),
    };
    assert_eq!(client.change(remove.clone()).await, Ok(Answer::Done));
    assert_eq!(errno(client.change(remove).await), Errno::NODATA);
    assert_eq!(errno(client.read(get(b"user.a")).await), Errno::NODATA);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_opened_and_closed() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (writer, file) = client.create("file").await;
    let create = |exclusive, text: &str| ChangeRequest::Create {
        dir: client.root(),
        name: name(text),
        mode: 0o600,
        exclusive,
        by: BY,
    };
    assert_eq!(
        errno(client.change(create(true, "file")).await),
        Errno::EXIST
    );
    let (same, found) = opened(client.change(create(false, "file")).await);
    assert!(same != writer && found.id == file.id && found.mode == 0o644);
    client
        .change(make(&client.root(), "dir", Make::Directory))
        .await
        .unwrap();
    assert_eq!(
        errno(client.change(create(false, "dir")).await),
        Errno::EXIST
    );
    let (reader, _) = client.open(&file, Access::Read).await;
    assert_eq!(errno(client.push(reader, 0, b"x").await), Errno::BADF);
    client.push(writer, 10_000_000, b"x").await.unwrap();
    let seek = |handle, offset, data| ReadRequest::Seek {
        handle,
        offset,
        data,
    };
    let Ok(Answer::Offset(data)) = client.read(seek(reader, 0, true)).await else {
        panic!("there is data");
    };
    assert!((9_000_000..=10_000_000).contains(&data));
    assert_eq!(
        client.read(seek(reader, 0, false)).await,
        Ok(Answer::Offset(0))
    );
    assert_eq!(
        errno(client.read(seek(reader, 10_000_002, true)).await),
        Errno::NXIO
    );
    assert_eq!(
        errno(client.read(seek(reader, u64::MAX, false)).await),
        Errno::NXIO
    );
    let sync = |handle| ChangeRequest::Sync {
        handle,
        data_only: true,
    };
    assert_eq!(attr(client.change(sync(reader)).await).size, 10_000_001);
    let close = |handle| ReadRequest::Close { handle };
    assert_eq!(client.read(close(reader)).await, Ok(Answer::Done));
    assert_eq!(errno(client.read(close(reader)).await), Errno::BADF);
    assert_eq!(errno(client.read(seek(reader, 0, true)).await), Errno::BADF);
    assert_eq!(errno(client.change(sync(reader)).await), Errno::BADF);
    assert_eq!(errno(client.push(reader, 0, b"x").await), Errno::BADF);
    assert_eq!(
        errno(client.pull(reader, 0, 1).await.map(|_| ())),
        Errno::BADF
    );
    let dir = client.root();
    assert_eq!(
        client.change(ChangeRequest::SyncDir { dir }).await,
        Ok(Answer::Done)
    );
    let Ok(Answer::StatFs(stat)) = client.read(ReadRequest::StatFs).await else {
        panic!("no statfs");
    };
    assert!(stat.blocks > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_directory_is_listed_in_parts() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let root = client.root();
    let mut all = Vec::new();
    for index in 0..2 * DIR_ENTRIES_MAX + 5 {
        let text = format!("{index:0200}");
        client.change(make(&root, &text, Make::File)).await.unwrap();
        all.push(name(&text));
    }
    let mut listed = Vec::new();
    let mut cursor = 0;
    loop {
        let part = client.list(&root, cursor).await;
        let Some(last) = part.last() else { break };
        assert!(part.len() <= DIR_ENTRIES_MAX);
        cursor = last.cursor;
        listed.extend(part.into_iter().map(|entry| entry.name));
    }
    listed.sort();
    assert_eq!(listed, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_change_anything_does_not() {
    let options = AuthorityOptions {
        read_only: true,
        ..AuthorityOptions::default()
    };
    let exported = Server::new(Memory::new(1 << 20), options);
    let by_export = exported.client(1).await;
    assert!(by_export.welcome.read_only);
    let server = Server::in_memory();
    let (_, file) = server.client(9).await.create("file").await;
    let modest = Hello {
        read_only: true,
        ..hello(2)
    };
    let by_promise = server.hello(&server.key, modest).await.unwrap();
    assert!(!by_promise.welcome.read_only);
    for client in [&by_export, &by_promise] {
        let root = client.root();
        let handle = HandleId {
            number: 1,
            file: root.id,
        };
        let extents = vec![Extent { start: 0, end: 1 }];
        let pushed = client
            .push_all(client.sequence(), handle, extents, b"x")
            .await;
        assert_eq!(errno(pushed.1.result), Errno::ROFS);
        for change in [
            make(&root, "x", Make::File),
            remove(&root, "file", false),
            rename((&root, "file"), (&root, "x"), RenameMode::Replace),
            set(&root, None, SetAttr::default()),
            ChangeRequest::SyncDir { dir: root.clone() },
            ChangeRequest::Sync {
                handle,
                data_only: false,
            },
        ] {
            assert_eq!(errno(client.change(change).await), Errno::ROFS);
        }
    }
    let open = |access| ReadRequest::Open {
        node: file.clone(),
        access,
    };
    assert_eq!(
        errno(by_promise.read(open(Access::Write)).await),
        Errno::ROFS
    );
    opened(by_promise.read(open(Access::Read)).await);
    assert!(by_promise.look_up(&by_promise.root(), "x").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_clock_of_changes() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let lookup = Request::Read(ReadRequest::Lookup {
        dir: client.root(),
        name: name("file"),
    });
    let before: Tick = client.exchange(lookup.clone()).await.at;
    let request = make(&client.root(), "file", Make::File);
    let made = client
        .exchange(Request::Change(client.sequence(), request))
        .await;
    assert!(made.at > before, "the answer has seen its own change");
    let after = client.exchange(lookup).await;
    assert!(after.at >= made.at);
    assert_eq!(after.result, made.result);
}

/// The kernel of a replica asks for one of them before it stores anything.
#[tokio::test]
async fn who_opens_a_file_for_writing_is_told_of_its_extended_attributes() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (_, file) = client.create("file").await;
    let names = async |access| {
        let node = file.clone();
        match client.read(ReadRequest::Open { node, access }).await {
            Ok(Answer::Opened { xattrs, .. }) => xattrs,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(names(Access::Write).await, Some(vec![]));
    let set = |name: &[u8]| ChangeRequest::SetXattr {
        node: file.clone(),
        name: name.to_vec(),
        value: vec![],
        mode: XattrMode::Set,
    };
    client.change(set(b"user.a")).await.unwrap();
    assert_eq!(names(Access::Write).await, Some(b"user.a\0".to_vec()));
    assert_eq!(names(Access::Read).await, None);
    let long = [&b"user."[..], &[b'x'; 200]].concat();
    for name in [&long, &[&long[..], b"y"].concat()] {
        client.change(set(name)).await.unwrap();
    }
    assert_eq!(names(Access::Write).await, None, "too many");
}
