//! Where nodes were seen, for requests whose path is out of date.
//!
//! Each node has its directory and its name in it, so that one entry moves with a renamed directory
//! all that is below. Two places are kept of a node, for hard links. Nothing here is relied on:
//! what is found at a path is checked for identity before it is used.

use crate::wire::{FileId, Name, RelPath};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// The most nodes remembered: about 4 MiB with names of 20 bytes.
const NODES_MAX: usize = 32_768;
/// The deepest path there can be: 2048 names of one byte and the slashes between.
const DEPTH_MAX: usize = 2048;

/// Stands for a node, shorter than its id: a hash of it. Two nodes with the same one would be sought at each
/// other's places.
type Key = u64;

/// Where nodes were seen.
pub struct Places {
    root: Key,
    keys: RandomState,
    seen: Mutex<Seen>,
}

/// The nodes last asked for are in `young`; when that is full it becomes `old`, and what was in
/// `old` and not asked for since is forgotten.
#[derive(Default)]
struct Seen {
    young: HashMap<Key, Known>,
    old: HashMap<Key, Known>,
}

struct Known {
    newest: Place,
    /// Boxed, as few nodes have one.
    earlier: Option<Box<Place>>,
}

struct Place {
    dir: Key,
    name: Name,
}

impl Places {
    /// Nothing was seen yet but the root.
    pub fn new(root: FileId) -> Places {
        let keys = RandomState::new();
        Places {
            root: keys.hash_one(root),
            keys,
            seen: Mutex::default(),
        }
    }

    /// The node is in this directory, under this name.
    pub fn record(&self, id: FileId, dir: FileId, name: &Name) {
        let [id, dir] = [id, dir].map(|id| self.keys.hash_one(id));
        let place = || Place {
            dir,
            name: name.clone(),
        };
        let mut seen = self.seen.lock();
        match seen.young(id) {
            Some(Known { newest, .. }) if newest.dir == dir && newest.name == *name => {}
            Some(Known { newest, earlier }) => {
                *earlier = Some(Box::new(std::mem::replace(newest, place())));
            }
            None => {
                let newest = place();
                let earlier = None;
                seen.add(id, Known { newest, earlier });
            }
        }
    }

    /// The node is no more.
    pub fn forget(&self, id: FileId) {
        let id = self.keys.hash_one(id);
        let mut seen = self.seen.lock();
        seen.young.remove(&id);
        seen.old.remove(&id);
    }

    /// Paths at which the node may be.
    pub fn of(&self, id: FileId) -> Vec<RelPath> {
        let seen = self.seen.lock();
        let Some(known) = seen.known(self.keys.hash_one(id)) else {
            return Vec::new();
        };
        let places = std::iter::once(&known.newest).chain(known.earlier.as_deref());
        let paths = places.filter_map(|place| self.path(&seen, place));
        paths.collect()
    }

    fn path(&self, seen: &Seen, last: &Place) -> Option<RelPath> {
        let mut names = vec![&last.name];
        let mut dir = last.dir;
        while dir != self.root {
            let above = &seen.known(dir)?.newest;
            if names.len() >= DEPTH_MAX {
                return None;
            }
            names.push(&above.name);
            dir = above.dir;
        }
        let mut names = names.into_iter().rev();
        names.try_fold(RelPath::root(), |path, name| path.join(name))
    }
}

impl Seen {
    /// What is known of a node, which was asked for now.
    fn young(&mut self, id: Key) -> Option<&mut Known> {
        if let Some(known) = self.old.remove(&id) {
            self.add(id, known);
        }
        self.young.get_mut(&id)
    }

    /// Remembers a node that is not.
    fn add(&mut self, id: Key, known: Known) {
        if self.young.len() >= NODES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, known);
    }

    fn known(&self, id: Key) -> Option<&Known> {
        self.young.get(&id).or_else(|| self.old.get(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ino: u64) -> FileId {
        FileId {
            dev: 1,
            ino,
            born: 0,
        }
    }

    fn name(text: impl Into<Vec<u8>>) -> Name {
        Name::new(text).unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn what_is_below_moves_with_a_directory() {
        let places = Places::new(id(1));
        places.record(id(2), id(1), &name("a"));
        places.record(id(3), id(2), &name("b"));
        places.record(id(4), id(3), &name("c"));
        assert_eq!(places.of(id(4)), [path("a/b/c")]);
        places.record(id(2), id(1), &name("z"));
        assert_eq!(places.of(id(4)), [path("z/b/c")]);
        assert_eq!(places.of(id(2)), [path("z"), path("a")]);
        assert_eq!(places.of(id(9)), []);
    }

    #[test]
    fn nothing_is_kept_of_what_is_no_more() {
        let places = Places::new(id(1));
        for ino in 2..NODES_MAX as u64 {
            places.record(id(ino), id(1), &name(ino.to_string()));
        }
        assert_eq!(places.of(id(2)), [path("2")]);
        for ino in 2..NODES_MAX as u64 {
            places.forget(id(ino));
            assert_eq!(places.of(id(ino)), []);
        }
        let seen = places.seen.lock();
        assert!(seen.young.is_empty() && seen.old.is_empty());
    }

    #[test]
    fn a_loop_is_no_path() {
        let places = Places::new(id(1));
        places.record(id(2), id(3), &name("a"));
        places.record(id(3), id(2), &name("b"));
        assert_eq!(places.of(id(2)), []);
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let places = Places::new(id(0));
        for ino in 1..3 * NODES_MAX as u64 {
            places.record(id(1), id(0), &name("used"));
            places.record(id(ino), id(0), &name(ino.to_string()));
        }
        let seen = places.seen.lock();
        assert!(seen.young.len() + seen.old.len() <= NODES_MAX);
        drop(seen);
        assert!(places.of(id(1)).contains(&path("used")));
        assert_eq!(places.of(id(2)), []);
    }
}
