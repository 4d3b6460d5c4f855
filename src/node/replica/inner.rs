//! What a region's lock guards: the core's state, the local copy with its page map, and who waits.
//!
//! The page map follows the core in an order that keeps it true wherever the process ends:
//!
//! | | first | then |
//! |---|---|---|
//! | bytes that arrive | bytes | present |
//! | a store | dirty, bytes | present |
//! | pages that are dropped, or past the end | absent | a hole |

use super::cache::map::{PUSHES_MAX, PageMap};
use super::cache::room::Clock;
use super::lending::Lending;
use super::link::Moment;
use super::refused::Refusal;
use super::region::io_errno;
use super::unsynced::{SyncId, Unsynced};
use crate::region::{ComparisonId, FlushId, PullId, Push, PushId, Replica, Tick, WaiterId};
use crate::store::Result;
use crate::sys::MappedFile;
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::Stamp;
use std::collections::HashMap;
use std::time::Instant;
use tokio::sync::oneshot;

/// Room for reading and storing in local copies, so that no more of a large file is allotted than is used.
const COPY_STEP_BYTES: u64 = 1 << 20;

/// What the lock guards.
pub(super) struct Inner {
    pub core: Replica,
    pub copy: MappedFile,
    /// What is recorded of the copy, where it outlives this mount.
    pub map: Option<PageMap>,
    /// Which parts of the copy were read lately.
    pub clock: Clock,
    /// It is recorded that there may be dirty pages.
    pub marked: bool,
    pub waiters: HashMap<WaiterId, oneshot::Sender<Result<()>>>,
    pub flushes: HashMap<FlushId, oneshot::Sender<Result<()>>>,
    /// Pushes are to be made now and not at the next interval.
    pub push_now: bool,
    /// The newest push was refused.
    pub refusal: Option<Refusal>,
    /// What stores of programs touch that wait for something.
    pub storing: Vec<PageRange>,
    /// Of the session that the core knows of, with its ticks, and that its pushes are meant for.
    pub generation: u64,
    /// Pushed, and not known to survive the authority's machine.
    pub unsynced: Unsynced,
    /// No push may begin: the size is being changed.
    pub hold: u32,
    /// Changes of the size under way: what is stored meanwhile would be cut off, or not, and nobody could tell. The kernel
    /// lets nobody store then, unless who changes the size was killed.
    pub resizing: u32,
    pub pushes: usize,
    pub pulls: usize,
    pub comparisons: usize,
    /// Handles open on this mount; those of them open for writing; those of which there may be a mapping that is
    /// stored through.
    pub opens: u32,
    pub writers: u32,
    pub mappers: u32,
    /// What is touched is to be seen: the kernel is not given what comes in the background.
    pub learning: bool,
    /// The kernel thread is putting pages: nobody may begin to write meanwhile.
    pub putting: bool,
    /// How the kernel has it open.
    pub lending: Lending,
    /// Pushes under way, as they are recorded.
    pushing: [Option<PushId>; PUSHES_MAX],
    /// When the newest answered push was applied.
    pushed_at: Moment,
    pub dirty_counted: u64,
    pub allocated_counted: u64,
}

impl Inner {
    pub fn new(core: Replica, copy: MappedFile, map: Option<PageMap>, generation: u64) -> Inner {
        Inner {
            core,
            copy,
            map,
            clock: Clock::default(),
            marked: false,
            waiters: HashMap::new(),
            flushes: HashMap::new(),
            push_now: false,
            refusal: None,
            storing: Vec::new(),
            generation,
            unsynced: Unsynced::default(),
            hold: 0,
            resizing: 0,
            pushes: 0,
            pulls: 0,
            comparisons: 0,
            opens: 0,
            writers: 0,
            mappers: 0,
            learning: false,
            putting: false,
            lending: Lending::default(),
            pushing: [None; PUSHES_MAX],
            pushed_at: Moment::start(generation),
            dirty_counted: 0,
            allocated_counted: 0,
        }
    }

    pub fn is_busy(&self) -> bool {
        let transfers = self.pushes + self.pulls + self.comparisons;
        self.opens > 0 || self.core.dirty_pages() > 0 || transfers > 0
    }

