//! Attributes: what they are at first, and after they were set.

use super::*;

fn set(t: &Fixture, node: &Node, set: SetAttr) -> Attr {
    let attr = t.store.set_attr(node, &set).unwrap();
    assert_eq!(
        t.store.attr(node).unwrap(),
        attr,
        "the new ones are returned"
    );
    attr
}

fn at(secs: i64, nanos: u32) -> Option<SetTime> {
    Some(SetTime::At(Time { secs, nanos }))
}

pub(crate) fn of_what_is_new(t: &Fixture) {
    let root = t.root();
    for make in [Make::File, Make::Directory] {
        let name = format!("{make:?}");
        let node = t.make(&root, &name, make.clone());
        let attr = t.store.attr(&node).unwrap();
        assert_eq!(attr.id, node.id);
        assert_eq!(attr.kind, kind(&make));
        assert_eq!(attr.mode, 0o755);
        assert_eq!((attr.uid, attr.gid), (by().uid, by().gid));
        assert!(attr.blksize > 0);
        if make == Make::File {
            assert_eq!((attr.size, attr.blocks, attr.nlink), (0, 0, 1));
        }
        assert_eq!(t.store.lookup(&root, &n(&name)).unwrap(), attr);
    }
}

pub(crate) fn modes_are_exact(t: &Fixture) {
    let root = t.root();
    let modes = [
        0, 0o777, 0o666, 0o400, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777,
    ];
    for mode in modes {
        for make in [Make::File, Make::Directory] {
            let name = format!("{make:?} {mode:o}");
            let made = t.store.make(&root, &n(&name), &make, mode, by()).unwrap();
            assert_eq!(made.mode, mode, "{name}");
        }
        let name = format!("created {mode:o}");
        let (attr, file) = t.store.create(&root, &n(&name), mode, true, by()).unwrap();
        assert_eq!(attr.mode, mode, "{name}");
        file.write_at(b"open, whatever the mode", 0).unwrap();
    }
    let file = t.file(&root, "file", b"");
    let dir = t.dir(&root, "dir");
    for node in [&file, &dir] {
        for mode in modes {
            let mode = Some(mode);
            let all = SetAttr {
                mode,
                ..SetAttr::default()
            };
            assert_eq!(set(t, node, all).mode, all.mode.unwrap());
        }
    }
}

pub(crate) fn times(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file", b"");
    let dir = t.dir(&root, "dir");
    for node in [&file, &dir] {
        for (secs, nanos) in [
            (1, 999_999_999),
            (-1, 5),
            (-86_400 * 365, 123_456_789),
            (0, 0),
            (4_102_444_800, 1),
        ] {
            let attr = set(
                t,
                node,
                SetAttr {
                    atime: at(secs + 1, nanos),
                    mtime: at(secs, nanos),
                    ..SetAttr::default()
                },
            );
            let expected = |secs| Time { secs, nanos };
            assert_eq!(attr.atime, expected(secs + 1));
            assert_eq!(attr.mtime, expected(secs));
        }
    }
    let only_atime = SetAttr {
        atime: at(7, 7),
        ..SetAttr::default()
    };
    let before = t.store.attr(&file).unwrap();
    let after = set(t, &file, only_atime);
    assert_eq!(after.atime, Time { secs: 7, nanos: 7 });
    assert_eq!(after.mtime, before.mtime);
    let only_mtime = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let after = set(t, &file, only_mtime);
    assert_eq!(after.atime, Time { secs: 7, nanos: 7 });
    assert!(after.mtime >= before.ctime, "{after:?} {before:?}");
}

