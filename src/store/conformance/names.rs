//! Names, and where they lead.

use super::*;

pub(crate) fn nothing_is_there(t: &Fixture) {
    let root = t.root();
    assert_eq!(t.store.root().unwrap().kind, Kind::Directory);
    assert_eq!(t.store.attr(&root).unwrap().id, root.id);
    assert_eq!(t.store.lookup(&root, &n("a")).err(), Some(Errno::NOENT));
    for directory in [false, true] {
        let removed = t.store.remove(&root, &n("a"), directory);
        assert_eq!(removed, Err(Errno::NOENT));
    }
    assert_eq!(t.store.read_dir(&root, 0, 10), Ok(Vec::new()));
}

pub(crate) fn what_is_taken(t: &Fixture) {
    let root = t.root();
    t.file(&root, "file", b"content");
    t.dir(&root, "dir");
    let makes = [Make::File, Make::Directory, Make::Symlink(b"x".to_vec())];
    for name in ["file", "dir"] {
        for make in &makes {
            let made = t.store.make(&root, &n(name), make, 0o700, by());
            assert_eq!(made.err(), Some(Errno::EXIST), "{name} {make:?}");
        }
        let created = t.store.create(&root, &n(name), 0o600, true, by());
        assert_eq!(created.err(), Some(Errno::EXIST));
    }
    let created = t.store.create(&root, &n("dir"), 0o600, false, by());
    assert_eq!(created.err(), Some(Errno::EXIST));

    let (attr, file) = t
        .store
        .create(&root, &n("file"), 0o600, false, by())
        .unwrap();
    assert_eq!((attr.mode, attr.size), (0o644, 7), "opened as it is");
    assert_eq!(content(&*file), b"content");
}

pub(crate) fn names_are_bytes(t: &Fixture) {
    let root = t.root();
    let names = [
        b"\xff\xfe\x80".to_vec(),
        b" ".to_vec(),
        b"a\nb".to_vec(),
        b"...".to_vec(),
        b"\\".to_vec(),
        vec![b'x'; 255],
    ];
    for name in &names {
        let name = Name::new(name.clone()).unwrap();
        let made = t
            .store
            .make(&root, &name, &Make::File, 0o600, by())
            .unwrap();
        assert_eq!(t.store.lookup(&root, &name).unwrap().id, made.id);
    }
    let mut listed: Vec<_> = t.entries(&root, 10).into_iter().map(|e| e.name).collect();
    listed.sort();
    let mut names = names.map(|name| Name::new(name).unwrap()).to_vec();
    names.sort();
    assert_eq!(listed, names);
}

pub(crate) fn only_directories_have_entries(t: &Fixture) {
    let file = t.file(&t.root(), "file", b"");
    let not_a_directory = Some(Errno::NOTDIR);
    assert_eq!(t.store.lookup(&file, &n("a")).err(), not_a_directory);
    let made = t.store.make(&file, &n("a"), &Make::File, 0o600, by());
    assert_eq!(made.err(), not_a_directory);
    let created = t.store.create(&file, &n("a"), 0o600, false, by());
    assert_eq!(created.err(), not_a_directory);
    assert_eq!(t.store.remove(&file, &n("a"), false).err(), not_a_directory);
    assert_eq!(t.store.read_dir(&file, 0, 10).err(), not_a_directory);
}

pub(crate) fn deep_paths(t: &Fixture) {
    let mut dir = t.root();
    for depth in 0..40 {
        dir = t.dir(&dir, &format!("{depth:0>60}"));
    }
    let file = t.file(&dir, "file", b"deep");
    assert_eq!(t.content(&file), b"deep");
}

pub(crate) fn subtrees_are_confined(t: &Fixture) {
    let root = t.root();
    let outside = t.file(&root, "outside", b"outside");
    let dir = t.dir(&root, "dir");
    let inner = t.dir(&dir, "inner");
    let path = RelPath::new("dir/inner").unwrap();
    let sub = t.store.subtree(&path).unwrap();
    assert_eq!(sub.root().unwrap().id, inner.id);
    assert_eq!(sub.capabilities(), t.store.capabilities());

    let sub_root = Node {
        id: inner.id,
        path: RelPath::root(),
    };
    let made = sub.make(&sub_root, &n("new"), &Make::File, 0o600, by());
    assert_eq!(t.node(&inner, "new").id, made.unwrap().id);
    let listed = sub.read_dir(&sub_root, 0, 10).unwrap();
    assert_eq!(listed.len(), 1);
    for node in [&root, &dir, &inner, &outside] {
        assert_eq!(sub.attr(node).err(), Some(Errno::STALE), "{node:?}");
    }
    let whole = t.store.subtree(&RelPath::root()).unwrap();
    assert_eq!(whole.root().unwrap().id, root.id);
}

pub(crate) fn subtrees_of_what_is_none(t: &Fixture) {
    t.file(&t.root(), "file", b"");
    let subtree = |path: &str| t.store.subtree(&RelPath::new(path).unwrap()).err();
    assert_eq!(subtree("nothing"), Some(Errno::NOENT));
    assert_eq!(subtree("file"), Some(Errno::NOTDIR));
    assert_eq!(subtree("file/below"), Some(Errno::NOTDIR));
    if t.store.capabilities().symlinks {
        t.make(&t.root(), "link", Make::Symlink(b".".to_vec()));
        let through = subtree("link");
        assert!(
            matches!(through, Some(Errno::NOTDIR | Errno::LOOP)),
            "{through:?}"
        );
    }
}
