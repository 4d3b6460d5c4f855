//! Which regions there are, the authority's handles of them, and which local copies are kept.

use super::files::OpenFile;
use super::learn::Telling;
use super::link::Moment;
use super::mode::Mode;
use super::nodes::Node;
use super::region::{Region, Remote};
use super::transfer::{self, Broken};
use super::{HandleNo, NodeNo, Replica, Shared};
use crate::region::{Epoch, ReplicaConfig};
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use crate::wire::{Access, Answer, Attr, HandleId, Pages, ReadRequest};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of background pulls of one region under way at once.
const BACKGROUND_BYTES: u64 = 16 << 20;
/// Bytes of one background pull.
const PULL_BYTES: u64 = 1 << 20;
/// How far a demand pull is widened ahead of a sequential reader.
const READ_AHEAD_BYTES: u64 = 2 << 20;
/// Closed regions whose state is kept, at most; with a cache on disk the copies of the others are kept there.
const CLOSED_MAX: usize = 1024;
/// Descriptors that are not for regions.
const DESCRIPTORS_SPARE: u64 = 40;
/// Descriptors of a region: its copy, its map, and what an authority within this process has open.
const REGION_DESCRIPTORS: u64 = 3;

/// How many regions there may be at one time, so that other things still find a descriptor.
pub(super) fn regions_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let regions = limit.saturating_sub(DESCRIPTORS_SPARE) / REGION_DESCRIPTORS;
    usize::try_from(regions).unwrap_or(usize::MAX).max(4)
}

/// A handle of the authority that is to be closed.
struct Parting {
    remote: Remote,
    /// Of this region.
    region: Option<Arc<Region>>,
    /// To be told before.
    touched: Vec<Pages>,
    /// If there is anything to tell.
    _telling: Option<Telling>,
}

impl Shared {
    /// The region of a file, made if there is none; `None` where the answer that told of the file is one of an
    /// earlier session.
    pub(super) fn region_of(
        self: &Arc<Self>,
        node: &Arc<Node>,
        attr: &Attr,
        epoch: Epoch,
        at: Moment,
    ) -> Result<Option<Arc<Region>>> {
        self.find_heritage(node, attr);
        if let Some(region) = &*node.region.lock() {
            return Ok(Some(region.clone()));
        }
        if self.regions.lock().len() >= self.regions_max {
            self.close_copies(0);
            if self.regions.lock().len() >= self.regions_max {
                return Err(Errno::MFILE);
            }
        }
        let mut slot = node.region.lock();
        if let Some(region) = &*slot {
            return Ok(Some(region.clone()));
        }
        // Under the lock of the slot, where a session that begins now looks for regions afterwards.
        let era = self.era();
        if era.generation != at.generation {
            return Ok(None);
        }
        let config = ReplicaConfig {
            background: self.options.background,
            background_bytes_max: BACKGROUND_BYTES,
            pull_bytes_max: PULL_BYTES,
            read_ahead_bytes_max: READ_AHEAD_BYTES,
        };
        let core = crate::region::Replica::new(attr.size, at.tick, epoch, config);
        let mut inner = self.new_inner(node, attr, (era, at.tick), core)?;
        let stale_until = node.stale_until();
        if stale_until > at {
            // The answer that told the size is older than a change that was announced meanwhile.
            let whole = ByteRange::new(0, u64::MAX);
            inner.invalidate(stale_until, whole, &mut Vec::new());
        }
        let region = Arc::new(Region::new(node.clone(), self, inner));
        *slot = Some(region.clone());
        drop(slot);
        self.regions.lock().insert(node.no, node.clone());
        region.count_copy(self);
        Ok(Some(region))
    }

    /// The authority's handle of a node's region, if there is one of this session.
    pub(super) async fn remote_handle(&self, node: &Arc<Node>) -> Option<HandleId> {
        self.remote_handle_for(node, Access::Read).await
    }

