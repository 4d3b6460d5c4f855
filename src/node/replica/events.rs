//! What the authority says of its own accord, and what follows when the link or the lease is lost.

use super::Shared;
use super::kernel::Job;
use super::link::{LinkEvent, Moment, Session};
use super::nodes::Node;
use super::region::Region;
use super::{Era, inner::Inner};
use crate::units::{ByteRange, PageRange};
use crate::wire::{
    Access, Answer, AuthorityEvent, FileId, Kind, ReadRequest, ReplicaEvent, Request, Stale,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use tokio::sync::mpsc;

/// Regions opened anew at once.
const REOPEN_MAX: usize = 64;

/// Takes in what a link reports, in order, until it or the replica is gone.
pub(super) async fn take_in(shared: Weak<Shared>, mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match event {
            LinkEvent::Event(
                generation,
                AuthorityEvent::Invalidate {
                    change,
                    id,
                    at: tick,
                    what,
                },
            ) => {
                shared.invalidate(id, Moment { generation, tick }, what);
                shared.tell_taken(generation, change);
            }
            // Taken in by the link itself.
            LinkEvent::Event(_, AuthorityEvent::Renewed { .. }) => {}
            LinkEvent::Renewed(renewal) => shared.settled(renewal),
            LinkEvent::Up => shared.record_again(),
            // With `--offline serve` the kernel goes on as this replica does. When the link is back it is told what has
            // changed meanwhile.
            LinkEvent::LeaseLost if shared.options.serve_offline => {}
            LinkEvent::LeaseLost => shared.revoke_kernel(),
            LinkEvent::Reattached(session, done) => {
                shared.reattach(&session).await;
                let _ = done.send(());
            }
        }
    }
}

impl Shared {
    fn invalidate(&self, id: FileId, at: Moment, what: Stale) {
        if let Some(node) = self.nodes.changed(id, at) {
            let bytes = match what {
                Stale::Attributes => None,
                Stale::Bytes { start, end } => Some(ByteRange::new(start, end)),
            };
            // Before anything of it is seen: who opens the file from here on has the kernel drop its pages.
            let dropping = u32::from(bytes.is_some());
            node.drops.fetch_add(dropping, Ordering::AcqRel);
            node.invalidate(at, bytes.is_some());
            let region = node.region.lock().clone();
            if let (Some(range), Some(region)) = (bytes, &region) {
                let mut dropped = Vec::new();
                region.update(|inner| inner.invalidate(at, range, &mut dropped));
            }
            match bytes {
                Some(range) => self.drop_pages(&node, range),
                None => {
                    self.queue(Job::DropAttributes(node.no));
                    if node.kind == Kind::Directory {
                        self.queue(Job::DropNames);
                    }
                }
            }
            node.drops.fetch_sub(dropping, Ordering::AcqRel);
        } else {
            // The authority need not tell of it: it was forgotten, or read for an answer that was read again. What an
            // older answer says that is still on its way is not kept.
            let forget = ReplicaEvent::Forget(vec![(id, at.tick)]);
            self.link.send_about(at.generation, forget);
        }
    }

    /// Tells the authority that a change has been taken in, once the kernel has taken it in as well.
    fn tell_taken(&self, generation: u64, change: u64) {
        match self.kernel.get() {
            Some(kernel) => kernel.queue(Job::Taken { generation, change }),
            None => (self.link).send_about(generation, ReplicaEvent::Taken { change }),
        }
    }

    /// Queues a job for the kernel thread, if there is a kernel.
    pub(super) fn queue(&self, job: Job) {
        if let Some(kernel) = self.kernel.get() {
            kernel.queue(job);
        }
    }

    /// Lets the kernel thread drop pages. Until it has, the kernel may not keep what it has of a file that is
    /// opened: [`Shared::kernel_may_keep`].
    pub(super) fn drop_pages(&self, node: &Arc<Node>, range: ByteRange) {
        if let Some(kernel) = self.kernel.get() {
            node.begin_drop();
            kernel.queue(Job::DropPages(node.clone(), range));
        }
    }

