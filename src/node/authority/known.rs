//! What the authority last saw of a node, so that changes by other programs on its machine are told
//! from its own.
//!
//! A store notices changes to files, and cannot say whose they are. So a node's stamp is looked at before
//! and after each change the authority makes, and remembered:
//!
//! ```text
//! take the node's turn ─▶ stamp is none of those known? somebody else was here: tell everyone
//!                      ─▶ change ─▶ count the change ─▶ remember the stamp ─▶ give the turn back
//! a notice with a stamp that is known ─▶ an echo of our own change: nothing to do
//! ```
//!
//! The turn also makes the order in which bytes are applied the order of their ticks. What another program does
//! *during* one of our changes to the same node cannot be told apart from it.
//!
//! Of a stamp a hash is remembered, so that little is kept of a node, and of one that has lost its last name and that
//! nobody has open, nothing.

use super::session::Handle;
use crate::region::{ClientId, Tick};
use crate::wire::{FileId, Stamp};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock, Weak};

/// So many of a node's last stamps are remembered: notices lag a little behind.
const STAMPS_MAX: usize = 8;
/// From so many nodes on, those that nobody uses are forgotten. A notice about one of them is then
/// taken for somebody else's.
const NODES_IDLE_MAX: usize = 16_384;

/// A node that was, or is about to be, changed.
pub(super) struct Known {
    pub id: FileId,
    /// Held while the node is changed. Of several nodes, it is taken in the order of their ids.
    pub turn: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
}

/// Stands for a stamp: that of another one is the same once in 2^64 times.
type Print = NonZeroU64;

fn print(stamp: Stamp) -> Print {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    Print::new(KEY.hash_one(stamp)).unwrap_or(Print::MIN)
}

#[derive(Default)]
struct Seen {
    /// Of its last stamps, the newest last.
    prints: [Option<Print>; STAMPS_MAX],
    /// The file as it was last opened.
    handle: Weak<Handle>,
    writers: Option<Writers>,
}

/// Who has changed the content of a file, as far as one writer at a time goes.
#[derive(Clone, Copy)]
struct Writers {
    /// All changes after this tick are `last`'s.
    others_until: Tick,
    /// The newest change.
    newest: Tick,
    last: Option<ClientId>,
}

impl Known {
    /// Whether the node was seen before, and never like this.
    pub fn differs(&self, stamp: Stamp) -> bool {
        let seen = self.seen.lock();
        seen.newest().is_some() && !seen.prints.contains(&Some(print(stamp)))
    }

    /// Whether the node was seen like this.
    pub fn knows(&self, stamp: Stamp) -> bool {
        self.seen.lock().prints.contains(&Some(print(stamp)))
    }

    /// This is what it looks like now, and everyone was told.
    pub fn learn(&self, stamp: Stamp) {
        let print = Some(print(stamp));
        let mut seen = self.seen.lock();
        if seen.newest() != print {
            seen.prints.rotate_left(1);
            seen.prints[STAMPS_MAX - 1] = print;
        }
    }

    /// As [`Known::learn`] for a node that was not seen before.
    pub fn learn_first(&self, stamp: Stamp) {
        let mut seen = self.seen.lock();
        if seen.newest().is_none() {
            seen.prints[STAMPS_MAX - 1] = Some(print(stamp));
        }
    }

    /// From this tick on it is known who changes the content; earlier changes are somebody's.
    pub fn watch_writers(&self, now: Tick) {
        let writers = Writers {
            others_until: now,
            newest: now,
            last: None,
        };
        self.seen.lock().writers.get_or_insert(writers);
    }

    /// A client, or somebody who is none, has changed the content at this tick.
    pub fn wrote(&self, by: Option<ClientId>, at: Tick) {
        if let Some(writers) = &mut self.seen.lock().writers {
            if by.is_none() {
                writers.others_until = at;
            } else if writers.last != by {
                writers.others_until = writers.newest;
            }
            (writers.last, writers.newest) = (by, writers.newest.max(at));
        }
    }

    /// Whether surely nobody else has changed the content after that tick.
    pub fn only_by(&self, by: ClientId, after: Tick) -> bool {
        let writers = self.seen.lock().writers;
        writers.is_some_and(|writers| {
            let only = writers.last == Some(by) && writers.others_until <= after;
            only || writers.newest <= after
        })
    }

    /// The file was opened.
    pub fn opened(&self, handle: &Arc<Handle>) {
        self.seen.lock().handle = Arc::downgrade(handle);
    }

    /// This handle is no more: what it took is only free when nothing points to it.
    pub fn closed(&self, handle: *const Handle) {
        let mut seen = self.seen.lock();
        if std::ptr::eq(seen.handle.as_ptr(), handle) {
            seen.handle = Weak::new();
        }
    }