    pub(super) async fn remote_handle_for(
        &self,
        node: &Arc<Node>,
        access: Access,
    ) -> Option<HandleId> {
        let region = node.region.lock().clone()?;
        let session = self.link.session().await.ok()?;
        let remote = *region.remote.lock().await;
        let current =
            |remote: &Remote| remote.generation == session.generation && remote.access >= access;
        remote.filter(current).map(|remote| remote.handle)
    }

    /// The authority's handle of a region, opened if need be.
    pub(super) async fn handle_of(
        self: &Arc<Self>,
        region: &Arc<Region>,
        access: Access,
    ) -> Result<HandleId> {
        let mut session = self.link.session().await?;
        loop {
            match transfer::remote(self, region, &session, access).await {
                Ok(handle) => return Ok(handle),
                Err(Broken::Errno(errno)) => return Err(errno),
                Err(Broken::Stream(error)) => {
                    session = self.link.recover(&session, error).await?;
                }
            }
        }
    }

    /// Closes a handle at the authority; nobody waits.
    pub(super) fn close_remote(self: &Arc<Self>, remote: Remote) {
        self.close_later(Parting {
            remote,
            region: None,
            touched: Vec::new(),
            _telling: None,
        });
    }

    fn close_later(self: &Arc<Self>, parting: Parting) {
        let shared = self.clone();
        self.runtime
            .spawn(async move { shared.close_now(parting).await });
    }

    /// Closes a handle at the authority, which is told first what was touched.
    async fn close_now(&self, parting: Parting) {
        let remote = parting.remote;
        if let Some(session) = self.link.session_now()
            && session.generation == remote.generation
        {
            self.tell(&session, remote.handle, parting.touched).await;
            if let Some(region) = &parting.region {
                region.touches.told().await;
            }
            // Lost with its connection: the authority closes what its session leaves behind.
            let request = ReadRequest::Close {
                handle: remote.handle,
            };
            let _ = super::link::exchange(&session, &crate::wire::Request::Read(request)).await;
        }
    }

    /// A file may have lost its last user, or its last name; nobody waits.
    pub(super) fn forget_if_unlinked(self: &Arc<Self>, node: &Arc<Node>) {
        if let Some(region) = unused_and_dirty(node)
            && node.has_no_place()
        {
            let (shared, node) = (self.clone(), node.clone());
            self.runtime
                .spawn(async move { shared.forget_unlinked(&node, &region).await });
        }
    }

    /// A file has lost a name. If it was the last one, what it takes at the authority is free when this returns.
    pub(super) async fn unlinked(self: &Arc<Self>, node: &Arc<Node>) {
        if let Some(region) = unused_and_dirty(node) {
            self.forget_unlinked(node, &region).await;
        }
    }

    /// A file may have lost its last name and its last user. What is dirty of it then is nobody's any more:
    /// it need not be pushed, and its handle keeps it alive at the authority for nothing.
    async fn forget_unlinked(self: &Arc<Self>, node: &Arc<Node>, region: &Arc<Region>) {
        let hold = region.hold_pushes().await;
        let handle = self.remote_handle(node).await;
        let request = ReadRequest::GetAttr {
            node: node.to_wire_open(),
            handle,
        };
        if let (Some(_), Ok((at, Answer::Attr(attr)))) = (handle, self.link.read(request).await) {
            node.saw(at);
            if attr.nlink == 0
                && region.look(|inner| inner.opens == 0)
                && let Err(errno) = region.update(|inner| inner.resized(at, 0, &mut Vec::new()))
            {
                tracing::error!("the local copy of an unlinked file cannot be cut: {errno}");
            }
        }
        drop(hold);
        if let Some(parting) = self.part_if_idle(region) {
            self.close_now(parting).await;
        }
    }

    /// Closes the authority's handle of a region that nobody needs it for.
    pub(super) fn close_remote_if_idle(self: &Arc<Self>, region: &Arc<Region>) {
        if let Some(parting) = self.part_if_idle(region) {
            self.close_later(parting);
        }
        // The kernel may have forgotten it while it was busy.
        let node = &region.node;
        if node.lookups.load(Ordering::Relaxed) == 0
            && let Some(node) = self.nodes.unrefer(node.no, 0)
        {
            self.forgotten(&[node]);
        }
    }

