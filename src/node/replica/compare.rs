//! Comparing old pages of a copy with the authority's by hashes: a file that has changed in a few places costs
//! those, and a little more.
//!
//! ```text
//!   one comparison:  hashes of units of 64 KiB ──▶ equal: present
//!                                               └▶ not: hashes of pages ──▶ equal: present
//!                                                                        └▶ not: pulled
//! ```
//!
//! A hash has 32 bytes, so what has not changed costs 0.05 % of its size, what has changed everywhere 0.8 %
//! more than without. When it begins is the core's to say ([`crate::region::Replica::poll_comparison`]): at
//! the first fault, where what was not asked for is pulled in the background as well; and for `memfs pull`.

use super::Shared;
use super::link::{self, Moment, Session};
use super::region::Region;
use super::transfer::{self, Broken};
use crate::region::{Compared, Comparison, ComparisonId};
use crate::store::{Errno, Result};
use crate::transport::stream::StreamError;
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::{Access, Answer, HASH_UNIT_BYTES_MAX, Hash, ReadRequest, Request};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Runs of one comparison: so few that the units of them can be asked about each on its own.
pub(super) const RUNS_MAX: usize = 128;
/// Comparisons of one region under way at once: bytes enough for the round trip of a long link.
pub(super) const COMPARISONS_MAX: usize = 8;

const _: () = assert!(
    RUNS_MAX as u64 + crate::wire::HASHED_BYTES_MAX / HASH_UNIT_BYTES_MAX as u64
        <= crate::wire::HASH_EXTENTS_MAX as u64
);

/// Makes a comparison.
pub(super) async fn compare(region: Arc<Region>, comparison: Comparison) {
    let Some(shared) = region.shared.upgrade() else {
        return;
    };
    let outcome = match shared.link.session().await {
        Ok(session) => match compare_over(&shared, &region, &session, &comparison).await {
            Ok(()) => Compared::Done,
            Err(Broken::Stream(error)) => match shared.link.recover(&session, error).await {
                Ok(_) => Compared::Link,
                Err(_) => Compared::Refused,
            },
            // Should it be for want of a session, what is to be pulled finds out.
            Err(Broken::Errno(_)) => Compared::Refused,
        },
        Err(_) => Compared::Refused,
    };
    region.comparison_ended(comparison.id, outcome);
    shared.close_remote_if_idle(&region);
}

async fn compare_over(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    comparison: &Comparison,
) -> std::result::Result<(), Broken> {
    let mut extents: Vec<ByteRange> = comparison.pages.iter().map(PageRange::bytes).collect();
    for unit in [u64::from(HASH_UNIT_BYTES_MAX), PAGE_BYTES] {
        let (at, size, there) = ask(shared, region, session, &extents, unit).await?;
        region.update(|inner| inner.adopt_size(at, size))?;
        let units = units(&extents, unit, size);
        if units.len() != there.len() {
            return Err(StreamError::Protocol("not as many hashes as units".into()).into());
        }
        let (same, others) = tell_apart(shared, region, units, there).await?;
        confirm(shared, region, comparison.id, at, &same);
        // Of single pages there is nothing more to learn.
        extents = merged(others.into_iter().filter(|unit| unit.len() > PAGE_BYTES));
        if extents.is_empty() {
            break;
        }
    }
    Ok(())
}

/// The authority's hashes: when that was, the size then, and one of each unit.
async fn ask(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    extents: &[ByteRange],
    unit: u64,
) -> std::result::Result<(Moment, u64, Vec<Hash>), Broken> {
    let handle = transfer::remote(shared, region, session, Access::Read).await?;
    let whole_pages = |range: &ByteRange| range.pages_touched().bytes().into();
    let request = Request::Read(ReadRequest::Hashes {
        handle,
        extents: extents.iter().map(whole_pages).collect(),
        unit: unit as u32,
    });
    match link::answer_of(session, link::exchange(session, &request).await?)? {
        (at, Answer::Hashed { size, hashes }) => {
            region.node.saw(at);
            let bytes = hashes.len() * size_of::<Hash>();
            let counted = &shared.hash_bytes;
            counted.fetch_add(bytes as u64, Ordering::Relaxed);
            Ok((at, size, hashes))
        }
        _ => Err(StreamError::Protocol("no hashes in the answer".into()).into()),
    }
}

/// What one hash each is of, in a region of `size` bytes.
fn units(extents: &[ByteRange], unit: u64, size: u64) -> Vec<ByteRange> {
    let whole = |range: &ByteRange| range.pages_touched().bytes_below(size);
    let cut = |range: ByteRange| {
        let starts = (range.start..range.end).step_by(unit as usize);
        starts.map(move |start| ByteRange::new(start, range.end.min(start + unit)))
    };
    extents.iter().map(whole).flat_map(cut).collect()
}

/// Those units whose bytes here hash to the same, and the others.
async fn tell_apart(
    shared: &Shared,
    region: &Arc<Region>,
    units: Vec<ByteRange>,
    there: Vec<Hash>,
) -> Result<(Vec<ByteRange>, Vec<ByteRange>)> {
    // Never closed.
    let _turn = shared.hashing.acquire().await;
    let region = region.clone();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut buffer = Vec::new();
        let (mut same, mut others) = (Vec::new(), Vec::new());
        for (unit, there) in units.into_iter().zip(there) {
            region.look(|inner| inner.copy_out(unit, &mut buffer))?;
            match Hash::of(&buffer) == there {
                true => same.push(unit),
                false => others.push(unit),
            }
        }
        Ok((same, others))
    });
    hashed.await.unwrap_or(Err(Errno::IO))
}

fn confirm(
    shared: &Shared,
    region: &Arc<Region>,
    comparison: ComparisonId,
    at: Moment,
    same: &[ByteRange],
) {
    let pages = region.update(|inner| {
        let confirmed = same.iter().map(|&range| {
            inner.clock.note(range);
            inner.confirmed(comparison, at, range)
        });
        confirmed.sum::<u64>()
    });
    let counted = &shared.confirmed_bytes;
    counted.fetch_add(pages * PAGE_BYTES, Ordering::Relaxed);
}

/// Ranges that touch as one.
fn merged(ranges: impl Iterator<Item = ByteRange>) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_end_where_the_extent_or_the_region_does() {
        let range = ByteRange::new;
        let extents = [range(0, 3 * 4096), range(8 * 4096, 9 * 4096)];
        let all = [
            range(0, 8192),
            range(8192, 12288),
            range(8 * 4096, 9 * 4096),
        ];
        assert_eq!(units(&extents, 8192, u64::MAX), all);
        assert_eq!(
            units(&extents, 8192, 8193),
            [range(0, 8192), range(8192, 8193)]
        );
        assert_eq!(
            units(&[range(0, 8193)], 8192, u64::MAX),
            all[..2],
            "whole pages of an end that was known before"
        );
        assert_eq!(units(&extents, 4096, 0), []);
        let parts = [range(0, 1), range(1, 3), range(4, 5)];
        assert_eq!(merged(parts.into_iter()), [range(0, 3), range(4, 5)]);
    }
}
