//! Renames and removals.

use super::*;

fn rename(t: &Fixture, from: &str, to: &str, mode: RenameMode) -> Result<()> {
    t.store.rename(&t.root(), &n(from), &t.root(), &n(to), mode)
}

pub(crate) fn replacing(t: &Fixture) {
    let root = t.root();
    let a = t.file(&root, "a", b"a");
    t.file(&root, "b", b"b");
    rename(t, "a", "c", RenameMode::Replace).unwrap();
    assert_eq!(t.found(&root, "a").err(), Some(Errno::NOENT));
    rename(t, "c", "b", RenameMode::Replace).unwrap();
    assert_eq!(t.found(&root, "c").err(), Some(Errno::NOENT));
    assert_eq!(t.node(&root, "b").id, a.id);
    assert_eq!(t.content(&t.node(&root, "b")), b"a");
    rename(t, "b", "b", RenameMode::Replace).unwrap();
    assert_eq!(t.node(&root, "b").id, a.id);
    assert_eq!(t.entries(&root, 10).len(), 1);
}

pub(crate) fn between_directories(t: &Fixture) {
    let root = t.root();
    let (one, two) = (t.dir(&root, "one"), t.dir(&root, "two"));
    let file = t.file(&one, "file", b"content");
    let below = t.dir(&one, "below");
    let inner = t.file(&below, "inner", b"inner");
    let replace = RenameMode::Replace;
    let moves = [("file", "moved"), ("below", "below")];
    for (from, to) in moves {
        t.store
            .rename(&one, &n(from), &two, &n(to), replace)
            .unwrap();
    }
    assert!(t.entries(&one, 10).is_empty());
    assert_eq!(t.node(&two, "moved").id, file.id);
    let below = t.node(&two, "below");
    assert_eq!(t.node(&below, "inner").id, inner.id);
    assert_eq!(t.content(&t.node(&below, "inner")), b"inner");
}

pub(crate) fn directories(t: &Fixture) {
    let root = t.root();
    let full = t.dir(&root, "full");
    t.file(&full, "file", b"");
    let below = t.dir(&full, "below");
    let empty = t.dir(&root, "empty");
    t.file(&root, "file", b"");

    let replace = RenameMode::Replace;
    assert_eq!(rename(t, "empty", "full", replace), Err(Errno::NOTEMPTY));
    assert_eq!(rename(t, "empty", "file", replace), Err(Errno::NOTDIR));
    assert_eq!(rename(t, "file", "empty", replace), Err(Errno::ISDIR));
    let into_itself = |to: &Node| t.store.rename(&root, &n("full"), to, &n("x"), replace);
    assert_eq!(into_itself(&full), Err(Errno::INVAL));
    assert_eq!(into_itself(&below), Err(Errno::INVAL));
    rename(t, "full", "empty", replace).unwrap();
    assert_eq!(t.node(&root, "empty").id, full.id);
    assert_eq!(t.found(&root, "full").err(), Some(Errno::NOENT));
    t.assert_stale(&empty);
}

pub(crate) fn not_replacing(t: &Fixture) {
    let root = t.root();
    let a = t.file(&root, "a", b"a");
    t.file(&root, "b", b"b");
    let mode = RenameMode::NoReplace;
    assert_eq!(rename(t, "a", "b", mode), Err(Errno::EXIST));
    assert_eq!(t.content(&t.node(&root, "a")), b"a");
    assert_eq!(t.content(&t.node(&root, "b")), b"b");
    rename(t, "a", "c", mode).unwrap();
    assert_eq!(t.node(&root, "c").id, a.id);
}

pub(crate) fn exchanging(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file", b"content");
    let dir = t.dir(&root, "dir");
    let inner = t.file(&dir, "inner", b"inner");
    let mode = RenameMode::Exchange;
    rename(t, "file", "dir", mode).unwrap();
    assert_eq!(t.node(&root, "dir").id, file.id);
    assert_eq!(t.node(&root, "file").id, dir.id);
    assert_eq!(t.node(&t.node(&root, "file"), "inner").id, inner.id);
    assert_eq!(rename(t, "file", "nothing", mode), Err(Errno::NOENT));
}

pub(crate) fn of_nothing(t: &Fixture) {
    t.file(&t.root(), "a", b"");
    let modes = [
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ];
    for mode in modes {
        assert_eq!(rename(t, "nothing", "b", mode), Err(Errno::NOENT));
        assert!(rename(t, "nothing", "a", mode).is_err());
    }
    assert_eq!(t.entries(&t.root(), 10).len(), 1);
}

pub(crate) fn of_two_names_of_one_file(t: &Fixture) {
    needs!(t, hard_links);
    let root = t.root();
    let file = t.file(&root, "a", b"content");
    t.store.link(&file, &root, &n("b")).unwrap();
    rename(t, "a", "b", RenameMode::Replace).unwrap();
    assert_eq!(t.node(&root, "a").id, file.id, "POSIX: nothing happens");
    assert_eq!(t.node(&root, "b").id, file.id);
}

pub(crate) fn removals(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    t.file(&dir, "file", b"");
    let remove = |dir: &Node, name: &str, directory| t.store.remove(dir, &n(name), directory);
    assert_eq!(remove(&root, "dir", false), Err(Errno::ISDIR));
    assert_eq!(remove(&root, "dir", true), Err(Errno::NOTEMPTY));
    assert_eq!(remove(&dir, "file", true), Err(Errno::NOTDIR));
    remove(&dir, "file", false).unwrap();
    t.store.sync_dir(&dir).unwrap();
    remove(&root, "dir", true).unwrap();
    t.store.sync_dir(&root).unwrap();
    assert!(t.entries(&root, 10).is_empty());
}
