//! Room for copies: `--cache-size` is what all copies of a mount take on disk, with their page maps.
//!
//! ```text
//! 0            5/8     3/4     7/8      1
//! ├─────────────┼───────┼───────┼───────┤
//!               │       │       └ above: clean parts of files in use are punched out, down to 3/4
//!               │       └ above: nothing is pulled ahead, and copies of closed files go, down to 5/8
//! ```
//!
//! What was used longest ago goes first: closed files by when they were closed, open ones by when they were opened,
//! and in an open file the chunks that nobody has read since a hand went over them (the "clock" of page
//! replacement). Dirty pages never go; so that they leave room, writers wait while half of it is dirty.
//!
//! Where the disk turns out to be smaller than that, what they take at that moment counts as 1, until there is more free.
//!
//! What copies take is asked for when a pull or a push has ended, never by walking the disk; only what an earlier
//! mount left is looked through once, in the background.

use super::{Cache, Idle, parse_stem};
use crate::node::replica::Shared;
use crate::node::replica::copies::is_idle;
use crate::node::replica::inner::Inner;
use crate::node::replica::nodes::Node;
use crate::node::replica::region::Region;
use crate::region::PageSet;
use crate::store::Result;
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::FileId;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The least that copies may take, whatever is asked for.
pub const ROOM_BYTES_MIN: u64 = 8 << 20;
/// What is punched out at once of a file in use, and read before it may be again.
const CHUNK_BYTES: u64 = 1 << 20;
/// Chunks looked at under one hold of a region's lock.
const CHUNKS_AT_ONCE: usize = 16;

/// Which chunks of a copy were read since a hand went over them.
#[derive(Default)]
pub(in crate::node::replica) struct Clock {
    read: Vec<AtomicU64>,
    /// Where it goes on.
    hand: u64,
}

impl Clock {
    /// Makes room for a copy of so many bytes.
    pub fn extend(&mut self, bytes: u64) {
        let words = bytes.div_ceil(CHUNK_BYTES * 64) as usize;
        if words > self.read.len() {
            self.read.resize_with(words, AtomicU64::default);
        }
    }

