//! What other programs on this machine do to the served tree, as far as the store notices it.
//!
//! Notices of one node that pile up are one notice. Changes made by the authority itself come back
//! as notices too: they are told by their stamps (see `known`).

use super::{Service, everything};
use crate::store::Noticed;
use crate::wire::{Attr, FileId, Kind, Stale};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// More nodes than this waiting to be looked at count as notices lost.
const PENDING_MAX: usize = 65_536;

/// Notices not yet looked at.
#[derive(Default)]
pub(super) struct Notices {
    pending: Mutex<Pending>,
    ready: Notify,
}

#[derive(Default)]
struct Pending {
    nodes: HashMap<FileId, Attr>,
    lost: bool,
}

impl Notices {
    /// Called by the store, on a thread of its own.
    pub fn put(&self, noticed: Noticed) {
        let mut pending = self.pending.lock();
        match noticed {
            Noticed::Changed(attr) | Noticed::Entries(attr)
                if pending.nodes.len() < PENDING_MAX =>
            {
                pending.nodes.insert(attr.id, attr);
            }
            _ => pending.lost = true,
        }
        drop(pending);
        self.ready.notify_one();
    }

    async fn take(&self) -> Pending {
        loop {
            let pending = std::mem::take(&mut *self.pending.lock());
            if pending.lost || !pending.nodes.is_empty() {
                return pending;
            }
            self.ready.notified().await;
        }
    }
}

/// Looks at what is noticed. Does not end.
pub(super) async fn run(service: Arc<Service>) {
    loop {
        let Pending { nodes, lost } = service.notices.take().await;
        if lost {
            tracing::debug!("notices were lost: everything may have changed");
            service.assume_all_changed();
        }
        for attr in nodes.into_values() {
            if service.coherence.has_subscribers(attr.id) && !service.is_echo(&attr) {
                // It may have to wait for its turn, behind a long push.
                tokio::spawn(service.clone().look_at(attr));
            }
        }
    }
}

impl Service {
    /// Whether a notice tells nothing new, as far as can be said at once.
    fn is_echo(&self, attr: &Attr) -> bool {
        let known = self.nodes.find(attr.id);
        known.is_some_and(|known| known.knows(attr.stamp()))
    }

    /// Tells everyone who has copies of a node if somebody else has changed it.
    async fn look_at(self: Arc<Self>, noticed: Attr) {
        let known = self.nodes.get(noticed.id);
        let _turn = known.turn.lock().await;
        // The notice may be from the middle of a change of ours: what is there now counts.
        let now = match known.handle() {
            Some(handle) => handle.file.attr().unwrap_or(noticed),
            None => noticed,
        };
        let stamp = now.stamp();
        if known.knows(stamp) {
            return;
        }
        tracing::debug!(id = ?now.id, "changed by another program");
        let what = (now.id, everything(now.kind));
        self.coherence.change_by_others([what]);
        known.wrote(None, self.coherence.mark().at);
        known.learn(stamp);
    }

    fn assume_all_changed(&self) {
        let nodes = self.coherence.nodes();
        let changes = nodes.into_iter().map(|id| match self.trees.observes(id) {
            true => (id, Stale::Attributes),
            false => (id, everything(Kind::File)),
        });
        self.coherence.change_by_others(changes.collect::<Vec<_>>());
    }
}
