//! A new region's copy: taken up from an earlier mount where it is still good, or empty.
//!
//! ```text
//!  map and copy whole? ── no ──▶ empty
//!    │ yes
//!  stamp and epoch as recorded? ── yes ──▶ all its pages, dirty ones are pushed
//!    │ no
//!  dirty pages? ── yes ──▶ set aside as a conflict, empty
//!    │ no
//!    └──▶ no page is present, what the copy holds is old
//! ```
//!
//! Old pages are compared by hashes before they are pulled ([`crate::region::Replica::handle_old`]). Nothing about
//! them is recorded, and nothing need be true of them: they are what the copy holds and the map does not know,
//! whoever left it there. So a process may end in the midst of all this.
//!
//! From then on the base is recorded anew whenever the authority has told another stamp and it is sure that no
//! word of an older change is still on its way: the control stream brings all of those before the answer to a
//! renewal of the lease that was asked for later.

use super::map::{Base, PageMap};
use super::{Cache, FILE_BYTES_MAX, seconds_now};
use crate::node::replica::full::is_full;
use crate::node::replica::inner::Inner;
use crate::node::replica::nodes::Node;
use crate::node::replica::region::{Region, io_errno};
use crate::node::replica::{Era, Shared};
use crate::region::{Epoch, PageSet, Replica, Tick};
use crate::store::{Errno, Result};
use crate::sys::MappedFile;
use crate::units::{ByteRange, PAGE_BYTES, PageRange, pages_for};
use crate::wire::{Attr, Stamp};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What a copy holds from before.
#[derive(Default)]
struct Found {
    present: PageSet,
    dirty: PageSet,
    size: u64,
    /// May be the authority's.
    old: PageSet,
}

/// Runs of old pages of a copy: more are not looked for.
const OLD_RUNS_MAX: usize = 65_536;
/// A copy that takes no more than its present pages and this holds nothing old that is worth looking for.
const OLD_BYTES_MIN: u64 = 1 << 20;

/// Bases that are recorded as soon as a renewal is answered.
#[derive(Default)]
pub(in crate::node::replica) struct Recording {
    /// The renewal; 0: none is awaited.
    renewal: u64,
    bases: Vec<(Weak<Region>, Base)>,
    asked: Option<Instant>,
}

/// A renewal that is not answered for so long is asked for again.
const RENEWAL_MAX: std::time::Duration = std::time::Duration::from_secs(5);
/// So long the last records are waited for.
const FINISH_MAX: std::time::Duration = std::time::Duration::from_secs(2);

impl Shared {
    /// The state of a new region, with its copy. `core` has no page yet.
    pub(in crate::node::replica) fn new_inner(
        &self,
        node: &Node,
        attr: &Attr,
        (era, at): (Era, Tick),
        mut core: Replica,
    ) -> Result<Inner> {
        let generation = era.generation;
        let base = self.base_of(attr.stamp(), core.epoch(), era.boot, at);
        let kept = match &self.cache {
            Some(cache) if attr.size <= FILE_BYTES_MAX => self.keep(cache, node, &base),
            _ => None,
        };
        let Some((copy, map, found)) = kept else {
            return Ok(Inner::new(core, self.passing_copy()?, None, generation));
        };
        core.keep_record();
        if let Some(found) = &found {
            core.handle_restored(Instant::now(), &found.present, &found.dirty, found.size);
            core.handle_old(&found.old);
        }
        let mut inner = Inner::new(core, copy, Some(map), generation);
        // Mapped since an earlier mount, perhaps. Where that cannot be told it was not lent either.
        inner.lending.shared = inner.copy.is_in_use_elsewhere().unwrap_or(false);
        inner.begin_record(base)?;
        Ok(inner)
    }

    /// A copy that ends with this mount; in memory where the disk has no room for a file.
    fn passing_copy(&self) -> Result<MappedFile> {
        let on_disk = (self.options.cache.as_deref()).map(MappedFile::in_directory);
        let copy = on_disk.unwrap_or_else(MappedFile::in_memory);
        match copy.map_err(io_errno) {
            Err(errno) if is_full(errno) => MappedFile::in_memory().map_err(io_errno),
            copy => copy,
        }
    }

