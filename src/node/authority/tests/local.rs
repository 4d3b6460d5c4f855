//! What other programs do in the served directory.

use super::client::*;
use crate::node::authority::AuthorityOptions;
use crate::store::directory::Directory;
use crate::wire::*;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;

fn served() -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::open(dir.path()).unwrap();
    let server = Server::new(store, AuthorityOptions::default());
    (dir, server)
}

fn write_at_start(path: &Path, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

/// Events up to one of this node.
async fn until(client: &Client, node: FileId) -> Stale {
    loop {
        let (id, what) = client.take().await;
        if id == node {
            return what;
        }
    }
}

/// What the client is told when it is clear that a notice of an earlier change has been looked at: a
/// later one has, of `probe` in the root, which another program writes to.
async fn told(client: &Client, dir: &TempDir, probe: &Node) -> Vec<(FileId, Stale)> {
    fs::write(dir.path().join("probe"), "x").unwrap();
    let mut told = Vec::new();
    loop {
        let event = client.take().await;
        if event.0 == probe.id {
            told.extend(client.settle().await);
            told.retain(|event| event.0 != probe.id);
            return told;
        }
        told.push(event);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_is_noticed() {
    let (dir, server) = served();
    fs::write(dir.path().join("file"), "old").unwrap();
    let client = server.client(1).await;
    let root = client.root();
    let file = client.look_up(&root, "file").await.unwrap();
    let (handle, _) = client.open(&node(&file, "file"), Access::Read).await;
    assert_eq!(client.bytes(handle, 0, 3).await, b"old");
    fs::write(dir.path().join("file"), "newer").unwrap();
    assert_eq!(until(&client, file.id).await, bytes_from(0));
    let (size, _, _) = client.pull(handle, 0, 4096).await.unwrap();
    assert_eq!(size, 5);
    assert_eq!(client.bytes(handle, 0, 5).await, b"newer");

    let permissions = fs::Permissions::from_mode(0o600);
    fs::set_permissions(dir.path().join("file"), permissions).unwrap();
    until(&client, file.id).await;
    assert_eq!(client.look_up(&root, "file").await.unwrap().mode, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_make_is_noticed() {
    let (dir, server) = served();
    let client = server.client(1).await;
    let root = client.root();
    assert!(
        client.look_up(&root, "file").await.is_err(),
        "the client keeps that"
    );
    fs::write(dir.path().join("file"), "x").unwrap();
    assert_eq!(until(&client, root.id).await, Stale::Attributes);
    client.look_up(&root, "file").await.unwrap();
    fs::remove_file(dir.path().join("file")).unwrap();
    assert_eq!(until(&client, root.id).await, Stale::Attributes);
    assert!(client.look_up(&root, "file").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_only_asked_about_is_watched() {
    let (dir, server) = served();
    fs::create_dir(dir.path().join("inner")).unwrap();
    let client = server.client(1).await;
    let inner = client.look_up(&client.root(), "inner").await.unwrap();
    let request = ReadRequest::GetAttr {
        node: node(&inner, "inner"),
        handle: None,
    };
    client.attr(request).await;
    fs::write(dir.path().join("inner/file"), "x").unwrap();
    assert_eq!(until(&client, inner.id).await, Stale::Attributes);
}

#[tokio::test(flavor = "multi_thread")]
async fn own_changes_are_not_taken_for_others() {
    let (dir, server) = served();
    fs::write(dir.path().join("probe"), "").unwrap();
    let client = server.client(1).await;
    let root = client.root();
    let probe = client.look_up(&root, "probe").await.unwrap();
    let probe = node(&probe, "probe");
    assert!(!client.list(&root, 0).await.is_empty());
    let make = |dir: &Node, text: &str| ChangeRequest::Make {
        dir: dir.clone(),
        name: name(text),
        make: Make::Directory,
        mode: 0o755,
        by: BY,
    };
    let (handle, file) = client.create("file").await;
    for start in 0..50 {
        client.push(handle, start * 5000, &[1; 4096]).await.unwrap();
    }
    let rename = |from: &str, to: &str| ChangeRequest::Rename {
        from_dir: root.clone(),
        from: name(from),
        to_dir: root.clone(),
        to: name(to),
        mode: RenameMode::Replace,
    };
    client.change(rename("file", "moved")).await.unwrap();
    client.push(handle, 0, b"after").await.unwrap();
    let set = ChangeRequest::SetAttr {
        node: node_at(file.id, "moved"),
        handle: None,
        set: SetAttr {
            mode: Some(0o600),
            size: Some(100),
            ..SetAttr::default()
        },
        by: BY,
    };
    client.change(set).await.unwrap();
    let link = ChangeRequest::Link {
        node: node_at(file.id, "moved"),
        dir: root.clone(),
        name: name("link"),
    };
    client.change(link).await.unwrap();
    // A directory that moves, with what is made in it afterwards.
    let inner = attr(client.change(make(&root, "inner")).await);
    assert!(client.list(&node(&inner, "inner"), 0).await.is_empty());
    client.change(rename("inner", "outer")).await.unwrap();
    client
        .change(make(&node_at(inner.id, "outer"), "deep"))
        .await
        .unwrap();
    assert_eq!(told(&client, &dir, &probe).await, []);
    // And it is not that nothing is noticed any more.
    fs::write(dir.path().join("moved"), "by another program").unwrap();
    assert_eq!(until(&client, file.id).await, bytes_from(0));
}

fn node_at(id: FileId, path: &str) -> Node {
    Node {
        id,
        path: RelPath::new(path).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_others_just_before_ones_own_is_found() {
    let (dir, server) = served();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    client.push(handle, 0, &[1; 8192]).await.unwrap();
    assert_eq!(client.bytes(handle, 0, 1).await, [1]);
    // No entry of a directory of the client's was looked up yet, so nothing is watched.
    write_at_start(&dir.path().join("file"), &[2; 100]);
    client.push(handle, 4096, &[3; 4096]).await.unwrap();
    assert_eq!(client.settle().await, [(file.id, bytes_from(0))]);
    assert_eq!(client.bytes(handle, 0, 100).await, [2; 100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_tree_is_watched_like_the_whole() {
    let (dir, server) = served();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/file"), "old").unwrap();
    let part = Hello {
        subtree: RelPath::new("a/b").unwrap(),
        ..hello(1)
    };
    let client = server.hello(&server.key, part).await.unwrap();
    let file = client.look_up(&client.root(), "file").await.unwrap();
    let whole = server.client(2).await;
    let a = whole.look_up(&whole.root(), "a").await.unwrap();
    let b = whole.look_up(&node(&a, "a"), "b").await.unwrap();
    assert_eq!(b.id, client.root().id);
    let same = whole.look_up(&node(&b, "a/b"), "file").await.unwrap();
    assert_eq!(same.id, file.id);
    // One change, not one of the size and one of the bytes: each is told.
    write_at_start(&dir.path().join("a/b/file"), b"newer");
    assert_eq!(until(&client, file.id).await, bytes_from(0));
    assert_eq!(until(&whole, file.id).await, bytes_from(0));
    // Through one of them, the other is told once.
    let (handle, _) = client.open(&node(&file, "file"), Access::Write).await;
    let pushing = client.push(handle, 0, b"x");
    let (pushed, taken) = tokio::join!(pushing, until(&whole, file.id));
    assert_eq!(
        (pushed.unwrap().size, taken),
        (5, Stale::Bytes { start: 0, end: 1 })
    );
}
