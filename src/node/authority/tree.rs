//! The parts of the store that replicas have as their roots, and which directories of them are watched.

use super::known::Nodes;
use super::notice::Notices;
use crate::store::{self, Store};
use crate::wire::{FileId, Node, RelPath};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// A part of the store.
pub(super) struct Tree {
    pub store: Arc<dyn Store>,
    /// Directories that sessions hold copies from: how many sessions.
    observed: Mutex<HashMap<FileId, u32>>,
}

impl Tree {
    /// Watches a tree; its notices go to `notices`.
    fn new(store: Arc<dyn Store>, notices: &Arc<Notices>) -> Arc<Tree> {
        let sink = notices.clone();
        if let Err(error) = store.watch(Box::new(move |noticed| sink.put(noticed))) {
            let store = store.describe();
            tracing::warn!(%store, %error, "changes by other programs are not noticed");
        }
        Arc::new(Tree {
            store,
            observed: Mutex::default(),
        })
    }

    /// One more session has copies from `dir`.
    pub fn observe(&self, dir: &Node, nodes: &Nodes) {
        let mut observed = self.observed.lock();
        let sessions = observed.entry(dir.id).or_default();
        *sessions += 1;
        if *sessions > 1 {
            return;
        }
        self.store.observe(dir);
        drop(observed);
        if let Ok(attr) = self.store.attr(dir) {
            nodes.get(dir.id).learn_first(attr.stamp());
        }
    }

    /// One session less has copies from a directory that it observed.
    pub fn unobserve(&self, dir: FileId) {
        let mut observed = self.observed.lock();
        let Some(sessions) = observed.get_mut(&dir) else {
            return;
        };
        *sessions -= 1;
        if *sessions == 0 {
            observed.remove(&dir);
            self.store.unobserve(dir);
        }
    }

    /// Whether `node` is a directory that somebody observes.
    pub fn observes(&self, node: FileId) -> bool {
        self.observed.lock().contains_key(&node)
    }
}

/// All trees that are served.
pub(super) struct Trees {
    whole: Arc<Tree>,
    parts: Mutex<HashMap<RelPath, Weak<Tree>>>,
    notices: Arc<Notices>,
}

impl Trees {
    pub fn new(store: Arc<dyn Store>, notices: Arc<Notices>) -> Trees {
        Trees {
            whole: Tree::new(store, &notices),
            parts: Mutex::default(),
            notices,
        }
    }

    /// The tree below `path`. Asks the store.
    pub fn get(&self, path: &RelPath) -> store::Result<Arc<Tree>> {
        if path.is_root() {
            return Ok(self.whole.clone());
        }
        let mut parts = self.parts.lock();
        if let Some(tree) = parts.get(path).and_then(Weak::upgrade) {
            return Ok(tree);
        }
        let tree = Tree::new(self.whole.store.subtree(path)?, &self.notices);
        parts.retain(|_, tree| tree.strong_count() > 0);
        parts.insert(path.clone(), Arc::downgrade(&tree));
        Ok(tree)
    }

    /// Whether `node` is a directory that somebody observes.
    pub fn observes(&self, node: FileId) -> bool {
        let parts = self.parts.lock();
        self.whole.observes(node)
            || parts
                .values()
                .filter_map(Weak::upgrade)
                .any(|tree| tree.observes(node))
    }
}