    fn keep(
        &self,
        cache: &Cache,
        node: &Node,
        base: &Base,
    ) -> Option<(MappedFile, PageMap, Option<Found>)> {
        let taken = self.try_keep(cache, node, base);
        taken.unwrap_or_else(|error| {
            let path = node.path_or_unnamed();
            tracing::warn!("{path:?}: its copy ends with this mount: {error}");
            None
        })
    }

    fn try_keep(
        &self,
        cache: &Cache,
        node: &Node,
        base: &Base,
    ) -> io::Result<Option<(MappedFile, PageMap, Option<Found>)>> {
        self.count_copies(cache.idle_bytes(node.id), 0);
        let mut kept = cache.take(node.id)?;
        let size = kept.map.size().max(base.stamp.size);
        let (present, dirty) = kept.map.pages(size);
        let of_this = |was: Base| was.stamp == base.stamp && was.epoch == base.epoch;
        if kept.map.base().is_some_and(of_this) {
            if !dirty.is_empty() && self.refuses_changes() {
                // They are for a mount that can push them.
                self.release_copy(cache, node.id, kept.bytes());
                return Ok(None);
            }
            let (known, takes) = (present.len() * PAGE_BYTES, kept.copy.allocated_bytes()?);
            let old = match takes > known.saturating_add(OLD_BYTES_MIN) {
                true => data_of(&kept.copy),
                false => PageSet::new(),
            };
            let found = Found {
                present,
                dirty,
                size: kept.map.size(),
                old,
            };
            return Ok(Some((kept.copy, kept.map, Some(found))));
        }
        if !dirty.is_empty() {
            if self.refuses_changes() {
                self.release_copy(cache, node.id, kept.bytes());
                return Ok(None);
            }
            if !self.set_aside(cache, node.id, "others have changed the file") {
                self.release_copy(cache, node.id, kept.bytes());
                return Ok(None);
            }
            kept = cache.make(node.id)?;
        }
        if kept.copy.is_empty() && present.is_empty() {
            return Ok(Some((kept.copy, kept.map, None)));
        }
        // Before anything that is there counts for what the file is now.
        let map = cache.make_map(node.id)?;
        let found = Found {
            old: data_of(&kept.copy),
            ..Found::default()
        };
        Ok(Some((kept.copy, map, Some(found))))
    }

    pub(in crate::node::replica) fn refuses_changes(&self) -> bool {
        self.options.read_only || self.server_read_only
    }

    fn base_of(&self, stamp: Stamp, epoch: Epoch, boot: u64, at: Tick) -> Base {
        Base {
            stamp,
            epoch,
            boot,
            at,
            client: self.link.client,
        }
    }

    /// Has the bases recorded of all regions of which another one is known than is recorded. Returns the
    /// renewal whose answer does it; `None` if there is nothing to record.
    pub(in crate::node::replica) fn record_bases(&self) -> Option<u64> {
        self.cache.as_ref()?;
        let mut recording = self.recording.lock();
        if recording
            .asked
            .is_some_and(|asked| asked.elapsed() < RENEWAL_MAX)
        {
            return Some(recording.renewal);
        }
        let era = self.era();
        let mut bases = Vec::new();
        for region in self.regions() {
            let Some((stamp, at)) = region.node.content() else {
                continue;
            };
            let base = region.look(|inner| {
                let known = inner.map.as_ref()?.base()?;
                let base = self.base_of(stamp, inner.core.epoch(), era.boot, at.tick);
                let other = Base {
                    at: at.tick,
                    ..known
                } != base;
                (other && at.generation == era.generation).then_some(base)
            });
            bases.extend(base.map(|base| (Arc::downgrade(&region), base)));
        }
        if bases.is_empty() {
            return None;
        }
        recording.bases = bases;
        recording.asked = Some(Instant::now());
        recording.renewal = self.link.renew_now();
        Some(recording.renewal)
    }

    /// There is another session, perhaps of another run of the authority, which knows nothing of the bases that are
    /// recorded: if this process ended now, its own pushes would look like others'.
    pub(in crate::node::replica) fn record_again(&self) {
        *self.recording.lock() = Recording::default();
        self.record_bases();
    }