    /// The file, if it is still open as it was opened last.
    pub fn handle(&self) -> Option<Arc<Handle>> {
        self.seen.lock().handle.upgrade()
    }
}

impl Seen {
    fn newest(&self) -> Option<Print> {
        self.prints[STAMPS_MAX - 1]
    }
}

/// The nodes that are remembered.
#[derive(Default)]
pub(super) struct Nodes(Mutex<Table>);

#[derive(Default)]
struct Table {
    nodes: HashMap<FileId, Arc<Known>>,
    /// Size at which idle nodes are next looked for.
    sweep_at: usize,
}

impl Nodes {
    pub fn get(&self, id: FileId) -> Arc<Known> {
        let mut table = self.0.lock();
        if let Some(known) = table.nodes.get(&id) {
            return known.clone();
        }
        if table.nodes.len() >= table.sweep_at.max(NODES_IDLE_MAX) {
            table.nodes.retain(|_, known| Arc::strong_count(known) > 1);
            table.sweep_at = table.nodes.len() * 2;
        }
        let known = Arc::new(Known {
            id,
            turn: tokio::sync::Mutex::new(()),
            seen: Mutex::default(),
        });
        table.nodes.insert(id, known.clone());
        known
    }

    /// The node has lost its last name. Where somebody else still uses it, it is remembered all the same: its turn
    /// must not be there twice.
    pub fn forget(&self, known: &Arc<Known>) {
        let mut table = self.0.lock();
        if Arc::strong_count(known) == 2 {
            table.nodes.remove(&known.id);
        }
    }

    /// The node, if it is remembered.
    pub fn find(&self, id: FileId) -> Option<Arc<Known>> {
        self.0.lock().nodes.get(&id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Time;

    fn stamp(secs: i64) -> Stamp {
        Stamp {
            size: 0,
            mtime: Time { secs, nanos: 0 },
            ctime: Time { secs, nanos: 0 },
        }
    }

    #[test]
    fn the_last_stamps_are_known() {
        let nodes = Nodes::default();
        let id = FileId {
            dev: 1,
            ino: 2,
            born: 3,
        };
        let known = nodes.get(id);
        assert!(!known.differs(stamp(0)), "never seen: cannot tell");
        for secs in 0..20 {
            known.learn(stamp(secs));
        }
        assert!(known.knows(stamp(19)) && known.knows(stamp(12)) && !known.knows(stamp(11)));
        assert!(known.differs(stamp(11)) && known.differs(stamp(20)));
        assert!(nodes.find(id).is_some());
    }

    #[test]
    fn it_is_known_who_was_alone() {
        let nodes = Nodes::default();
        let known = nodes.get(FileId {
            dev: 1,
            ino: 2,
            born: 3,
        });
        let [a, b] = [1, 2].map(|id| ClientId([id; 16]));
        assert!(!known.only_by(a, Tick(100)), "not watched");
        known.watch_writers(Tick(10));
        assert!(known.only_by(a, Tick(10)) && !known.only_by(a, Tick(9)));
        known.wrote(Some(a), Tick(12));
        known.wrote(Some(a), Tick(14));
        assert!(known.only_by(a, Tick(10)) && !known.only_by(b, Tick(13)));
        assert!(known.only_by(b, Tick(14)), "nothing has happened since");
        known.wrote(Some(b), Tick(20));
        assert!(!known.only_by(a, Tick(14)) && !known.only_by(b, Tick(13)));
        assert!(known.only_by(b, Tick(14)));
        known.wrote(None, Tick(30));
        assert!(!known.only_by(b, Tick(20)) && known.only_by(b, Tick(30)));
        known.wrote(Some(b), Tick(31));
        assert!(known.only_by(b, Tick(30)) && !known.only_by(b, Tick(29)));
    }

    #[test]
    fn what_is_gone_is_forgotten_unless_it_is_used() {
        let nodes = Nodes::default();
        let id = FileId {
            dev: 1,
            ino: 2,
            born: 3,
        };
        let (first, second) = (nodes.get(id), nodes.get(id));
        nodes.forget(&first);
        assert!(Arc::ptr_eq(&first, &nodes.get(id)));
        drop(first);
        nodes.forget(&second);
        assert!(nodes.find(id).is_none());
        assert!(size_of::<Known>() <= 208, "kept of each of many nodes");
    }

    #[test]
    fn nodes_in_use_are_not_forgotten() {
        let nodes = Nodes::default();
        let id = |ino| FileId {
            dev: 0,
            ino,
            born: 0,
        };
        let used = nodes.get(id(0));
        for ino in 1..=NODES_IDLE_MAX as u64 {
            nodes.get(id(ino));
        }
        assert!(Arc::ptr_eq(&used, &nodes.get(id(0))));
        assert!(nodes.find(id(1)).is_none() && nodes.0.lock().nodes.len() < 10);
    }
}
