//! Where nodes were seen, for requests whose path is out of date.
//!
//! Each node has its directory and its name in it, so that one entry moves with a renamed directory
//! all that is below. Two places are kept of a node, for hard links. Nothing here is relied on:
//! what is found at a path is checked for identity before it is used.

use crate::wire::{FileId, Name, RelPath};
use parking_lot::Mutex;
use std::collections::HashMap;

/// The most nodes remembered: about 8 MiB with names of 20 bytes.
const NODES_MAX: usize = 65_536;
/// The deepest path there can be: 2048 names of one byte and the slashes between.
const DEPTH_MAX: usize = 2048;

/// Where nodes were seen.
pub struct Places {
    root: FileId,
    seen: Mutex<Seen>,
}

/// The nodes last asked for are in `young`; when that is full it becomes `old`, and what was in
/// `old` and not asked for since is forgotten.
#[derive(Default)]
struct Seen {
    young: HashMap<FileId, [Option<Place>; 2]>,
    old: HashMap<FileId, [Option<Place>; 2]>,
}

#[derive(Clone, PartialEq)]
struct Place {
    dir: FileId,
    name: Name,
}

impl Places {
    /// Nothing was seen yet but the root.
    pub fn new(root: FileId) -> Places {
        Places {
            root,
            seen: Mutex::default(),
        }
    }

    /// The node is in this directory, under this name.
    pub fn record(&self, id: FileId, dir: FileId, name: &Name) {
        let mut seen = self.seen.lock();
        let places = seen.young(id);
        if let Some(newest) = &places[0] {
            if newest.dir == dir && newest.name == *name {
                return;
            }
            places[1] = places[0].take();
        }
        let name = name.clone();
        places[0] = Some(Place { dir, name });
    }

    /// Paths at which the node may be.
    pub fn of(&self, id: FileId) -> Vec<RelPath> {
        let mut seen = self.seen.lock();
        let places = seen.known(id).into_iter().flatten().flatten();
        places
            .filter_map(|place| self.path(&mut seen, place))
            .collect()
    }

    fn path(&self, seen: &mut Seen, last: Place) -> Option<RelPath> {
        let mut names = vec![last.name];
        let mut dir = last.dir;
        while dir != self.root {
            let [above, _] = seen.known(dir)?;
            let above = above.filter(|_| names.len() < DEPTH_MAX)?;
            names.push(above.name);
            dir = above.dir;
        }
        let mut names = names.iter().rev();
        names.try_fold(RelPath::root(), |path, name| path.join(name))
    }
}

impl Seen {
    /// The places of a node, to be changed.
    fn young(&mut self, id: FileId) -> &mut [Option<Place>; 2] {
        if !self.young.contains_key(&id) {
            if self.young.len() >= NODES_MAX / 2 {
                self.old = std::mem::take(&mut self.young);
            }
            let known = self.old.remove(&id).unwrap_or_default();
            self.young.insert(id, known);
        }
        self.young.entry(id).or_default()
    }

    fn known(&self, id: FileId) -> Option<[Option<Place>; 2]> {
        self.young.get(&id).or_else(|| self.old.get(&id)).cloned()
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
