//! Listings and their cursors.

use super::*;
use std::collections::BTreeSet;

const MANY: usize = 3000;

fn name_of(i: usize) -> String {
    format!("entry {i} of many")
}

fn many(t: &Fixture) -> Node {
    let dir = t.dir(&t.root(), "many");
    for i in 0..MANY {
        let make = match i % 100 {
            0 => Make::Directory,
            _ => Make::File,
        };
        t.make(&dir, &name_of(i), make);
    }
    dir
}

fn names(entries: &[DirEntry]) -> BTreeSet<Name> {
    let names: BTreeSet<Name> = entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names.len(), entries.len(), "once each");
    names
}

pub(crate) fn pieces_of_any_size(t: &Fixture) {
    let dir = many(t);
    let all: BTreeSet<Name> = (0..MANY).map(|i| n(&name_of(i))).collect();
    for at_once in [1, 7, 100, 1024, 5000] {
        let entries = t.entries(&dir, at_once);
        assert_eq!(names(&entries), all, "{at_once} at once");
        assert!(entries.iter().all(|entry| entry.cursor != 0));
    }
}

pub(crate) fn entries_have_attributes(t: &Fixture) {
    let dir = t.dir(&t.root(), "dir");
    t.file(&dir, "file", b"content");
    t.dir(&dir, "below");
    if t.store.capabilities().symlinks {
        t.make(&dir, "link", Make::Symlink(b"file".to_vec()));
    }
    for entry in t.entries(&dir, 10) {
        assert_eq!(t.store.lookup(&dir, &entry.name), Ok(entry.attr));
    }
}

/// As `rm -r` does it.
pub(crate) fn removal_of_what_was_listed(t: &Fixture) {
    let dir = many(t);
    let mut seen = 0;
    let mut cursor = 0;
    loop {
        let entries = t.store.read_dir(&dir, cursor, 100).unwrap();
        let Some(last) = entries.last() else { break };
        cursor = last.cursor;
        seen += names(&entries).len();
        for entry in &entries {
            let directory = entry.attr.kind == Kind::Directory;
            t.store.remove(&dir, &entry.name, directory).unwrap();
        }
    }
    assert_eq!(seen, MANY);
    t.store.remove(&t.root(), &n("many"), true).unwrap();
}

/// Of a thousand entries between, some come and some go while the others are listed.
pub(crate) fn changes_between_pieces(t: &Fixture) {
    let dir = many(t);
    let mut entries: Vec<DirEntry> = Vec::new();
    let mut goes = (0..MANY).filter(|i| i % 3 == 1 && i % 100 != 0);
    for round in 0.. {
        let cursor = entries.last().map_or(0, |entry| entry.cursor);
        let some = t.store.read_dir(&dir, cursor, 50).unwrap();
        if some.is_empty() {
            break;
        }
        entries.extend(some);
        for i in goes.by_ref().take(20) {
            t.store.remove(&dir, &n(&name_of(i)), false).unwrap();
        }
        // What is new may be listed or not, so this has to end for the listing to.
        if round < 40 {
            t.make(&dir, &format!("new {round}"), Make::File);
        }
    }
    let listed = names(&entries);
    for i in (0..MANY).filter(|i| i % 3 != 1 || i % 100 == 0) {
        assert!(listed.contains(&n(&name_of(i))), "{}", name_of(i));
    }
}

pub(crate) fn listings_at_the_same_time(t: &Fixture) {
    let dir = many(t);
    let all = names(&t.entries(&dir, 1000));
    let mut listings: [Vec<DirEntry>; 3] = Default::default();
    let mut done = false;
    while !done {
        done = true;
        for (listing, at_once) in listings.iter_mut().zip([300, 300, 170]) {
            let cursor = listing.last().map_or(0, |entry| entry.cursor);
            let some = t.store.read_dir(&dir, cursor, at_once).unwrap();
            done &= some.is_empty();
            listing.extend(some);
        }
    }
    for listing in &listings {
        assert_eq!(names(listing), all);
    }
}

/// A request is sent again whose answer was lost.
pub(crate) fn pieces_asked_for_twice(t: &Fixture) {
    let dir = many(t);
    let all = t.entries(&dir, 500);
    for at in [1, 499, 500, 1234, MANY - 1] {
        for _ in 0..3 {
            let some = t.store.read_dir(&dir, all[at - 1].cursor, 10).unwrap();
            let expected: Vec<&Name> = all[at..].iter().take(10).map(|e| &e.name).collect();
            let listed: Vec<&Name> = some.iter().map(|entry| &entry.name).collect();
            assert_eq!(listed, expected, "after {at}");
        }
    }
}