    /// Makes the copy reach to `end`, by steps.
    pub fn ensure_room(&mut self, end: u64) -> Result<()> {
        if end > self.copy.len() {
            let step = COPY_STEP_BYTES.max((end / 4) & !(COPY_STEP_BYTES - 1));
            let stepped = end.checked_next_multiple_of(step).unwrap_or(end);
            let len = stepped.min(self.core.size().max(end).next_multiple_of(PAGE_BYTES));
            self.set_copy_len(len)?;
        }
        self.clock.extend(self.copy.len());
        Ok(())
    }

    /// Cuts the copy off, or extends it with a hole.
    pub fn set_copy_len(&mut self, len: u64) -> Result<()> {
        if len == self.copy.len() {
            return Ok(());
        }
        self.own_copy()?;
        if let Some(map) = self.map.as_mut().filter(|map| len < map.copy_bytes()) {
            map.set_copy_bytes(len); // first: a copy that is too short is not believed
        }
        self.copy.set_len(len).map_err(io_errno)?;
        if let Some(map) = &mut self.map {
            map.set_copy_bytes(len);
        }
        Ok(())
    }

    /// Copies bytes of the copy, zeroes where it does not reach, in place of what the buffer holds.
    pub fn copy_out(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.clear();
        let here = range.intersect(ByteRange::new(0, self.copy.len()));
        let len = here.len() as usize;
        let copied = self
            .copy
            .with_bytes(here.start.min(self.copy.len()), len, |bytes| {
                buffer.extend_from_slice(bytes)
            });
        buffer.resize(range.len() as usize, 0);
        copied.map_err(io_errno)
    }

    /// Stores bytes that the core can take, and tells it.
    pub fn store(&mut self, range: ByteRange, bytes: &[u8]) -> Result<()> {
        if self.core.dirty_pages() == 0 {
            self.refusal = None; // what was refused is nobody's any more
        }
        self.ensure_room(range.end)?;
        self.own_copy()?;
        if let Some(map) = &mut self.map {
            let size = self.core.size().max(range.end);
            map.begin_store(range.pages_touched(), size)
                .map_err(io_errno)?;
        }
        if let Err(error) = self.copy.write_at(bytes, range.start) {
            // Some of it may have been written: what was clean is not any more what it was.
            self.drop_clean(range);
            self.note_pages(range.pages_touched());
            return Err(io_errno(error));
        }
        self.core.handle_stored(Instant::now(), range);
        Ok(())
    }

    /// Whether nothing is to be pushed that nobody waits for, as the last push was refused.
    pub fn rests(&self) -> bool {
        (self.refusal).is_some_and(|refusal| refusal.rests(Instant::now()))
    }

    /// Whether a store waits that touches this: the kernel has it already, and must not read what was there before.
    pub fn is_storing(&self, range: ByteRange) -> bool {
        let touches = |pages: &PageRange| !pages.intersect(range.pages_touched()).is_empty();
        self.storing.iter().any(touches)
    }

    /// A push begins.
    pub fn begin_push(&mut self, push: &Push) {
        let free = self.pushing.iter().position(Option::is_none);
        let first = push.extents.first();
        if let (Some(map), Some(slot), Some(first)) = (&mut self.map, free, first) {
            self.pushing[slot] = Some(push.id);
            map.set_push(slot, first.pages_touched());
        }
    }

    /// The authority has taken a push then, and the file was like that afterwards.
    pub fn taken(&mut self, at: Moment, stamp: Stamp) {
        if let Some(map) = &mut self.map
            && at > self.pushed_at
        {
            self.pushed_at = at;
            map.set_pushed(stamp);
        }
    }

    /// A push has ended, well or not.
    pub fn end_push(&mut self, push: PushId) {
        let slot = self.pushing.iter().position(|slot| *slot == Some(push));
        if let (Some(map), Some(slot)) = (&mut self.map, slot) {
            self.pushing[slot] = None;
            map.set_push(slot, PageRange::new(0, 0));
        }
    }

