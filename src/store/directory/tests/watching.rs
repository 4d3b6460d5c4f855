//! What others do is noticed. Nothing here waits for a time: a notice that is missing is waited
//! for until the test is stopped, and one too many is told by what comes after it.

use super::*;
use crate::wire::FileId;
use parking_lot::Mutex;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::{Receiver, channel};

/// Notices of a tree whose root is observed, and where it is.
fn watched() -> (Fixture, PathBuf, Receiver<Noticed>) {
    let (t, path) = here();
    let (send, notices) = channel();
    let sink = move |noticed| drop(send.send(noticed));
    t.store.watch(Box::new(sink)).unwrap();
    t.store.observe(&t.root());
    (t, path, notices)
}

/// Waits for a notice that a node has changed, to attributes like these.
fn changed(notices: &Receiver<Noticed>, id: FileId, like: impl Fn(&Attr) -> bool) {
    let is_it = |noticed| matches!(noticed, Noticed::Changed(attr) if attr.id == id && like(&attr));
    assert!(notices.iter().any(is_it));
}

/// Waits for a notice of a directory's entries.
fn entries(notices: &Receiver<Noticed>, id: FileId) {
    let is_it = |noticed| matches!(noticed, Noticed::Entries(attr) if attr.id == id);
    assert!(notices.iter().any(is_it));
}

#[test]
fn content_and_attributes() {
    let (t, path, notices) = watched();
    let node = t.file(&t.root(), "file", b"");
    let file = path.join("file");
    fs::write(&file, "content").unwrap();
    changed(&notices, node.id, |attr| attr.size == 7);
    let mut append = fs::OpenOptions::new().append(true).open(&file).unwrap();
    append.write_all(b" and more").unwrap();
    changed(&notices, node.id, |attr| attr.size == 16);
    append.set_len(5).unwrap();
    changed(&notices, node.id, |attr| attr.size == 5);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
    changed(&notices, node.id, |attr| attr.mode == 0o751);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
    changed(&notices, t.root().id, |attr| attr.mode == 0o751);
}

#[test]
fn entries_that_come_and_go() {
    let (t, path, notices) = watched();
    let root = t.root();
    fs::write(path.join("a"), "content").unwrap();
    entries(&notices, root.id);
    let a = t.node(&root, "a");
    fs::hard_link(path.join("a"), path.join("b")).unwrap();
    changed(&notices, a.id, |attr| attr.nlink == 2);
    fs::remove_file(path.join("b")).unwrap();
    entries(&notices, root.id);
    fs::rename(path.join("a"), path.join("c")).unwrap();
    // Its new place is noticed.
    assert!(notices.iter().any(|_| t.store.attr(&a).is_ok()));
    assert_eq!(t.content(&a), b"content");
    fs::create_dir(path.join("dir")).unwrap();
    entries(&notices, root.id);
    fs::rename(path.join("c"), path.join("dir/c")).unwrap();
    entries(&notices, root.id);
    fs::remove_file(path.join("dir/c")).unwrap();
    fs::remove_dir(path.join("dir")).unwrap();
    entries(&notices, root.id);
}

#[test]
fn only_what_is_observed() {
    let (t, path, notices) = watched();
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file", b"");
    let marker = t.file(&root, "marker", b"");
    let write = |name: &str, content: &str| fs::write(path.join(name), content).unwrap();
    let until_marked = |content: &str| {
        write("marker", content);
        let size = content.len() as u64;
        let mut of_file = 0;
        for noticed in notices.iter() {
            match noticed {
                Noticed::Changed(attr) if attr.id == file.id => of_file += 1,
                Noticed::Changed(attr) if attr.id == marker.id && attr.size == size => break,
                _ => {}
            }
        }
        of_file
    };
    write("dir/file", "1");
    assert_eq!(until_marked("1"), 0);
    t.store.observe(&dir);
    write("dir/file", "22");
    changed(&notices, file.id, |attr| attr.size == 2);
    t.store.unobserve(dir.id);
    t.store.unobserve(dir.id);
    until_marked("333");
    write("dir/file", "333");
    assert_eq!(until_marked("4444"), 0);
    t.store.observe(&dir);
    write("dir/file", "4444");
    changed(&notices, file.id, |attr| attr.size == 4);
}

#[test]
fn directories_that_move_are_followed() {
    let (t, path, notices) = watched();
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file", b"");
    t.store.observe(&dir);
    fs::rename(path.join("dir"), path.join("moved")).unwrap();
    fs::write(path.join("moved/file"), "content").unwrap();
    changed(&notices, file.id, |attr| attr.size == 7);

    // Out of the tree: nothing is said of it, but that something was missed.
    let outside = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
    fs::rename(path.join("moved"), outside.path().join("moved")).unwrap();
    fs::write(outside.path().join("moved/file"), "content outside").unwrap();
    assert!(notices.iter().any(|noticed| {
        let told =
            matches!(&noticed, Noticed::Changed(attr) if attr.size > 7 && attr.id == file.id);
        assert!(!told, "{noticed:?}");
        noticed == Noticed::Overflow
    }));
}

#[test]
fn what_is_lost_is_told() {
    let (t, path) = here();
    let root = t.root();
    let (send, notices) = channel();
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let sink = {
        let gate = Arc::clone(&gate);
        move |noticed| {
            drop(gate.lock());
            drop(send.send(noticed));
        }
    };
    t.store.watch(Box::new(sink)).unwrap();
    t.store.observe(&root);
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let queue: usize = queue.trim().parse().unwrap();
    // By turns, as the queue holds equal neighbours once. A buffer full may have been taken from it.
    let files = ["a", "b"].map(|name| fs::File::create(path.join(name)).unwrap());
    for i in 0..queue + 5000 {
        (&files[i % 2]).write_all(b"x").unwrap();
    }
    drop(closed);
    assert!(notices.iter().any(|noticed| noticed == Noticed::Overflow));
    fs::write(path.join("c"), "").unwrap();
    entries(&notices, root.id);
}

#[test]
fn a_watch_ends_with_its_store() {
    let (t, _, notices) = watched();
    let again = t.store.watch(Box::new(drop));
    assert_eq!(again, Err(Errno::BUSY));
    drop(t);
    // Comes to an end once the thread has dropped its sink.
    notices.iter().for_each(drop);
}

/// A program that watches by two stores of one tree does not hear of the other's observations.
#[test]
fn subtrees_are_watched_for_themselves() {
    let (t, path, notices) = watched();
    let dir = t.dir(&t.root(), "dir");
    let sub = t.store.subtree(&dir.path).unwrap();
    let (send, of_subtree) = channel();
    sub.watch(Box::new(move |noticed| drop(send.send(noticed))))
        .unwrap();
    sub.observe(&Node {
        id: dir.id,
        path: RelPath::root(),
    });
    fs::write(path.join("dir/file"), "content").unwrap();
    entries(&of_subtree, dir.id);
    fs::write(path.join("file"), "content").unwrap();
    let first = notices.iter().find(|noticed| match noticed {
        Noticed::Entries(attr) => attr.nlink > 0 && attr.id == dir.id,
        Noticed::Changed(attr) => attr.kind == Kind::File,
        Noticed::Overflow => true,
    });
    assert!(matches!(first, Some(Noticed::Changed(_))), "{first:?}");
}