    /// Whether no page that the kernel has of a file is known to be stale.
    pub(super) fn kernel_may_keep(&self, node: &Node) -> bool {
        node.drops.load(Ordering::Acquire) == 0
    }

    /// The authority knows nothing of this replica: each copy is compared with what is there now.
    async fn reattach(self: &Arc<Self>, session: &Session) {
        let era = std::mem::replace(&mut *self.era.lock(), Era::of(session));
        // From here on no region is made by what was told before, and those there are belong to these.
        let nodes = self.nodes.reset(session.generation);
        let restarted = era.boot != session.welcome.boot;
        self.queue(Job::DropNames);
        if let Ok(root) = self.nodes.get(super::ROOT)
            && root.id == session.welcome.root.id
        {
            root.adopt(&session.welcome.root, Moment::start(session.generation));
        }
        let mut reopening = tokio::task::JoinSet::new();
        for node in nodes {
            self.queue(Job::DropAttributes(node.no));
            let Some(region) = node.region.lock().clone() else {
                continue;
            };
            let shared = self.clone();
            let session = session.clone();
            reopening.spawn(async move {
                (shared.reattach_region(&session, &node, &region, restarted)).await;
            });
            if reopening.len() >= REOPEN_MAX {
                reopening.join_next().await;
            }
        }
        while reopening.join_next().await.is_some() {}
        self.reclaim_locks(session).await;
    }

    async fn reattach_region(
        self: &Arc<Self>,
        session: &Session,
        node: &Arc<Node>,
        region: &Arc<Region>,
        restarted: bool,
    ) {
        *region.remote.lock().await = None;
        if restarted {
            region.update(Inner::restore_lost);
        }
        let (open, epoch, size) =
            region.look(|inner| (inner.is_open(), inner.core.epoch(), inner.core.base_size()));
        let start = Moment::start(session.generation);
        let found = if open {
            self.reopen(session, node, region).await
        } else {
            // Compared when it is opened next; until then nobody reads it.
            Some((start, epoch, size, true))
        };
        // It is gone, or cannot be opened: what is dirty is kept, and pushing it will say why.
        let (at, epoch, size, same) = found.unwrap_or((start, epoch, size, false));
        let mut dropped: Vec<PageRange> = Vec::new();
        let mut zeroed: Vec<ByteRange> = Vec::new();
        let cut = region.update(|inner| {
            if restarted {
                // Once more: the run before may have answered a push meanwhile.
                inner.restore_lost();
            }
            inner.generation = at.generation;
            (inner.core).handle_reattached(at.tick, epoch, size, same, &mut dropped, &mut zeroed);
            inner.zero(&zeroed)
        });
        region.report_cut(cut);
        if !same {
            self.drop_pages(node, ByteRange::new(0, u64::MAX));
        }
    }

    /// Opens a region anew at an authority that does not know this replica; tells whether the content is
    /// what it was.
    async fn reopen(
        self: &Arc<Self>,
        session: &Session,
        node: &Arc<Node>,
        region: &Arc<Region>,
    ) -> Option<(Moment, crate::region::Epoch, u64, bool)> {
        let writers = region.look(|inner| inner.writers > 0 || inner.core.dirty_pages() > 0);
        let access = if writers { Access::Write } else { Access::Read };
        let request = Request::Read(ReadRequest::Open {
            node: node.to_wire().ok()?,
            access,
        });
        let reply = super::link::exchange(session, &request).await.ok()?;
        let (at, answer) = super::link::answer_of(session, reply).ok()?;
        let Answer::Opened {
            handle,
            attr,
            epoch,
            ..
        } = answer
        else {
            return None;
        };
        let generation = session.generation;
        *region.remote.lock().await = Some(super::region::Remote {
            handle,
            access,
            generation,
        });
        let same = node.adopt(&attr, at);
        Some((at, epoch, attr.size, same))
    }
}