    /// Brings the page map up to date with what the core has done since.
    pub fn note_touched(&mut self) {
        while let Some(pages) = self.core.poll_touched() {
            self.note_pages(pages);
        }
    }

    fn note_pages(&mut self, pages: PageRange) {
        if let Some(map) = &mut self.map {
            map.note(pages, self.core.present(), self.core.unpushed());
            if map.size() != self.core.size() {
                map.set_size(self.core.size());
            }
        }
    }

    /// Lands bytes of a pull: those of them that are wanted go into the copy. `pieces` are the bytes from
    /// `range.start` on. Nobody is told of any where not all can be written.
    pub fn land(
        &mut self,
        pull: PullId,
        at: Moment,
        range: ByteRange,
        pieces: &[bytes::Bytes],
        wanted: &mut Vec<ByteRange>,
    ) -> Result<()> {
        wanted.clear();
        self.ensure_room(range.end)?;
        self.wanted(pull, at, range, wanted);
        self.clock.note(range);
        for &part in wanted.iter() {
            let slices = slices_of(pieces, part.start - range.start, part.len());
            self.own_copy()?;
            let written = self.copy.write_pieces_at(&slices, part.start);
            written.map_err(io_errno)?;
        }
        self.landed(wanted);
        Ok(())
    }

    /// Lands zeroes.
    pub fn land_zeroes(
        &mut self,
        pull: PullId,
        at: Moment,
        range: ByteRange,
        wanted: &mut Vec<ByteRange>,
    ) -> Result<()> {
        wanted.clear();
        self.wanted(pull, at, range, wanted);
        // Past the copy's end there is nothing but a hole to come.
        (wanted.iter()).try_for_each(|&part| self.punch_bytes(part))?;
        self.landed(wanted);
        Ok(())
    }

    fn wanted(&self, pull: PullId, at: Moment, range: ByteRange, wanted: &mut Vec<ByteRange>) {
        if let Some(at) = self.tick(at) {
            self.core.wanted(pull, at, range, wanted);
        }
    }

    fn landed(&mut self, parts: &[ByteRange]) {
        self.core.handle_landed(parts);
        for part in parts {
            self.unsynced.arrived(part.pages_touched());
        }
    }

    /// Bytes that the copy and its page map take.
    pub fn allocated_bytes(&self) -> u64 {
        let map = self.map.as_ref().map_or(0, PageMap::allocated_bytes);
        let copy = self.copy.allocated_bytes();
        copy.map_or(self.allocated_counted, |copy| copy + map)
    }

    /// Whether the authority's handle of it is needed: a program has it open, or something is dirty.
    pub fn is_open(&self) -> bool {
        self.opens > 0 || self.core.dirty_pages() > 0
    }

    /// Whether stores are on their way, or still to go.
    pub fn is_pushing(&self) -> bool {
        self.pushes > 0 || self.core.dirty_pages() > 0
    }

    /// When on the core's clock; `None` for what another session has told.
    fn tick(&self, at: Moment) -> Option<Tick> {
        (at.generation == self.generation).then_some(at.tick)
    }

    /// The authority's size, from an answer made at `at`. What lies past a smaller one reads as zeroes
    /// should the region grow again.
    pub fn adopt_size(&mut self, at: Moment, size: u64) -> Result<()> {
        let Some(at) = self.tick(at) else {
            return Ok(());
        };
        let mut zeroed = Vec::new();
        self.core.handle_size(at, size, &mut zeroed);
        self.zero(&zeroed)
    }

    /// The authority had these bytes at `at`; returns how many pages are present by that.
    pub fn confirmed(&mut self, comparison: ComparisonId, at: Moment, range: ByteRange) -> u64 {
        let at = self.tick(at);
        at.map_or(0, |at| self.core.handle_confirmed(comparison, at, range))
    }

    /// Somebody else, or a request of this mount's, has changed bytes at `at`.
    pub fn invalidate(&mut self, at: Moment, range: ByteRange, dropped: &mut Vec<PageRange>) {
        // What this session tells is newer than what an older one has told of.
        let at = self.tick(at).unwrap_or_default();
        self.core.handle_invalidate(at, range, dropped);
    }

