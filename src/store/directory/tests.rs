//! What only a directory of this machine has to do. Other file systems, ordinary users and
//! attackers are in files of their own.

mod beneath;
mod other_systems;
mod users;
mod watching;

use super::*;
use crate::store::conformance::{self, Fixture, by, content, n};
use crate::wire::{SetTime, Time};
use std::fs;
use std::path::PathBuf;

conformance::suite!(fixture);

fn fixture() -> Fixture {
    fixture_in(tempfile::tempdir().unwrap())
}

fn fixture_in(dir: tempfile::TempDir) -> Fixture {
    Fixture::keeping(Directory::open(dir.path()).unwrap(), dir)
}

/// A fixture, and where its tree is.
fn here() -> (Fixture, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    (fixture_in(dir), path)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_cannot_be_served_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let nothing = dir.path().join("nothing");
    for (path, kind) in [
        (&file, io::ErrorKind::NotADirectory),
        (&nothing, io::ErrorKind::NotFound),
    ] {
        let error = Directory::open(path).err().unwrap();
        assert_eq!(error.kind(), kind);
        let text = error.to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}

#[test]
fn the_root_may_be_reached_through_a_link() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    std::os::unix::fs::symlink("tree", dir.path().join("link")).unwrap();
    let store = Directory::open(&dir.path().join("link")).unwrap();
    assert_eq!(store.root().unwrap().kind, Kind::Directory);
}

#[test]
fn a_root_that_was_removed_is_stale() {
    let (t, path) = here();
    let root = t.root();
    fs::remove_dir(&path).unwrap();
    assert_eq!(t.store.root().err(), Some(Errno::STALE));
    t.assert_stale(&root);
    fs::create_dir(&path).unwrap();
    assert_eq!(t.store.root().err(), Some(Errno::STALE), "another one");
}

#[test]
fn what_this_store_renames_is_found_by_its_old_path() {
    let (t, _) = here();
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let below = t.dir(&dir, "below");
    let file = t.file(&below, "file", b"content");
    let replace = RenameMode::Replace;
    let elsewhere = t.dir(&root, "elsewhere");
    let moves = [
        (&root, "dir", &elsewhere, "moved"),
        (&below, "file", &root, "file"),
    ];
    for (from_dir, from, to_dir, to) in moves {
        t.store
            .rename(from_dir, &n(from), to_dir, &n(to), replace)
            .unwrap();
        for node in [&dir, &below, &file] {
            assert_eq!(t.store.attr(node).unwrap().id, node.id);
        }
    }
    assert_eq!(t.content(&file), b"content");
    t.make(&below, "new", Make::File);
    t.node(&t.node(&t.node(&elsewhere, "moved"), "below"), "new");
}

#[test]
fn a_further_name_is_found_when_the_first_is_gone() {
    let (t, _) = here();
    let root = t.root();
    let first = t.file(&root, "first", b"content");
    t.store.link(&first, &root, &n("second")).unwrap();
    t.node(&root, "first");
    t.store.remove(&root, &n("first"), false).unwrap();
    assert_eq!(t.content(&first), b"content");
}

#[test]
fn what_others_rename_is_found_once_it_was_seen() {
    let (t, path) = here();
    let root = t.root();
    let file = t.file(&root, "a", b"content");
    fs::rename(path.join("a"), path.join("b")).unwrap();
    assert_eq!(t.store.attr(&file).err(), Some(Errno::STALE));
    t.node(&root, "b");
    assert_eq!(t.content(&file), b"content");
}

#[test]
fn attributes_are_those_of_the_file_system() {
    use std::os::unix::fs::MetadataExt;
    let (t, path) = here();
    t.file(&t.root(), "file", &[1; 100_000]);
    let attr = t.store.attr(&t.node(&t.root(), "file")).unwrap();
    let stat = fs::metadata(path.join("file")).unwrap();
    assert_eq!((attr.id.dev, attr.id.ino), (stat.dev(), stat.ino()));
    assert_eq!(u32::from(attr.mode), stat.mode() & 0o7777);
    assert_eq!((attr.uid, attr.gid), (stat.uid(), stat.gid()));
    assert_eq!((attr.size, attr.blocks), (stat.size(), stat.blocks()));
    assert_eq!(u64::from(attr.blksize), stat.blksize());
    let time = |secs, nanos: i64| Time {
        secs,
        nanos: nanos as u32,
    };
    assert_eq!(attr.mtime, time(stat.mtime(), stat.mtime_nsec()));
    assert_eq!(attr.ctime, time(stat.ctime(), stat.ctime_nsec()));
}

