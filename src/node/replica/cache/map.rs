//! The page map of a copy: a file beside the copy that says what of it is there.
//!
//! Words of 64 bits, little-endian; offsets in bytes:
//!
//! ```text
//!      0  ┌ magic "memfsmap" ─ version, page size ─ FileId (3 words) ─ checksum of these ┐ never changes
//!     64  ├ size as programs see it ─ bytes of the copy ─ last use (seconds since 1970)   ┤ a word each
//!    128  ├ pushes under way: a run of pages each (4 × 2 words)
//!    512  ├ record A │ counts up: the one with the higher count and the right checksum is
//!   1024  ├ record B │ valid. Base: stamp, epoch, run and tick of the authority, client;
//!         │          │ path; stamp after the newest push that was answered
//!   4096  ├ path A   │ where the file was last seen; record and path are written in turn,
//!   8192  ├ path B   │ the path first
//!  16384  ├ a bit for each group of pages: all of it is present (16 KiB)
//!  32768  ├ group 0: 4 KiB of bits present, 4 KiB of bits dirty
//!  40960  ├ group 1 …
//! ```
//!
//! A process may end between any two stores, so what takes more than one word is written beside the valid one
//! and made valid by its checksum. The bits have none: a bit is true when it is set, because the bytes of
//! its page come first, and it is cleared before they go. A dirty bit is set before bytes are overwritten and counts
//! only with the present bit. After the end of the machine none of that holds: see [`super::boot`].
//!
//! Nothing in the file is trusted: a header that is not as it must be makes the map damaged, sizes are
//! compared with those of the files, and pages past the end of the region are ignored.

use super::bits::{Bits, Kind};
use crate::region::{ClientId, Epoch, PageSet, Tick};
use crate::sys::MappedWords;
use crate::units::{PAGE_BYTES, PageRange, REGION_BYTES_MAX, pages_for};
use crate::wire::{FileId, RelPath, Stamp, Time};
use std::io;
use std::path::Path;

const MAGIC: u64 = u64::from_le_bytes(*b"memfsmap");
const VERSION: u64 = 1;
/// Words.
const SIZE_AT: u64 = 8;
const COPY_BYTES_AT: u64 = 9;
const USED_AT: u64 = 10;
const RECORDS_AT: [u64; 2] = [64, 128];
const RECORD_WORDS: usize = 32;
/// Pushes under way that are recorded: a first and an end page each, 0 and 0 for none.
pub(in crate::node::replica) const PUSHES_MAX: usize = 4;
const PUSHES_AT: u64 = 16;
const PATHS_AT: [u64; 2] = [512, 1024];
const PATH_BYTES_MAX: usize = 4096;
/// Where the bits of whole groups begin.
pub(super) const FULL_AT: u64 = 2048;
/// Where the pages of bits begin.
pub(super) const GROUPS_AT: u64 = 4096;
/// Groups a map can hold: of copies of up to 16 TiB.
pub(super) const GROUPS_MAX: u64 = (GROUPS_AT - FULL_AT) * 64;

/// What the clean pages of a copy are a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the file was like.
    pub stamp: Stamp,
    /// Its epoch.
    pub epoch: Epoch,
    /// The run of the authority.
    pub boot: u64,
    /// When on the clock of that run.
    pub at: Tick,
    /// Who was the replica.
    pub client: ClientId,
}

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is not what it should be.
    #[error("{0}")]
    Wrong(&'static str),
    /// It cannot be read or made.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A page map, open.
#[derive(Debug)]
pub struct PageMap {
    bits: Bits,
    id: FileId,
    base: Option<Base>,
    path: Option<RelPath>,
    pushed: Option<Stamp>,
    /// Count of the valid record, and which of the two it is.
    record: (u64, usize),
    /// Which path is valid.
    path_slot: usize,
}

fn checksum(words: &[u64]) -> u64 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    checksum_of(&bytes)
}

fn checksum_of(bytes: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut word = [0; 8];
    word.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_le_bytes(word)
}

