//! What every store has to do, as tests. A store runs them all by one line:
//!
//! ```ignore
//! fn fixture() -> Fixture { Fixture::new(MyStore::new()) }
//! conformance::suite!(fixture);
//! ```
//!
//! or, where there is something to do around each case, `suite!(run by run_case)` with a
//! `fn run_case(case: fn(&Fixture))`.
//!
//! Each case gets an empty tree of its own. One that needs what the store cannot do, by its own
//! `Capabilities`, prints that it is skipped, and why.

pub(crate) mod attributes;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod links;
pub(crate) mod listing;
pub(crate) mod names;
pub(crate) mod renames;
pub(crate) mod xattrs;

use super::{Errno, Result, Store, StoreFile};
use crate::wire::{
    Access, Allocate, Attr, Caller, DirEntry, Kind, Make, Name, Node, RelPath, RenameMode, SetAttr,
    SetTime, Time, XattrMode,
};
use std::any::Any;
use std::sync::Arc;

/// One `#[test]` for each case, in a module for each group. Takes the name of a function beside it
/// that makes a [`Fixture`].
macro_rules! suite {
    ($make:ident) => {
        fn run_case(case: fn(&$crate::store::conformance::Fixture)) {
            case(&$make());
        }
        $crate::store::conformance::suite!(run by run_case);
    };
    (run by $run:ident) => {
        $crate::store::conformance::suite! { $run;
            names: nothing_is_there, what_is_taken, names_are_bytes,
                only_directories_have_entries, deep_paths, subtrees_are_confined,
                subtrees_of_what_is_none;
            identity: removed_is_stale, replaced_is_stale, ids_are_not_used_again, ids_last,
                open_files_outlive_their_names, open_files_outlive_being_replaced;
            attributes: of_what_is_new, modes_are_exact, times, times_that_are_none,
                changes_leave_times, sizes, all_at_once, owners, owners_of_what_is_new,
                groups_are_inherited, of_the_file_system;
            files: bytes_come_back, handles_agree, readers_do_not_write,
                only_regular_files_are_opened, too_far, holes_stay_holes, data_ends_in_a_hole,
                zeroes_keep_holes, zeroes_touch_nothing_else, allocation, allocation_of_zeroes,
                any_calls_in_any_order;
            links: hard_links, hard_links_that_cannot_be, symbolic_links,
                symbolic_links_are_not_followed, pipes_and_sockets, devices;
            renames: replacing, between_directories, directories, not_replacing, exchanging,
                of_nothing, of_two_names_of_one_file, removals;
            listing: pieces_of_any_size, entries_have_attributes, removal_of_what_was_listed,
                changes_between_pieces, listings_at_the_same_time, pieces_asked_for_twice;
            xattrs: values, modes, what_is_too_long, they_move_along, of_stores_without;
        }
    };
    ($run:ident; $($group:ident: $($case:ident),+;)+) => { $(
        mod $group { $(
            #[test]
            fn $case() {
                super::$run($crate::store::conformance::$group::$case);
            }
        )+ }
    )+ };
}
pub(crate) use suite;

/// Ends a case where the store lacks a capability.
macro_rules! needs {
    ($t:expr, $capability:ident) => {
        if !$t.store.capabilities().$capability {
            let what = stringify!($capability);
            println!("skipped: {} has no {what}", $t.store.describe());
            return;
        }
    };
}
pub(crate) use needs;

/// A store with an empty root.
pub(crate) struct Fixture {
    pub store: Arc<dyn Store>,
    /// What has to live as long as the store, and to be cleaned up after it.
    _keep: Box<dyn Any>,
}

impl Fixture {
    pub fn new(store: impl Store) -> Fixture {
        Fixture::keeping(store, ())
    }

    pub fn keeping(store: impl Store, keep: impl Any) -> Fixture {
        Fixture {
            store: Arc::new(store),
            _keep: Box::new(keep),
        }
    }

    /// The root.
    pub fn root(&self) -> Node {
        Node {
            id: self.store.root().unwrap().id,
            path: RelPath::root(),
        }
    }