    /// A renewal was answered, and all that the authority said before was taken in.
    pub(in crate::node::replica) fn settled(&self, renewal: u64) {
        let mut recording = self.recording.lock();
        if recording.asked.is_none() || renewal < recording.renewal {
            return;
        }
        let Recording { bases, .. } = std::mem::take(&mut *recording);
        drop(recording);
        for (region, base) in bases {
            if let Some(region) = region.upgrade() {
                region.update(|inner| {
                    if let Some(map) = &mut inner.map {
                        map.set_base(base);
                    }
                });
            }
        }
        self.bases_recorded.notify_waiters();
    }

    /// Records that a file is open for writing, and where it is.
    pub(in crate::node::replica) fn mark_writing(&self, region: &Arc<Region>) {
        let Some(cache) = &self.cache else { return };
        if region.look(|inner| inner.marked || inner.map.is_none()) {
            return;
        }
        let path = region.node.path();
        let marked = cache.mark_writing(region.node.id);
        region.update(|inner| {
            inner.marked = marked.is_ok();
            if let (Some(map), Ok(path)) = (&mut inner.map, &path) {
                map.set_path(path);
            }
        });
        if let Err(error) = marked {
            tracing::warn!("{path:?}: what is not pushed yet will not outlive this mount: {error}");
        }
    }

    /// Names have changed: records where files are that may have something dirty.
    pub(in crate::node::replica) fn record_paths(&self) {
        if self.cache.is_none() {
            return;
        }
        for region in self.regions() {
            if region.look(|inner| inner.marked)
                && let Ok(path) = region.node.path()
            {
                region.update(|inner| {
                    if let Some(map) = &mut inner.map {
                        map.set_path(&path);
                    }
                });
            }
        }
    }
}

/// Pages of a copy that are no holes.
fn data_of(copy: &MappedFile) -> PageSet {
    let (mut data, mut from) = (PageSet::new(), 0);
    while data.run_count() < OLD_RUNS_MAX
        && let Some((start, end)) = copy.next_data(from)
    {
        data.insert(ByteRange::new(start, end).pages_touched());
        from = end.max(from + 1);
    }
    data
}

impl Inner {
    /// The copy is one of `base` from here on: what it holds past the end is made zero, and what is recorded of
    /// it is made true.
    fn begin_record(&mut self, base: Base) -> Result<()> {
        self.note_touched();
        let core = &self.core;
        let (known, end) = (core.base_size(), core.size());
        let mut stale = vec![ByteRange::new(end, u64::MAX)];
        let beyond = PageRange::new(known / PAGE_BYTES, pages_for(end));
        for gap in core.unpushed().gaps_in(beyond) {
            let bytes = gap.bytes();
            stale.push(ByteRange::new(bytes.start.max(known), bytes.end));
        }
        let Some(map) = &mut self.map else {
            return Err(Errno::IO);
        };
        let all = PageRange::new(0, u64::MAX);
        map.note(all, self.core.present(), self.core.unpushed());
        map.set_size(end);
        map.set_copy_bytes(self.copy.len());
        map.set_used(seconds_now());
        self.zero(&stale)?;
        if let Some(map) = &mut self.map {
            map.set_base(base);
        }
        Ok(())
    }
}

impl Shared {
    /// Has everything recorded that is known, as far as the authority still answers.
    pub(in crate::node::replica) async fn finish_recording(&self) {
        let recorded = async {
            // One round may have been under way that did not know everything.
            while self.record_bases().is_some() {
                let told = self.bases_recorded.notified();
                if self.recording.lock().asked.is_some() {
                    told.await;
                }
            }
        };
        let _ = tokio::time::timeout(FINISH_MAX, recorded).await;
    }
}

impl crate::node::replica::Replica {
    /// Makes the copies outlive this mount, and the end of the machine.
    pub(in crate::node::replica) async fn close_cache(&self) {
        let shared = self.shared.clone();
        let Some(cache) = &shared.cache else { return };
        for region in shared.regions() {
            if region.look(|inner| inner.marked && !inner.is_pushing()) {
                region.update(|inner| inner.marked = false);
                cache.unmark_writing(region.node.id);
            }
        }
        let blocking = shared.clone();
        let finished = tokio::task::spawn_blocking(move || {
            if let Some(cache) = &blocking.cache {
                cache.finish();
            }
        });
        let _ = finished.await;
    }
}