    /// Takes the authority's handle of a region, if nobody needs it any more.
    fn part_if_idle(self: &Arc<Self>, region: &Arc<Region>) -> Option<Parting> {
        // Whoever holds the lock uses the handle, and comes here afterwards. It is held until all is taken: else
        // the end of the mount might find nothing to tell, and nobody telling it.
        let mut remote = region.remote.try_lock().ok()?;
        if region.is_busy() {
            return None;
        }
        let taken = remote.take()?;
        let touched = region.touches.take();
        Some(Parting {
            remote: taken,
            region: Some(region.clone()),
            _telling: (!touched.is_empty()).then(|| Telling::new(self)),
            touched,
        })
    }

    pub(super) fn new_file(&self, file: OpenFile) -> HandleNo {
        let handle = self.new_handle();
        self.files.write().insert(handle, Arc::new(file));
        handle
    }

    /// Closes copies of closed files where there are many.
    pub(super) fn give_up_copies(&self) {
        let most = CLOSED_MAX.min(self.regions_max / 2);
        if self.regions.lock().len() > most {
            // A quarter at a time, so that this is not done for each file that is closed.
            self.close_copies(most * 3 / 4);
        }
    }

    /// Closes copies of closed files, oldest first, but for so many.
    fn close_copies(&self, kept: usize) {
        let mut regions = self.regions.lock();
        let mut idle: Vec<_> = (regions.values())
            .filter_map(|node| Some((node.idle_since()?, node.clone())))
            .collect();
        idle.sort_by_key(|(used, _)| *used);
        let surplus = idle.len().saturating_sub(kept);
        for (_, node) in idle.into_iter().take(surplus) {
            let mut slot = node.region.lock();
            if slot.as_ref().is_some_and(is_idle) {
                *slot = None;
                regions.remove(&node.no);
            }
        }
    }
}

impl Replica {
    /// Drops what is clean of a file, here and in the kernel. `BUSY` where a program reads the copy itself.
    pub async fn drop_copy(&self, node: NodeNo) -> Result<()> {
        let node = self.shared.nodes.get(node)?;
        self.bounded(self.shared.flush_node(&node)).await?;
        let whole = ByteRange::new(0, u64::MAX);
        if let Some(region) = node.region.lock().clone() {
            let mut dropped = Vec::new();
            region.update(|inner| {
                if inner.is_read_directly() {
                    return Err(Errno::BUSY);
                }
                inner.core.handle_forget(whole, &mut dropped);
                inner.punch(&dropped)
            })?;
            region.count_copy(&self.shared);
        }
        self.shared.drop_pages(&node, whole);
        Ok(())
    }

    /// Opens a file that was opened before, without asking. `None` where it is not known whether the copy was good when
    /// the link was lost.
    pub(super) async fn open_copy(&self, node: &Arc<Node>, mode: Mode) -> Option<(HandleNo, bool)> {
        node.cached_attr()?;
        let region = node.region.lock().clone()?;
        let handle = self.open_region(node, region, mode).await;
        Some((handle, self.shared.kernel_may_keep(node)))
    }
}

impl Node {
    /// When its region was last used, if it has one that nobody needs.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let slot = self.region.lock();
        let region = slot.as_ref().filter(|region| is_idle(region))?;
        Some(region.last_used())
    }
}

/// Whether nobody needs a region, asked under the lock of its slot: who has found it there and is about to open it
/// holds it.
pub(super) fn is_idle(region: &Arc<Region>) -> bool {
    Arc::strong_count(region) == 1 && !region.is_busy()
}

/// The region of a file that no program has open, if something is dirty of it.
fn unused_and_dirty(node: &Node) -> Option<Arc<Region>> {
    let region = node.region.lock().clone()?;
    let unused = region.look(|inner| inner.opens == 0 && inner.core.dirty_pages() > 0);
    unused.then_some(region)
}