fn header(id: FileId) -> [u64; 6] {
    let mut words = [
        MAGIC,
        VERSION | PAGE_BYTES << 32,
        id.dev,
        id.ino,
        id.born,
        0,
    ];
    words[5] = checksum(&words[..5]);
    words
}

/// Gives the head disk space: storing to it might not go well otherwise.
fn reserve_head(words: &MappedWords) -> io::Result<()> {
    words.reserve(0, PATHS_AT[0])?;
    words.reserve(FULL_AT, GROUPS_AT - FULL_AT)
}

impl PageMap {
    /// A new map of a copy without any page, in place of whatever there is.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(path: &Path, id: FileId) -> io::Result<PageMap> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut words = MappedWords::open(path)?;
        words.extend(GROUPS_AT)?;
        reserve_head(&words)?;
        for (at, word) in header(id).into_iter().enumerate().rev() {
            words.store(at as u64, word);
        }
        Ok(PageMap::of(words, id))
    }

    fn of(words: MappedWords, id: FileId) -> PageMap {
        PageMap {
            bits: Bits::new(words),
            id,
            base: None,
            path: None,
            pushed: None,
            record: (0, 0),
            path_slot: 0,
        }
    }

    /// The map there is.
    ///
    /// # Errors
    /// [`Damage`], also where there is none.
    pub fn open(path: &Path) -> Result<PageMap, Damage> {
        let metadata = path.symlink_metadata()?;
        if !metadata.is_file() {
            return Err(Damage::Wrong("it is no file"));
        }
        let words = MappedWords::open(path)?;
        if words.len() < GROUPS_AT {
            return Err(Damage::Wrong("it is too short"));
        }
        let found: Vec<u64> = (0..6).map(|at| words.load(at)).collect();
        let id = FileId {
            dev: found[2],
            ino: found[3],
            born: found[4],
        };
        if found[0] != MAGIC {
            return Err(Damage::Wrong("it is no page map"));
        }
        if found[1] != header(id)[1] {
            return Err(Damage::Wrong("it is of another version"));
        }
        if found != header(id) {
            return Err(Damage::Wrong("its checksum is wrong"));
        }
        if words.load(SIZE_AT) > REGION_BYTES_MAX || words.load(COPY_BYTES_AT) > REGION_BYTES_MAX {
            return Err(Damage::Wrong("a size in it is impossible"));
        }
        reserve_head(&words)?;
        let mut map = PageMap::of(words, id);
        map.read_records();
        Ok(map)
    }

    fn read_records(&mut self) {
        let records = [0, 1].map(|slot| {
            let words = RECORDS_AT[slot]..;
            let words: Vec<u64> = words
                .take(RECORD_WORDS)
                .map(|at| self.bits.words.load(at))
                .collect();
            (words, slot)
        });
        let valid = |(words, _): &(Vec<u64>, usize)| {
            words[0] > 0 && words[RECORD_WORDS - 1] == checksum(&words[..RECORD_WORDS - 1])
        };
        let newest = records
            .into_iter()
            .filter(valid)
            .max_by_key(|(words, _)| words[0]);
        let Some((words, slot)) = newest else { return };
        self.record = (words[0], slot);
        let mut client = [0; 16];
        client[..8].copy_from_slice(&words[9].to_le_bytes());
        client[8..].copy_from_slice(&words[10].to_le_bytes());
        if words[11] == 1 {
            self.base = Some(Base {
                stamp: stamp_of(&words[1..6]),
                epoch: Epoch(words[6]),
                boot: words[7],
                at: Tick(words[8]),
                client: ClientId(client),
            });
        }
        self.pushed = (words[15] == 1).then(|| stamp_of(&words[16..21]));
        self.path_slot = (words[12] & 1) as usize;
        self.path = self.read_path(words[13] as usize, words[14]);
    }

    fn read_path(&self, len: usize, sum: u64) -> Option<RelPath> {
        if len > PATH_BYTES_MAX {
            return None;
        }
        let words = PATHS_AT[self.path_slot]..;
        let words = words
            .take(len.div_ceil(8))
            .map(|at| self.bits.words.load(at));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len);
        (checksum_of(&bytes) == sum).then_some(())?;
        RelPath::new(bytes)
    }

    /// Writes a record beside the valid one, and makes it valid.
    fn write_record(&mut self, base: Option<Base>, path_slot: usize, path: Option<&RelPath>) {
        let path_bytes = path.map(path_bytes).unwrap_or_default();
        let (count, slot) = (self.record.0 + 1, 1 - self.record.1);
        let mut words = [0; RECORD_WORDS];
        words[0] = count;
        if let Some(base) = base {
            words[1..6].copy_from_slice(&words_of(base.stamp));
            (words[6], words[7], words[8]) = (base.epoch.0, base.boot, base.at.0);
            for (word, half) in words[9..11].iter_mut().zip(base.client.0.chunks_exact(8)) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(half);
                *word = u64::from_le_bytes(bytes);
            }
            words[11] = 1;
        }
        (words[12], words[13]) = (path_slot as u64, path_bytes.len() as u64);
        // Without a path it does not match: no path is the same as one that is not known.
        words[14] = if path.is_some() {
            checksum_of(path_bytes)
        } else {
            0
        };
        if let Some(pushed) = self.pushed {
            words[15] = 1;
            words[16..21].copy_from_slice(&words_of(pushed));
        }
        words[RECORD_WORDS - 1] = checksum(&words[..RECORD_WORDS - 1]);
        for (at, word) in (RECORDS_AT[slot]..).zip(words) {
            self.bits.words.store(at, word);
        }
        self.record = (count, slot);
        self.base = base;
    }

    /// Which file it is a map of.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What the clean pages are a copy of, as far as it is known.
    pub fn base(&self) -> Option<Base> {
        self.base
    }

    /// Records what the clean pages are a copy of.
    pub fn set_base(&mut self, base: Base) {
        if self.base != Some(base) {
            let path = self.path.clone();
            self.write_record(Some(base), self.path_slot, path.as_ref());
        }
    }

    /// What the file was like after the newest push that was answered, whoever else had changed it before.
    pub fn pushed(&self) -> Option<Stamp> {
        self.pushed
    }

    /// Records that.
    pub fn set_pushed(&mut self, stamp: Stamp) {
        self.pushed = Some(stamp);
        let path = self.path.clone();
        self.write_record(self.base, self.path_slot, path.as_ref());
    }

    /// Pages of pushes that were under way.
    pub fn pushes(&self) -> impl Iterator<Item = PageRange> {
        let word = |at| self.bits.words.load(PUSHES_AT + at as u64);
        (0..PUSHES_MAX).map(move |slot| PageRange::new(word(slot * 2), word(slot * 2 + 1)))
    }

    /// Records a push that begins; an empty run where it has ended.
    pub fn set_push(&mut self, slot: usize, pages: PageRange) {
        let at = PUSHES_AT + slot as u64 * 2;
        self.bits.words.store(at, pages.start);
        self.bits.words.store(at + 1, pages.end);
    }

    /// Where the file was last seen.
    pub fn path(&self) -> Option<&RelPath> {
        self.path.as_ref()
    }

    /// Records where the file is.
    pub fn set_path(&mut self, path: &RelPath) {
        let bytes = path_bytes(path);
        let slot = 1 - self.path_slot;
        let words = bytes.len().div_ceil(8) as u64;
        if self.path.as_ref() == Some(path)
            || bytes.len() > PATH_BYTES_MAX
            || self
                .bits
                .words
                .reserve(PATHS_AT[slot], words.max(1))
                .is_err()
        {
            return;
        }
        for (at, part) in (PATHS_AT[slot]..).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.bits.words.store(at, u64::from_le_bytes(word));
        }
        self.write_record(self.base, slot, Some(path));
        (self.path_slot, self.path) = (slot, Some(path.clone()));
    }

    /// Size of the region as programs saw it, in bytes.
    pub fn size(&self) -> u64 {
        self.bits.words.load(SIZE_AT)
    }

    /// Records the size as programs see it.
    pub fn set_size(&mut self, size: u64) {
        self.bits.words.store(SIZE_AT, size);
    }

    /// Size of the copy in bytes: no less than that is in its file.
    pub fn copy_bytes(&self) -> u64 {
        self.bits.words.load(COPY_BYTES_AT)
    }

    /// Records the size of the copy, which has it already.
    pub fn set_copy_bytes(&mut self, bytes: u64) {
        self.bits.words.store(COPY_BYTES_AT, bytes);
    }

    /// When it was last used, in seconds since 1970.
    pub fn used(&self) -> u64 {
        self.bits.words.load(USED_AT)
    }

    /// Records when it was last used.
    pub fn set_used(&mut self, seconds: u64) {
        self.bits.words.store(USED_AT, seconds);
    }

    /// Pages that are there, and those of them that are dirty; none past `size`.
    pub fn pages(&self, size: u64) -> (PageSet, PageSet) {
        let below = PageRange::new(0, pages_for(size));
        let all = self.bits.read(Kind::Present);
        let present: PageSet = all.runs_in(below).collect();
        let mut dirty = PageSet::new();
        for run in self.bits.read(Kind::Dirty).runs() {
            present.runs_in(run).for_each(|run| dirty.insert(run));
        }
        (present, dirty)
    }

    /// Whether it may have dirty pages.
    pub fn has_dirty(&self) -> bool {
        !self.pages(self.size()).1.is_empty()
    }

    /// Pages are about to be overwritten by stores, in a region that then reaches to `size`.
    ///
    /// # Errors
    /// On a full disk; `FileTooLarge` past 16 TiB.
    pub fn begin_store(&mut self, pages: PageRange, size: u64) -> io::Result<()> {
        self.bits.reserve(pages, Kind::Present)?;
        self.bits.reserve(pages, Kind::Dirty)?;
        if size != self.size() {
            self.set_size(size);
        }
        self.bits.set(pages, Kind::Dirty);
        Ok(())
    }

    /// Of these pages, notes exactly those as present and as dirty that are.
    pub fn note(&mut self, pages: PageRange, present: &PageSet, dirty: &PageSet) {
        for (set, kind) in [(present, Kind::Present), (dirty, Kind::Dirty)] {
            for gap in set.gaps_in(pages) {
                self.bits.clear(gap, kind);
            }
            for run in set.runs_in(pages) {
                self.bits.set(run, kind);
            }
        }
    }

    /// Notes that no page is there that is not dirty.
    pub fn forget_clean(&mut self) {
        let (_, dirty) = self.pages(REGION_BYTES_MAX);
        self.note(PageRange::new(0, u64::MAX), &dirty, &dirty);
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// From `fdatasync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        self.bits.words.sync()
    }

    /// Bytes it takes on its disk.
    pub fn allocated_bytes(&self) -> u64 {
        self.bits.words.allocated_bytes().unwrap_or(0)
    }
}

/// As a record has it.
fn words_of(stamp: Stamp) -> [u64; 5] {
    let Stamp { size, mtime, ctime } = stamp;
    let nanos = [mtime.nanos, ctime.nanos].map(u64::from);
    [
        size,
        mtime.secs as u64,
        nanos[0],
        ctime.secs as u64,
        nanos[1],
    ]
}

fn stamp_of(words: &[u64]) -> Stamp {
    let time = |at: usize| Time {
        secs: words[at] as i64,
        nanos: words[at + 1] as u32,
    };
    Stamp {
        size: words[0],
        mtime: time(1),
        ctime: time(3),
    }
}

fn path_bytes(path: &RelPath) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os().as_bytes()
}

#[cfg(test)]
mod tests;
