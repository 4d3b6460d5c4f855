//! Hashes of a region's bytes, for a replica that holds bytes from before.
//!
//! The file is read and hashed a slice at a time. Those who want pulls go before: of each session one request is
//! worked at, and all sessions together take half of the processors at most, slice by slice in turn.

use super::connection::Attached;
use super::reply;
use super::session::Handle;
use crate::store::{Errno, Result};
use crate::units::{ByteRange, PAGE_BYTES, REGION_BYTES_MAX};
use crate::wire::{
    Answer, Extent, HASH_EXTENTS_MAX, HASH_UNIT_BYTES_MAX, HASHED_BYTES_MAX, HandleId, Hash, Reply,
};
use std::sync::Arc;

/// Hashed at a time, at least.
const SLICE_BYTES: u64 = 1 << 20;

/// Extents being hashed.
struct Hasher {
    handle: Arc<Handle>,
    unit: usize,
    /// What is left to do, the next part last.
    left: Vec<ByteRange>,
    /// Whole units.
    buffer: Vec<u8>,
    hashes: Vec<Hash>,
}

impl Attached {
    /// Answers a request for hashes.
    pub(super) async fn hashes(&self, handle: HandleId, extents: &[Extent], unit: u32) -> Reply {
        let found = check(extents, unit).and_then(|()| self.session.handle(handle));
        let handle = match found {
            Ok(handle) => handle,
            Err(errno) => return self.refuse(errno),
        };
        let coherence = &self.service.coherence;
        let at = coherence.subscribe_first(self.session.client, handle.node.id);
        // Never closed, nor is the other.
        let _turn = self.session.hashing.acquire().await;
        reply(at, self.hash(handle, extents, unit).await)
    }

    async fn hash(&self, handle: Arc<Handle>, extents: &[Extent], unit: u32) -> Result<Answer> {
        let size = self.brief(|| handle.file.attr()).await?.size;
        let mut hasher = Hasher::new(handle, extents, unit as usize, size);
        while !hasher.left.is_empty() {
            // Nobody works for who is gone.
            if self.connection.close_reason().is_some() {
                return Err(Errno::CANCELED);
            }
            let _share = self.service.hashing.acquire().await;
            self.blocking(|| hasher.slice()).await?;
        }
        let hashes = hasher.hashes;
        Ok(Answer::Hashed { size, hashes })
    }
}

/// `EINVAL` for what must not be asked.
fn check(extents: &[Extent], unit: u32) -> Result<()> {
    let unit_is_well =
        unit > 0 && unit <= HASH_UNIT_BYTES_MAX && u64::from(unit).is_multiple_of(PAGE_BYTES);
    let (mut total, mut last) = (0u64, 0);
    for extent in extents {
        let well = extent.start < extent.end
            && extent.start >= last
            && extent.start.is_multiple_of(PAGE_BYTES)
            && extent.end <= REGION_BYTES_MAX;
        if !well {
            return Err(Errno::INVAL);
        }
        // The sum of parts of what is no more than an i64 can hold.
        total += extent.end - extent.start;
        last = extent.end;
    }
    match unit_is_well && extents.len() <= HASH_EXTENTS_MAX && total <= HASHED_BYTES_MAX {
        true => Ok(()),
        false => Err(Errno::INVAL),
    }
}

impl Hasher {
    fn new(handle: Arc<Handle>, extents: &[Extent], unit: usize, size: u64) -> Hasher {
        let below = ByteRange::new(0, size);
        let extents = extents.iter().rev();
        let extents = extents.map(|&extent| ByteRange::from(extent).intersect(below));
        Hasher {
            handle,
            unit,
            left: extents.filter(|extent| !extent.is_empty()).collect(),
            buffer: vec![0; HASH_UNIT_BYTES_MAX as usize / unit * unit],
            hashes: Vec::new(),
        }
    }

    /// Goes on.
    fn slice(&mut self) -> Result<()> {
        let mut room = SLICE_BYTES;
        while room > 0
            && let Some(extent) = self.left.pop()
        {
            let end = extent.end.min(extent.start + self.buffer.len() as u64);
            self.hash(ByteRange::new(extent.start, end))?;
            room = room.saturating_sub(end - extent.start);
            if end < extent.end {
                self.left.push(ByteRange::new(end, extent.end));
            }
        }
        Ok(())
    }

    /// Hashes the units of a range that the buffer can hold.
    fn hash(&mut self, range: ByteRange) -> Result<()> {
        let bytes = &mut self.buffer[..range.len() as usize];
        let hole = match self.handle.file.next_data(range.start) {
            Err(Errno::NXIO) => true,
            found => found? >= range.end,
        };
        // Should the file have become shorter, the replica hears of that, and what it is told here does not match.
        match hole {
            true => bytes.fill(0),
            false => {
                let read = self.handle.file.read_at(bytes, range.start)?;
                bytes[read.min(range.len() as usize)..].fill(0);
            }
        }
        self.hashes.extend(bytes.chunks(self.unit).map(Hash::of));
        Ok(())
    }
}