pub(crate) fn times_that_are_none(t: &Fixture) {
    let file = t.file(&t.root(), "file", b"");
    let before = t.store.attr(&file).unwrap();
    // The last two have a meaning of their own in utimensat(2).
    for nanos in [1_000_000_000, u32::MAX, (1 << 30) - 1, (1 << 30) - 2] {
        let set = SetAttr {
            mtime: at(0, nanos),
            ..SetAttr::default()
        };
        let error = t.store.set_attr(&file, &set).err();
        assert_eq!(error, Some(Errno::INVAL), "{nanos}");
    }
    assert_eq!(t.store.attr(&file).unwrap(), before);
}

pub(crate) fn changes_leave_times(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file", b"content");
    let age = |node: &Node| {
        set(
            t,
            node,
            SetAttr {
                mtime: at(1000, 0),
                ..SetAttr::default()
            },
        )
    };
    let is_old = |node: &Node| t.store.attr(node).unwrap().mtime.secs == 1000;

    age(&file);
    t.open(&file).write_at(b"C", 0).unwrap();
    assert!(!is_old(&file), "a write");
    age(&file);
    t.open(&file).zero_at(0, 3).unwrap();
    assert!(!is_old(&file), "zeroes");
    age(&file);
    let before = t.store.attr(&file).unwrap();
    let size = Some(3);
    let after = set(
        t,
        &file,
        SetAttr {
            size,
            ..SetAttr::default()
        },
    );
    assert!(!is_old(&file), "truncation");
    assert!(after.ctime >= before.ctime);
    age(&file);
    t.content(&file);
    assert!(is_old(&file), "reading");

    age(&dir);
    let new = t.file(&dir, "new", b"");
    assert!(!is_old(&dir), "a new entry");
    age(&dir);
    t.open(&new).write_at(b"content", 0).unwrap();
    assert!(is_old(&dir), "content of an entry");
    let replace = RenameMode::Replace;
    t.store
        .rename(&dir, &n("new"), &dir, &n("renamed"), replace)
        .unwrap();
    assert!(!is_old(&dir), "a rename");
    age(&dir);
    t.store.remove(&dir, &n("renamed"), false).unwrap();
    assert!(!is_old(&dir), "a removal");
}

pub(crate) fn sizes(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file", b"content");
    let to = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(set(t, &file, to(3)).size, 3);
    assert_eq!(t.content(&file), b"con");
    assert_eq!(set(t, &file, to(6)).size, 6);
    assert_eq!(t.content(&file), b"con\0\0\0");
    let handle = t.open(&file);
    assert_eq!(handle.set_attr(&to(1)).unwrap().size, 1);
    assert_eq!(t.content(&file), b"c");
    assert_eq!(set(t, &file, to(0)).size, 0);

    let dir = t.dir(&root, "dir");
    assert_eq!(t.store.set_attr(&dir, &to(0)).err(), Some(Errno::ISDIR));
    for size in [1 << 63, u64::MAX] {
        let error = t.store.set_attr(&file, &to(size)).err();
        assert!(
            matches!(error, Some(Errno::INVAL | Errno::FBIG)),
            "{error:?}"
        );
    }
}

pub(crate) fn all_at_once(t: &Fixture) {
    let file = t.file(&t.root(), "file", b"content");
    let Caller { uid, gid } = by();
    let attr = set(
        t,
        &file,
        SetAttr {
            mode: Some(0o6755),
            uid: Some(uid),
            gid: Some(gid),
            size: Some(2),
            atime: at(1, 2),
            mtime: at(3, 4),
        },
    );
    assert_eq!((attr.mode, attr.size), (0o6755, 2));
    assert_eq!(attr.atime, Time { secs: 1, nanos: 2 });
    assert_eq!(attr.mtime, Time { secs: 3, nanos: 4 });
    let nothing = set(t, &file, SetAttr::default());
    assert_eq!(nothing, attr);
}

/// Neither the user nor the group of whoever runs the tests.
const OTHER: Caller = Caller {
    uid: 12_345,
    gid: 54_321,
};

fn owned(uid: u32, gid: u32) -> SetAttr {
    SetAttr {
        uid: Some(uid),
        gid: Some(gid),
        ..SetAttr::default()
    }
}

