//! Pushes: bytes of a region from a replica, into the store.
//!
//! ```text
//! receive all the bytes, bounded for each session ─▶ take the file's turn ─▶ look ─▶ apply ─▶ count the changes
//!       ─▶ remember the stamp ─▶ give the turn back ─▶ wait until the others have dropped theirs ─▶ answer
//! ```

use super::change::Cost;
use super::connection::Attached;
use super::request::in_time;
use super::{BRIEF_BYTES, EPOCH, reply};
use crate::region::Epoch;
use crate::store::{Errno, Result, StoreFile};
use crate::transport::stream::{self, Frame, StreamError};
use crate::units::{ByteRange, REGION_BYTES_MAX};
use crate::wire::{Answer, Extent, HandleId, PUSH_EXTENTS_MAX, Reply, Stale, TRANSFER_BYTES_MAX};
use quinn::RecvStream;
use tokio::sync::SemaphorePermit;

/// The most frames a push may come in: one a page.
const PUSH_FRAMES_MAX: usize = 1024 + PUSH_EXTENTS_MAX;
/// Extents closer to each other than this are made known as one.
const GAP_BYTES: u64 = 128 << 10;

/// The bytes of a push.
pub(super) struct Bytes<'a> {
    runs: Vec<Run>,
    /// Returned when the bytes are dropped.
    _room: Option<SemaphorePermit<'a>>,
}

enum Run {
    Data(Vec<u8>),
    Zero(u64),
}

impl Run {
    fn len(&self) -> u64 {
        match self {
            Run::Data(bytes) => bytes.len() as u64,
            Run::Zero(len) => *len,
        }
    }
}

impl Bytes<'_> {
    /// How many bytes these extents have. `EINVAL` if they are not as they must be, `EFBIG` past what a
    /// region can hold.
    pub fn expect(extents: &[Extent]) -> Result<u64> {
        let mut total = 0;
        let mut free = 0;
        for (index, extent) in extents.iter().enumerate() {
            let touches = index > 0 && extent.start <= free;
            if touches || extent.start >= extent.end {
                return Err(Errno::INVAL);
            }
            if extent.end > REGION_BYTES_MAX {
                return Err(Errno::FBIG);
            }
            // Neither can overflow: both are below the largest region.
            total += extent.end - extent.start;
            free = extent.end;
            if total > TRANSFER_BYTES_MAX {
                return Err(Errno::INVAL);
            }
        }
        match (1..=PUSH_EXTENTS_MAX).contains(&extents.len()) {
            true => Ok(total),
            false => Err(Errno::INVAL),
        }
    }
}

impl Attached {
    /// Receives the bytes of a push.
    pub(super) async fn receive_bytes(
        &self,
        receive: &mut RecvStream,
        total: u64,
    ) -> std::result::Result<Bytes<'_>, StreamError> {
        // Never closed; `total` is far below its size.
        let room = self.session.push_room.acquire_many(total as u32).await.ok();
        let mut runs = Vec::new();
        let mut missing = total;
        while missing > 0 {
            if runs.len() == PUSH_FRAMES_MAX {
                return Err(StreamError::Protocol("a push in too many frames".into()));
            }
            let run = match in_time(stream::receive_frame(receive, missing)).await? {
                // Copied: a piece may keep a much larger buffer of the connection alive.
                Frame::Data(pieces) => Run::Data(pieces.concat()),
                Frame::Zero(len) => Run::Zero(u64::from(len)),
            };
            missing = missing.saturating_sub(run.len());
            runs.push(run);
        }
        Ok(Bytes { runs, _room: room })
    }

    /// Applies a push.
    pub(super) async fn push(
        &self,
        handle: HandleId,
        epoch: Epoch,
        extents: &[Extent],
        bytes: &Bytes<'_>,
    ) -> Reply {
        let handle = match self.writable(handle) {
            Ok(_) if epoch != EPOCH => return self.refuse(Errno::STALE),
            Ok(handle) => handle,
            Err(errno) => return self.refuse(errno),
        };
        let stale = merged(extents).map(|range| {
            let ByteRange { start, end } = range;
            (handle.node.id, Stale::Bytes { start, end })
        });
        let file = &*handle.file;
        let len: u64 = bytes.runs.iter().map(Run::len).sum();
        let cost = match len <= BRIEF_BYTES {
            true => Cost::Brief,
            false => Cost::Long,
        };
        let stat = || file.attr();
        let changed = self.in_turn(&handle.node, cost, stat, |_| {
            // Also where an error leaves only a part applied, all of it counts as changed.
            (stale.collect(), apply(file, extents, &bytes.runs))
        });
        let (at, changed) = changed.await;
        reply(at, changed.map(|((), attr)| Answer::Attr(attr)))
    }
}

/// Writes the runs to the extents, one after the other.
fn apply(file: &dyn StoreFile, extents: &[Extent], runs: &[Run]) -> Result<()> {
    let mut extents = extents.iter();
    let mut at = ByteRange::default();
    for run in runs {
        let mut done = 0;
        while done < run.len() {
            if at.is_empty() {
                let Some(extent) = extents.next() else {
                    // There are never more bytes than the extents have.
                    return Err(Errno::INVAL);
                };
                at = (*extent).into();
            }
            let len = at.len().min(run.len() - done);
            match run {
                Run::Data(bytes) => {
                    file.write_at(&bytes[done as usize..(done + len) as usize], at.start)?;
                }
                Run::Zero(_) => file.zero_at(at.start, at.start + len)?,
            }
            done += len;
            at.start += len;
        }
    }
    Ok(())
}

/// What to tell others: extents with small gaps between them as one.
fn merged(extents: &[Extent]) -> impl Iterator<Item = ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    for extent in extents {
        match merged.last_mut() {
            Some(last) if extent.start - last.end < GAP_BYTES => last.end = extent.end,
            _ => merged.push((*extent).into()),
        }
    }
    merged.into_iter()
}
