//! Hard links, symbolic links, and nodes that are neither files nor directories.

use super::*;

pub(crate) fn hard_links(t: &Fixture) {
    needs!(t, hard_links);
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let first = t.file(&root, "first", b"content");
    let linked = t.store.link(&first, &dir, &n("second")).unwrap();
    assert_eq!((linked.id, linked.nlink), (first.id, 2));
    let second = t.node(&dir, "second");
    assert_eq!(second.id, first.id);
    t.open(&second).write_at(b"C", 0).unwrap();
    assert_eq!(t.content(&first), b"Content");
    assert_eq!(t.store.attr(&first).unwrap().nlink, 2);

    t.store.remove(&root, &n("first"), false).unwrap();
    let attr = t.store.attr(&second).unwrap();
    assert_eq!((attr.id, attr.nlink), (first.id, 1));
    assert_eq!(t.content(&second), b"Content");
    match t.store.attr(&first) {
        Ok(attr) => assert_eq!(attr.id, first.id, "found under its other name"),
        Err(error) => assert_eq!(error, Errno::STALE),
    }
}

pub(crate) fn hard_links_that_cannot_be(t: &Fixture) {
    needs!(t, hard_links);
    let root = t.root();
    let file = t.file(&root, "file", b"");
    let dir = t.dir(&root, "dir");
    t.file(&root, "taken", b"taken");
    let link = |node: &Node, dir: &Node, name: &str| t.store.link(node, dir, &n(name)).err();
    assert_eq!(link(&file, &root, "taken"), Some(Errno::EXIST));
    assert_eq!(link(&file, &root, "file"), Some(Errno::EXIST));
    assert_eq!(link(&dir, &root, "link"), Some(Errno::PERM));
    assert_eq!(link(&file, &file, "link"), Some(Errno::NOTDIR));
    assert_eq!(t.store.attr(&file).unwrap().nlink, 1);
    t.store.remove(&root, &n("file"), false).unwrap();
    assert_eq!(link(&file, &root, "link"), Some(Errno::STALE));
}

pub(crate) fn symbolic_links(t: &Fixture) {
    needs!(t, symlinks);
    let root = t.root();
    let contents = [
        b"nothing".to_vec(),
        b"../../../../etc/passwd".to_vec(),
        b"/etc/passwd".to_vec(),
        b".".to_vec(),
        b"\xff\xfe //".to_vec(),
        vec![b'x'; 4095],
    ];
    for (i, content) in contents.into_iter().enumerate() {
        let link = t.make(&root, &i.to_string(), Make::Symlink(content.clone()));
        assert_eq!(t.store.read_link(&link), Ok(content.clone()));
        let attr = t.store.attr(&link).unwrap();
        assert_eq!(attr.kind, Kind::Symlink);
        assert_eq!(attr.size, content.len() as u64);
    }
    for node in [t.file(&root, "file", b""), t.dir(&root, "dir")] {
        assert_eq!(t.store.read_link(&node).err(), Some(Errno::INVAL));
    }
}

pub(crate) fn symbolic_links_are_not_followed(t: &Fixture) {
    needs!(t, symlinks);
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file", b"content");
    let link = t.make(&root, "link", Make::Symlink(b"dir".to_vec()));
    let to_file = t.make(&root, "to file", Make::Symlink(b"dir/file".to_vec()));

    let not_a_directory = Some(Errno::NOTDIR);
    assert_eq!(t.store.lookup(&link, &n("file")).err(), not_a_directory);
    assert_eq!(t.store.read_dir(&link, 0, 10).err(), not_a_directory);
    let made = t.store.make(&link, &n("x"), &Make::File, 0o600, by());
    assert_eq!(made.err(), not_a_directory);
    let read = t.store.open(&to_file, Access::Read).err();
    assert_eq!(read, Some(Errno::INVAL));
    let times = SetAttr {
        mtime: Some(SetTime::At(Time { secs: 1, nanos: 2 })),
        ..SetAttr::default()
    };
    let attr = t.store.set_attr(&to_file, &times).unwrap();
    assert_eq!((attr.id, attr.mtime.nanos), (to_file.id, 2));
    assert_ne!(t.store.attr(&file).unwrap().mtime, attr.mtime);
    t.store.remove(&root, &n("to file"), false).unwrap();
    assert_eq!(t.content(&file), b"content");
}

pub(crate) fn pipes_and_sockets(t: &Fixture) {
    needs!(t, special_files);
    let root = t.root();
    for make in [Make::Fifo, Make::Socket] {
        let name = n(&format!("{make:?}"));
        let attr = t.store.make(&root, &name, &make, 0o640, by()).unwrap();
        assert_eq!((attr.kind, attr.mode, attr.size), (kind(&make), 0o640, 0));
        assert_eq!(t.store.lookup(&root, &name).unwrap().id, attr.id);
        t.store.remove(&root, &name, false).unwrap();
    }
}

pub(crate) fn devices(t: &Fixture) {
    needs!(t, special_files);
    let root = t.root();
    // /dev/null, and a number that needs all of its bits.
    for device in [
        rustix::fs::makedev(1, 3),
        rustix::fs::makedev(0xabc, 0x12345),
    ] {
        for make in [Make::CharDevice(device), Make::BlockDevice(device)] {
            let name = n(&format!("{make:?}"));
            match t.store.make(&root, &name, &make, 0o600, by()) {
                Ok(attr) => assert_eq!((attr.kind, attr.rdev), (kind(&make), device)),
                Err(error) => {
                    assert_eq!(error, Errno::PERM);
                    println!("skipped: {} makes no devices", t.store.describe());
                    return;
                }
            }
            let node = t.node(&root, &format!("{make:?}"));
            let opened = t.store.open(&node, Access::Read).err();
            assert_eq!(opened, Some(Errno::INVAL));
        }
    }
}