    /// A sync has ended: whether it speaks for what was pushed before it. Where it failed the authority's store may
    /// have lost that, and would not say so a second time.
    pub fn end_sync(&mut self, sync: SyncId, well: bool) -> bool {
        let spoken_for = self.unsynced.end(sync, well);
        if !well {
            self.restore_unsynced();
        }
        spoken_for
    }

    /// What the authority could not sync is dirty again.
    fn restore_unsynced(&mut self) {
        let now = Instant::now();
        for run in self.unsynced.lost().runs() {
            for run in self.core.present_runs(run) {
                let bytes = run.bytes_below(self.core.size());
                self.core.handle_stored(now, bytes);
            }
        }
    }

    /// What the authority may have lost when it was started anew is dirty again.
    pub fn restore_lost(&mut self) {
        let now = Instant::now();
        for run in self.unsynced.lost().runs() {
            self.core.handle_lost(now, run);
        }
    }

    /// The authority has set the size on this mount's behalf.
    pub fn resized(&mut self, at: Moment, size: u64, dropped: &mut Vec<PageRange>) -> Result<()> {
        // What an older session has done came before all that is known of this one.
        let at = self.tick(at).unwrap_or_default();
        let mut zeroed = Vec::new();
        self.core.handle_resized(at, size, dropped, &mut zeroed);
        self.zero(&zeroed)
    }

    /// Makes holes of bytes that are past the end now.
    pub fn zero(&mut self, ranges: &[ByteRange]) -> Result<()> {
        self.note_touched();
        (ranges.iter()).try_for_each(|&range| self.punch_bytes(range))
    }

    /// Makes holes of pages that were dropped.
    pub fn punch(&mut self, pages: &[PageRange]) -> Result<()> {
        self.note_touched();
        pages
            .iter()
            .try_for_each(|run| self.punch_bytes(run.bytes()))
    }

    fn punch_bytes(&mut self, range: ByteRange) -> Result<()> {
        let range = range.intersect(ByteRange::new(0, self.copy.len()));
        if !range.is_empty() {
            self.own_copy()?;
        }
        self.copy.punch(range.start, range.len()).map_err(io_errno)
    }

    /// Forgets what is clean in `range`, after it could not be written.
    fn drop_clean(&mut self, range: ByteRange) {
        let mut dropped: Vec<PageRange> = Vec::new();
        self.core.handle_forget(range, &mut dropped);
    }
}

/// The slices that make up `len` bytes after `skip` bytes of `pieces`.
fn slices_of(pieces: &[bytes::Bytes], skip: u64, len: u64) -> Vec<std::io::IoSlice<'_>> {
    let (mut skip, mut left) = (skip as usize, len as usize);
    let mut slices = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if left == 0 {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let part = &piece[skip..piece.len().min(skip.saturating_add(left))];
        left -= part.len();
        skip = 0;
        slices.push(std::io::IoSlice::new(part));
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::{Epoch, ReplicaConfig};

    #[test]
    fn what_an_older_session_told_is_not_taken_in() {
        let config = ReplicaConfig {
            background: false,
            background_bytes_max: PAGE_BYTES,
            pull_bytes_max: PAGE_BYTES,
            read_ahead_bytes_max: 0,
        };
        let core = Replica::new(100, Tick(5), Epoch::default(), config);
        let mut inner = Inner::new(core, MappedFile::in_memory().unwrap(), None, 2);
        let at = |generation, tick| Moment {
            generation,
            tick: Tick(tick),
        };
        inner.adopt_size(at(1, 1000), 10).unwrap();
        assert_eq!(inner.core.size(), 100);
        inner.adopt_size(at(2, 6), 200).unwrap();
        assert_eq!(inner.core.size(), 200);
        // A truncation that was made then leaves the size that is known since.
        inner.resized(at(1, 1000), 50, &mut Vec::new()).unwrap();
        assert_eq!(inner.core.size(), 200);
        inner.resized(at(2, 7), 50, &mut Vec::new()).unwrap();
        assert_eq!(inner.core.size(), 50);
    }
}