pub(crate) fn owners(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file", b"");
    let Caller { uid, gid } = by();
    let same = set(t, &file, owned(uid, gid));
    assert_eq!((same.uid, same.gid), (uid, gid));
    if !t.store.capabilities().owners {
        for (uid, gid) in [(OTHER.uid, gid), (uid, OTHER.gid)] {
            let error = t.store.set_attr(&file, &owned(uid, gid)).err();
            assert_eq!(error, Some(Errno::PERM));
        }
        let made = t.store.make(&root, &n("x"), &Make::File, 0o600, OTHER);
        assert_eq!(made.unwrap().uid, uid);
        return;
    }
    let attr = set(t, &file, owned(OTHER.uid, OTHER.gid));
    assert_eq!((attr.uid, attr.gid), (OTHER.uid, OTHER.gid));
    let only_group = SetAttr {
        gid: Some(7),
        ..SetAttr::default()
    };
    let attr = set(t, &file, only_group);
    assert_eq!((attr.uid, attr.gid), (OTHER.uid, 7));
}

pub(crate) fn owners_of_what_is_new(t: &Fixture) {
    needs!(t, owners);
    let root = t.root();
    let capabilities = t.store.capabilities();
    let mut makes = vec![Make::File, Make::Directory];
    if capabilities.symlinks {
        makes.push(Make::Symlink(b"target".to_vec()));
    }
    if capabilities.special_files {
        makes.extend([Make::Fifo, Make::Socket]);
    }
    for make in &makes {
        let name = n(&format!("{make:?}"));
        let attr = t.store.make(&root, &name, make, 0o4751, OTHER).unwrap();
        assert_eq!((attr.uid, attr.gid), (OTHER.uid, OTHER.gid), "{make:?}");
        if kind(make) != Kind::Symlink {
            assert_eq!(attr.mode, 0o4751, "{make:?}");
        }
        assert_eq!(t.store.lookup(&root, &name).unwrap(), attr);
    }
    let created = t.store.create(&root, &n("created"), 0o640, true, OTHER);
    let attr = created.unwrap().0;
    assert_eq!((attr.uid, attr.gid), (OTHER.uid, OTHER.gid));
    assert_eq!(attr.mode, 0o640);
    let again = t.store.create(&root, &n("created"), 0o600, false, by());
    assert_eq!(again.unwrap().0.uid, OTHER.uid, "opened as it is");
}

pub(crate) fn groups_are_inherited(t: &Fixture) {
    needs!(t, owners);
    let dir = t.dir(&t.root(), "dir");
    set(t, &dir, owned(1, 4711));
    let mode = Some(0o2777);
    let inherit = SetAttr {
        mode,
        ..SetAttr::default()
    };
    assert_eq!(set(t, &dir, inherit).mode, 0o2777);
    let make = |name: &str, make| t.store.make(&dir, &n(name), &make, 0o750, OTHER).unwrap();
    let file = make("file", Make::File);
    assert_eq!((file.uid, file.gid, file.mode), (OTHER.uid, 4711, 0o750));
    let below = make("below", Make::Directory);
    assert_eq!(
        (below.uid, below.gid, below.mode),
        (OTHER.uid, 4711, 0o2750)
    );
    let created = t.store.create(&dir, &n("created"), 0o640, true, OTHER);
    let created = created.unwrap().0;
    assert_eq!((created.gid, created.mode), (4711, 0o640));
}

pub(crate) fn of_the_file_system(t: &Fixture) {
    let stat = t.store.stat_fs().unwrap();
    assert!(stat.block_bytes > 0 && stat.name_bytes_max > 0, "{stat:?}");
    assert!(stat.blocks >= stat.blocks_free, "{stat:?}");
    assert!(stat.blocks_free >= stat.blocks_available, "{stat:?}");
    assert!(stat.files >= stat.files_free, "{stat:?}");
}