#[test]
fn zeroes_in_a_hole_allocate_nothing_but_tell_by_the_time() {
    let (t, _) = here();
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    let set = SetAttr {
        size: Some(1 << 20),
        mtime: Some(SetTime::At(Time { secs: 1, nanos: 0 })),
        ..SetAttr::default()
    };
    file.set_attr(&set).unwrap();
    file.zero_at(0, 1 << 19).unwrap();
    let attr = file.attr().unwrap();
    assert_eq!((attr.size, attr.blocks), (1 << 20, 0));
    assert_ne!(attr.mtime.secs, 1);
}

#[test]
fn what_has_a_meaning_of_its_own_to_the_kernel_is_refused() {
    let (t, _) = here();
    let file = t.file(&t.root(), "file", b"");
    let nobody = SetAttr {
        uid: Some(u32::MAX),
        ..SetAttr::default()
    };
    let set = t.store.set_attr(&file, &nobody);
    assert_eq!(set.err(), Some(Errno::INVAL));
    let by_nobody = Caller {
        uid: 0,
        gid: u32::MAX,
    };
    let made = t
        .store
        .make(&t.root(), &n("x"), &Make::File, 0o600, by_nobody);
    assert_eq!(made.err(), Some(Errno::INVAL));
    let device = Make::CharDevice(1 << 40);
    let made = t.store.make(&t.root(), &n("x"), &device, 0o600, by());
    assert_eq!(made.err(), Some(Errno::INVAL));
    let cursor = t.store.read_dir(&t.root(), u64::MAX, 10);
    assert_eq!(cursor.err(), Some(Errno::INVAL));
}

#[test]
fn symbolic_links_have_attributes_of_their_own() {
    let (t, _) = here();
    let root = t.root();
    t.file(&root, "file", b"");
    let link = t.make(&root, "link", Make::Symlink(b"file".to_vec()));
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let set = t.store.set_attr(&link, &mode);
    assert_eq!(set.err(), Some(Errno::OPNOTSUPP));
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    let set = t.store.set_attr(&link, &size);
    assert_eq!(set.err(), Some(Errno::INVAL));
    let set = |name: &[u8]| t.store.set_xattr(&link, name, b"x", XattrMode::Set);
    assert_eq!(set(b"user.a"), Err(Errno::PERM));
    if is_root() && t.store.capabilities().xattrs {
        set(b"trusted.a").unwrap();
        let value = t.store.get_xattr(&link, b"trusted.a");
        assert_eq!(value, Ok(b"x".to_vec()));
        let of_file = t.store.list_xattr(&t.node(&root, "file")).unwrap();
        assert!(!of_file.starts_with(b"trusted"), "{of_file:?}");
    }
}

#[test]
fn listings_go_on_in_another_process() {
    let (t, path) = here();
    let root = t.root();
    for i in 0..2500 {
        t.make(&root, &format!("entry {i}"), Make::File);
    }
    let mut names = Vec::new();
    let mut cursor = 0;
    loop {
        let store = Directory::open(&path).unwrap();
        let entries = store.read_dir(&root, cursor, 400).unwrap();
        let Some(last) = entries.last() else { break };
        cursor = last.cursor;
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
    assert_eq!(names.len(), 2500);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2500);
}

#[test]
fn descriptors_are_given_back() {
    let (t, _) = here();
    let root = t.root();
    for i in 0..200 {
        t.make(&root, &i.to_string(), Make::File);
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..1000 {
        // Never to its end.
        t.store.read_dir(&root, 0, 10).unwrap();
    }
    // Other tests run beside this one, so that the bound is not sharp.
    assert!(open() < before + 500);
}