    /// The entry, as a node.
    pub fn node(&self, dir: &Node, name: &str) -> Node {
        self.found(dir, name).unwrap()
    }

    /// The entry, as a node, or why not.
    pub fn found(&self, dir: &Node, name: &str) -> Result<Node> {
        Ok(Node {
            id: self.store.lookup(dir, &n(name))?.id,
            path: dir.path.join(&n(name)).unwrap(),
        })
    }

    /// A node made there.
    pub fn make(&self, dir: &Node, name: &str, make: Make) -> Node {
        let attr = self.store.make(dir, &n(name), &make, 0o755, by()).unwrap();
        assert_eq!(attr.kind, kind(&make));
        Node {
            id: attr.id,
            path: dir.path.join(&n(name)).unwrap(),
        }
    }

    /// A directory made there.
    pub fn dir(&self, dir: &Node, name: &str) -> Node {
        self.make(dir, name, Make::Directory)
    }

    /// A file made there with this content.
    pub fn file(&self, dir: &Node, name: &str, content: &[u8]) -> Node {
        let (attr, file) = self.store.create(dir, &n(name), 0o644, true, by()).unwrap();
        file.write_at(content, 0).unwrap();
        Node {
            id: attr.id,
            path: dir.path.join(&n(name)).unwrap(),
        }
    }

    /// The node, opened for writing.
    pub fn open(&self, node: &Node) -> Box<dyn StoreFile> {
        self.store.open(node, Access::Write).unwrap()
    }

    /// All of a file's content.
    pub fn content(&self, node: &Node) -> Vec<u8> {
        let file = self.store.open(node, Access::Read).unwrap();
        content(&*file)
    }

    /// All entries of a directory, asked for `at_once` at a time.
    pub fn entries(&self, dir: &Node, at_once: usize) -> Vec<DirEntry> {
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let cursor = all.last().map_or(0, |entry| entry.cursor);
            let some = self.store.read_dir(dir, cursor, at_once).unwrap();
            assert!(some.len() <= at_once);
            if some.is_empty() {
                return all;
            }
            all.extend(some);
        }
    }

    /// What every call that takes a node answers for this one.
    pub fn assert_stale(&self, node: &Node) {
        let (store, name) = (&self.store, n("x"));
        let stale = Some(Errno::STALE);
        assert_eq!(store.attr(node).err(), stale);
        assert_eq!(store.set_attr(node, &SetAttr::default()).err(), stale);
        assert_eq!(store.lookup(node, &name).err(), stale);
        let made = store.make(node, &name, &Make::File, 0o600, by());
        assert_eq!(made.err(), stale);
        let created = store.create(node, &name, 0o600, false, by());
        assert_eq!(created.err(), stale);
        assert_eq!(store.open(node, Access::Read).err(), stale);
        assert_eq!(store.read_link(node).err(), stale);
        assert_eq!(store.read_dir(node, 0, 10).err(), stale);
        assert_eq!(store.remove(node, &name, false).err(), stale);
        assert_eq!(store.sync_dir(node).err(), stale);
    }
}

/// All of a file's content.
pub(crate) fn content(file: &dyn StoreFile) -> Vec<u8> {
    let mut content = vec![0; file.attr().unwrap().size as usize + 10];
    let bytes = file.read_at(&mut content, 0).unwrap();
    content.truncate(bytes);
    content
}

/// A name.
pub(crate) fn n(name: &str) -> Name {
    Name::new(name).unwrap()
}

/// Whoever runs the tests.
pub(crate) fn by() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// What one of these is when it is made.
pub(crate) fn kind(make: &Make) -> Kind {
    match make {
        Make::File => Kind::File,
        Make::Directory => Kind::Directory,
        Make::Symlink(_) => Kind::Symlink,
        Make::Fifo => Kind::Fifo,
        Make::Socket => Kind::Socket,
        Make::CharDevice(_) => Kind::CharDevice,
        Make::BlockDevice(_) => Kind::BlockDevice,
    }
}
