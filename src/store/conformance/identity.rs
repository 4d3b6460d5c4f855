//! A node is found where it is, or not at all: never another one.

use super::*;
use std::collections::HashSet;

/// Asked for where it no longer is, a node is found elsewhere or is stale.
fn assert_same_or_stale(t: &Fixture, node: &Node) {
    match t.store.attr(node) {
        Ok(attr) => assert_eq!(attr.id, node.id),
        Err(error) => assert_eq!(error, Errno::STALE),
    }
}

pub(crate) fn removed_is_stale(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file", b"content");
    let dir = t.dir(&root, "dir");
    let below = t.dir(&dir, "below");
    t.store.remove(&root, &n("file"), false).unwrap();
    t.store.remove(&dir, &n("below"), true).unwrap();
    t.store.remove(&root, &n("dir"), true).unwrap();
    for node in [&file, &dir, &below] {
        t.assert_stale(node);
    }
}

pub(crate) fn replaced_is_stale(t: &Fixture) {
    let root = t.root();
    let makes = || [Make::File, Make::Directory, Make::File, Make::Directory];
    let mut former: Option<(Node, bool)> = None;
    for make in makes() {
        let directory = make == Make::Directory;
        if let Some((_, directory)) = former {
            t.store.remove(&root, &n("a"), directory).unwrap();
        }
        let node = t.make(&root, "a", make);
        if let Some((former, _)) = former {
            assert_ne!(former.id, node.id);
            t.assert_stale(&former);
        }
        assert_eq!(t.store.attr(&node).unwrap().id, node.id);
        former = Some((node, directory));
    }
    let other = t.file(&root, "other", b"other");
    let file = t.file(&root, "file", b"file");
    let replace = RenameMode::Replace;
    let (from, to) = (n("other"), n("file"));
    t.store.rename(&root, &from, &root, &to, replace).unwrap();
    t.assert_stale(&file);
    assert_same_or_stale(t, &other);
    assert_eq!(t.node(&root, "file").id, other.id);
    assert_eq!(t.content(&t.node(&root, "file")), b"other");
}

pub(crate) fn ids_are_not_used_again(t: &Fixture) {
    let root = t.root();
    let mut seen = HashSet::new();
    for round in 0..300 {
        let make = match round % 2 {
            0 => Make::File,
            _ => Make::Directory,
        };
        let node = t.make(&root, "a", make.clone());
        assert!(seen.insert(node.id), "round {round}: {:?}", node.id);
        let directory = make == Make::Directory;
        t.store.remove(&root, &n("a"), directory).unwrap();
    }
}

pub(crate) fn ids_last(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file", b"content");
    let set = SetAttr {
        mode: Some(0o600),
        size: Some(3),
        ..SetAttr::default()
    };
    assert_eq!(t.store.set_attr(&file, &set).unwrap().id, file.id);
    let opened = t.open(&file);
    assert_eq!(opened.attr().unwrap().id, file.id);
    assert_eq!(opened.set_attr(&set).unwrap().id, file.id);

    let (from, to) = (n("dir"), n("moved"));
    let replace = RenameMode::Replace;
    t.store.rename(&root, &from, &root, &to, replace).unwrap();
    let moved = t.node(&root, "moved");
    assert_eq!(moved.id, dir.id);
    assert_eq!(t.node(&moved, "file").id, file.id);
    assert_eq!(opened.attr().unwrap().id, file.id);
    assert_same_or_stale(t, &dir);
    assert_same_or_stale(t, &file);

    // Another tree of the same names takes the old one's place.
    let new_dir = t.dir(&root, "dir");
    let new_file = t.file(&new_dir, "file", b"new");
    assert_same_or_stale(t, &dir);
    assert_same_or_stale(t, &file);
    assert_eq!(t.content(&new_file), b"new");
}

pub(crate) fn open_files_outlive_their_names(t: &Fixture) {
    let root = t.root();
    let node = t.file(&root, "a", b"first");
    let file = t.open(&node);
    t.store.remove(&root, &n("a"), false).unwrap();
    let second = t.file(&root, "a", b"second");
    file.write_at(b"F", 0).unwrap();
    assert_eq!(content(&*file), b"First");
    assert_eq!(file.attr().unwrap().nlink, 0);
    let set = SetAttr {
        size: Some(2),
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let attr = file.set_attr(&set).unwrap();
    assert_eq!((attr.size, attr.mode, attr.id), (2, 0o600, node.id));
    assert_eq!(content(&*file), b"Fi");
    file.sync(false).unwrap();
    t.assert_stale(&node);
    assert_eq!(t.content(&second), b"second");
}

pub(crate) fn open_files_outlive_being_replaced(t: &Fixture) {
    let root = t.root();
    let first = t.open(&t.file(&root, "a", b"first"));
    t.file(&root, "b", b"second");
    let (from, to) = (n("b"), n("a"));
    let replace = RenameMode::Replace;
    t.store.rename(&root, &from, &root, &to, replace).unwrap();
    first.write_at(b"F", 0).unwrap();
    assert_eq!(content(&*first), b"First");
    assert_eq!(t.content(&t.node(&root, "a")), b"second");
}