    /// A range is being read.
    pub fn note(&self, range: ByteRange) {
        for chunk in range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES) {
            if let Some(word) = self.read.get((chunk / 64) as usize) {
                let bit = 1 << (chunk % 64);
                if word.load(Ordering::Relaxed) & bit == 0 {
                    word.fetch_or(bit, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether a chunk was read; it counts as not read from here on.
    fn pass(&self, chunk: u64) -> bool {
        let bit = 1 << (chunk % 64);
        let word = self.read.get((chunk / 64) as usize);
        word.is_some_and(|word| word.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }
}

impl Inner {
    /// Punches out the next chunk of clean pages that was not read lately. False at the end of the copy, from
    /// where it begins anew, and where somebody reads the copy itself.
    fn evict(&mut self) -> Result<bool> {
        if self.is_read_directly() {
            return Ok(false);
        }
        let Some((start, _)) = self.copy.next_data(self.clock.hand) else {
            self.clock.hand = 0;
            return Ok(false);
        };
        let chunk = start / CHUNK_BYTES;
        self.clock.hand = (chunk + 1) * CHUNK_BYTES;
        if self.clock.pass(chunk) {
            return Ok(true);
        }
        let range = ByteRange::new(chunk * CHUNK_BYTES, self.clock.hand);
        let mut dropped = Vec::new();
        self.core.handle_forget(range, &mut dropped);
        let dirty: &PageSet = self.core.unpushed();
        let clean: Vec<PageRange> = dirty.gaps_in(range.pages_touched()).collect();
        self.punch(&clean)?;
        Ok(true)
    }
}

impl Region {
    /// Punches out clean parts until `enough`, which is asked now and then.
    fn trim(self: &Arc<Self>, shared: &Arc<Shared>, enough: impl Fn() -> bool) {
        // Once around takes the marks away, so twice is enough to take everything.
        let mut rounds = 0;
        while rounds < 3 && !enough() {
            let mut goes_on = true;
            for _ in 0..CHUNKS_AT_ONCE {
                match self.update(Inner::evict) {
                    Ok(true) => {}
                    Ok(false) => {
                        rounds += 1;
                        break;
                    }
                    Err(errno) => {
                        tracing::warn!(
                            "{:?}: no room can be made: {errno}",
                            self.node.path_or_unnamed()
                        );
                        goes_on = false;
                        break;
                    }
                }
            }
            self.count_copy(shared);
            if !goes_on {
                return;
            }
        }
    }
}

impl Cache {
    /// Looks through what earlier mounts left. Returns the bytes it takes.
    fn look_through(&self) -> u64 {
        self.bound_paths();
        let mut total = 0;
        let entries = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            let name = entry.file_name();
            let Some((stem, "copy")) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Some(id) = parse_stem(stem) else { continue };
            let (copy, map) = (entry.metadata(), self.path(id, "map").symlink_metadata());
            let mut state = self.state.lock();
            if state.in_use.contains_key(&id) || state.idle.contains_key(&id) {
                continue;
            }
            match (copy, map) {
                (Ok(copy), Ok(map)) => {
                    let bytes = (copy.blocks() + map.blocks()) * 512;
                    let used = copy.mtime().max(map.mtime()).max(0) as u64;
                    state.idle.insert(id, Idle { bytes, used });
                    total += bytes;
                }
                // Without a map nothing of it counts.
                (Ok(_), Err(_)) => drop(std::fs::remove_file(entry.path())),
                _ => {}
            }
        }
        total
    }

    /// Removes the copy that was used longest ago of those that nobody uses and that have nothing dirty. Returns
    /// the bytes it took; `None` if there is none.
    fn remove_oldest(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let may_go = |id: &FileId| !self.path(*id, "open").exists();
        let mut idle: Vec<(u64, FileId)> = state
            .idle
            .iter()
            .map(|(id, idle)| (idle.used, *id))
            .collect();
        idle.sort_by_key(|(used, _)| *used);
        let (_, id) = idle.into_iter().find(|(_, id)| may_go(id))?;
        let Idle { bytes, .. } = state.idle.remove(&id)?;
        for kind in ["map", "copy"] {
            if let Err(error) = std::fs::remove_file(self.path(id, kind)) {
                tracing::debug!("{}: {error}", self.path(id, kind).display());
            }
        }
        Some(bytes)
    }
}

impl Shared {
    /// What copies may take.
    fn room(&self) -> u64 {
        let asked_for = self.options.cache_bytes_max.max(ROOM_BYTES_MIN);
        asked_for.min(self.disk_bytes.load(Ordering::Relaxed))
    }

    /// A copy could not be written, as its disk is full: what copies take now is more than they may, so some
    /// are given up. Whether there was anything to give up.
    pub(in crate::node::replica) async fn disk_is_full(self: &Arc<Self>) -> bool {
        let shared = self.clone();
        let made = self.runtime.spawn_blocking(move || {
            for region in shared.regions() {
                region.count_copy(&shared);
            }
            let taken = shared.copy_bytes.load(Ordering::Relaxed);
            if shared.disk_bytes.swap(taken, Ordering::Relaxed) == u64::MAX {
                tracing::warn!(
                    "the disk of the cache is full: {taken} bytes are all that copies can take"
                );
            }
            // Of what they take, though the disk may seem to have room meanwhile: it was not enough.
            shared.make_room_now(taken);
            shared.copy_bytes.load(Ordering::Relaxed) < taken
        });
        made.await.unwrap_or(false)
    }

    /// A disk that was full may have room again.
    fn look_at_disk(&self) {
        let known = self.disk_bytes.load(Ordering::Relaxed);
        let Some(folder) = self.options.cache.as_deref().filter(|_| known < u64::MAX) else {
            return;
        };
        if let Ok(disk) = rustix::fs::statvfs(folder) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let now = self.copy_bytes.load(Ordering::Relaxed).saturating_add(free);
            self.disk_bytes.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn takes(&self, eighths: u64) -> bool {
        self.takes_of(u64::MAX, eighths)
    }

    /// Whether copies take more than so many eighths of `most`, and of what they may.
    fn takes_of(&self, most: u64, eighths: u64) -> bool {
        self.copy_bytes.load(Ordering::Relaxed) > self.room().min(most) / 8 * eighths
    }

    /// Whether what nobody has asked for may be pulled.
    pub(in crate::node::replica) fn may_pull_ahead(&self) -> bool {
        // Nor what a store waits for.
        self.options.background && !self.takes(6) && self.disk_turn.try_lock().is_ok()
    }

    /// How many bytes may be dirty before writers wait.
    pub(in crate::node::replica) fn dirty_bytes_max(&self) -> u64 {
        // One page at least: else nobody could store anything, and none would find out why.
        let most = self.options.dirty_bytes_max.min(self.room() / 2);
        most.max(PAGE_BYTES)
    }

    /// Counts what earlier mounts left, in the background.
    pub(in crate::node::replica) fn look_through_cache(self: &Arc<Self>) {
        if self.cache.is_some() {
            let shared = self.clone();
            self.runtime.spawn_blocking(move || {
                if let Some(cache) = &shared.cache {
                    shared.count_copies(0, cache.look_through());
                    shared.make_room();
                }
            });
        }
    }

    /// Gives up copies in the background, if they take too much.
    pub(in crate::node::replica) fn make_room(self: &Arc<Self>) {
        self.look_at_disk();
        if self.takes(6) && !self.making_room.swap(true, Ordering::AcqRel) {
            let shared = self.clone();
            self.runtime.spawn_blocking(move || {
                shared.make_room_now(u64::MAX);
                shared.making_room.store(false, Ordering::Release);
            });
        }
    }

    /// Gives up copies until they take no more than a part of `most`, and of what they may.
    fn make_room_now(self: &Arc<Self>, most: u64) {
        let takes = |eighths| self.takes_of(most, eighths);
        while takes(5) && self.remove_oldest() {}
        while takes(5) && self.give_up_oldest() {
            while takes(5) && self.remove_oldest() {}
        }
        if !takes(7) {
            return;
        }
        let mut regions = self.regions();
        regions.sort_by_key(|region| region.last_used());
        for region in regions {
            region.trim(self, || !takes(6));
        }
    }

    fn remove_oldest(&self) -> bool {
        let removed = self.cache.as_ref().and_then(Cache::remove_oldest);
        self.count_copies(removed.unwrap_or(0), 0);
        removed.is_some()
    }

    /// Closes the copy of the region that was used longest ago of those that nobody needs. False if there is none.
    fn give_up_oldest(&self) -> bool {
        let regions = self.regions.lock();
        let idle = (regions.values()).filter_map(|node| Some((node.idle_since()?, node.clone())));
        let Some((_, node)) = idle.min_by_key(|(used, _)| *used) else {
            return false;
        };
        drop(regions);
        self.give_up_idle(&node);
        true
    }

    /// Closes the copy of a region, if nobody needs it.
    pub(in crate::node::replica) fn give_up_idle(&self, node: &Node) {
        let mut regions = self.regions.lock();
        let mut slot = node.region.lock();
        if slot.as_ref().is_some_and(is_idle) {
            // Its end is under the lock of the slot: else it would take away the mark of the next one.
            *slot = None;
            regions.remove(&node.no);
        }
    }

    /// A copy is not used any more; it takes so many bytes.
    pub(in crate::node::replica) fn release_copy(&self, cache: &Cache, id: FileId, bytes: u64) {
        if cache.release(id, bytes) {
            self.count_copies(0, bytes);
        }
    }
}
