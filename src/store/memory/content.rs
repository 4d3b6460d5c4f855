//! Bytes of a file in memory: the pages that hold something, and the space they take.
//!
//! A page that is absent is a hole and reads as zeroes. Bytes of a page that lie past the end of the
//! file are zero, so that a file that grows shows nothing of what it once held.

use crate::store::{Errno, Result};
use crate::units::{ByteRange, PAGE_BYTES, PageRange, REGION_BYTES_MAX};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Page = [u8; PAGE_BYTES as usize];

/// What a store may hold, and does.
#[derive(Debug)]
pub(super) struct Space {
    /// Bytes in all.
    pub(super) size: u64,
    used: AtomicU64,
}

impl Space {
    pub(super) fn new(size: u64) -> Space {
        Space {
            size,
            used: AtomicU64::new(0),
        }
    }

    /// Bytes nobody has taken.
    pub(super) fn free(&self) -> u64 {
        self.size - self.used.load(Ordering::Relaxed)
    }

    /// Takes bytes, or none and gives `ENOSPC`.
    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.size);
        // Relaxed: the counter guards no other data.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(drop)
            .map_err(|_| Errno::NOSPC)
    }

    /// Gives back bytes that were taken.
    pub(super) fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of one file.
#[derive(Debug)]
pub(super) struct Content {
    size: u64,
    pages: BTreeMap<u64, Box<Page>>,
    space: Arc<Space>,
}

impl Content {
    pub(super) fn new(space: Arc<Space>) -> Content {
        Content {
            size: 0,
            pages: BTreeMap::new(),
            space,
        }
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Allocated blocks of 512 bytes.
    pub(super) fn blocks(&self) -> u64 {
        self.pages.len() as u64 * (PAGE_BYTES / 512)
    }

    /// As [`crate::store::StoreFile::read_at`].
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let len = self.size.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..len as usize];
        let mut filled = 0; // bytes of `buf` that are final
        let range = ByteRange::new(offset, offset + len);
        let pages = range.pages_touched();
        for (number, page) in self.pages.range(pages.start..pages.end) {
            let (at, part) = part_of_page(*number, range);
            let to = (at - offset) as usize;
            buf[filled..to].fill(0);
            filled = to + part.len();
            buf[to..filled].copy_from_slice(&page[part]);
        }
        buf[filled..].fill(0);
        len as usize
    }

    /// As [`crate::store::StoreFile::write_at`]; takes the space for all of it first.
    pub(super) fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        let range = ByteRange::at(offset, buf.len() as u64).ok_or(Errno::FBIG)?;
        if range.is_empty() {
            return Ok(());
        }
        self.fill_holes(range.pages_touched())?;
        let pages = range.pages_touched();
        for (number, page) in self.pages.range_mut(pages.start..pages.end) {
            let (at, part) = part_of_page(*number, range);
            let from = (at - offset) as usize;
            page[part.clone()].copy_from_slice(&buf[from..from + part.len()]);
        }
        self.size = self.size.max(range.end);
        Ok(())
    }

    /// Makes every page of `pages` one that holds something: zeroes, where it was a hole.
    fn fill_holes(&mut self, pages: PageRange) -> Result<()> {
        let present = self.pages.range(pages.start..pages.end).count() as u64;
        let absent = pages.len() - present;
        if absent == 0 {
            return Ok(());
        }
        self.space.take(absent * PAGE_BYTES)?;
        for number in pages.start..pages.end {
            self.pages
                .entry(number)
                .or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
        }
        Ok(())
    }

    /// Zeroes in place: holes stay holes, pages stay pages.
    fn zero(&mut self, range: ByteRange) {
        let pages = range.pages_touched();
        for (number, page) in self.pages.range_mut(pages.start..pages.end) {
            page[part_of_page(*number, range).1].fill(0);
        }
    }

    /// Makes holes of the pages.
    fn punch(&mut self, pages: PageRange) {
        let range = self.pages.range(pages.start..pages.end);
        let numbers: Vec<u64> = range.map(|(number, _)| *number).collect();
        for number in &numbers {
            self.pages.remove(number);
        }
        self.space.give(numbers.len() as u64 * PAGE_BYTES);
    }

    /// Truncates, or extends with a hole.
    pub(super) fn set_size(&mut self, size: u64) -> Result<()> {
        if size > REGION_BYTES_MAX {
            return Err(Errno::FBIG);
        }
        if size < self.size {
            self.zero(ByteRange::new(size, self.size));
        }
        if size <= self.size {
            self.punch(PageRange::new(size.div_ceil(PAGE_BYTES), u64::MAX));
        }
        self.size = size;
        Ok(())
    }

    /// As [`crate::store::StoreFile::zero_at`].
    pub(super) fn zero_at(&mut self, start: u64, end: u64) -> Result<()> {
        let range = checked_range(start, end)?;
        self.zero(range);
        self.size = self.size.max(range.end);
        Ok(())
    }

    /// Reserves, extending the file if `extend`.
    pub(super) fn reserve(&mut self, start: u64, end: u64, extend: bool) -> Result<()> {
        let range = checked_range(start, end)?;
        self.fill_holes(range.pages_touched())?;
        if extend {
            self.size = self.size.max(range.end);
        }
        Ok(())
    }

    /// Makes a hole, as large as whole pages allow, and zeroes around it.
    pub(super) fn punch_hole(&mut self, start: u64, end: u64) -> Result<()> {
        let range = checked_range(start, end)?;
        self.zero(range);
        self.punch(range.pages_covered());
        Ok(())
    }

    /// Zeroes within the file without changing its size.
    pub(super) fn zero_keeping_size(&mut self, start: u64, end: u64) -> Result<()> {
        self.zero(checked_range(start, end)?);
        Ok(())
    }

    /// As [`crate::store::StoreFile::next_data`].
    pub(super) fn next_data(&self, offset: u64) -> Result<u64> {
        let first = offset / PAGE_BYTES;
        let page = self.pages.range(first..).next().ok_or(Errno::NXIO)?.0;
        let at = offset.max(page * PAGE_BYTES);
        if at < self.size {
            Ok(at)
        } else {
            Err(Errno::NXIO)
        }
    }

    /// As [`crate::store::StoreFile::next_hole`].
    pub(super) fn next_hole(&self, offset: u64) -> Result<u64> {
        if offset >= self.size {
            return Err(Errno::NXIO);
        }
        let first = offset / PAGE_BYTES;
        let mut hole = first;
        for (number, _) in self.pages.range(first..) {
            if *number != hole {
                break;
            }
            hole += 1;
        }
        Ok(offset.max(hole * PAGE_BYTES).min(self.size))
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.space.give(self.pages.len() as u64 * PAGE_BYTES);
    }
}

/// Where in the file the part of `range` in a page begins, and which bytes of the page it is.
fn part_of_page(number: u64, range: ByteRange) -> (u64, std::ops::Range<usize>) {
    let page = PageRange::new(number, number + 1).bytes();
    let part = page.intersect(range);
    let in_page = |at: u64| (at - page.start) as usize;
    (part.start, in_page(part.start)..in_page(part.end))
}

fn checked_range(start: u64, end: u64) -> Result<ByteRange> {
    if end > REGION_BYTES_MAX {
        Err(Errno::FBIG)
    } else if start >= end {
        Err(Errno::INVAL)
    } else {
        Ok(ByteRange::new(start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: u64 = PAGE_BYTES;

    fn content(pages: u64) -> Content {
        Content::new(Arc::new(Space::new(pages * P)))
    }

    fn all_of(content: &Content) -> Vec<u8> {
        let mut bytes = vec![0xaa; content.size() as usize + 10];
        let len = content.read_at(&mut bytes, 0);
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn a_byte_far_out_takes_one_page() {
        let mut content = content(2);
        let far = 1 << 40;
        content.write_at(&[7], far).unwrap();
        assert_eq!((content.size(), content.blocks()), (far + 1, 8));
        assert_eq!(
            (content.next_data(0), content.next_hole(0)),
            (Ok(far), Ok(0))
        );
        assert_eq!(content.next_hole(far), Ok(far + 1));
        assert_eq!(content.next_data(far + 1), Err(Errno::NXIO));
        assert_eq!(content.next_hole(far + 1), Err(Errno::NXIO));
    }

    #[test]
    fn space_is_bounded_and_comes_back() {
        let space = Arc::new(Space::new(2 * P));
        let mut content = Content::new(space.clone());
        assert_eq!(content.write_at(&[1; 3 * P as usize], 0), Err(Errno::NOSPC));
        assert_eq!((content.size(), space.free()), (0, 2 * P));
        content.write_at(&[1; P as usize + 1], 0).unwrap();
        assert_eq!(space.free(), 0);
        content.write_at(&[2; 2 * P as usize], 0).unwrap();
        assert_eq!(content.write_at(&[2], 2 * P), Err(Errno::NOSPC));
        content.punch_hole(P, 2 * P).unwrap();
        assert_eq!((content.size(), space.free()), (2 * P, P));
        drop(content);
        assert_eq!(space.free(), 2 * P);
    }

    #[test]
    fn limits_of_ranges() {
        let mut content = content(1);
        assert_eq!(content.write_at(&[1], REGION_BYTES_MAX), Err(Errno::FBIG));
        assert_eq!(content.write_at(&[1], u64::MAX), Err(Errno::FBIG));
        assert_eq!(content.set_size(u64::MAX), Err(Errno::FBIG));
        assert_eq!(content.punch_hole(1, 1), Err(Errno::INVAL));
        assert_eq!(content.reserve(0, u64::MAX, true), Err(Errno::FBIG));
        content.set_size(REGION_BYTES_MAX).unwrap();
        assert_eq!(content.read_at(&mut [1], REGION_BYTES_MAX), 0);
        assert_eq!(content.read_at(&mut [1], u64::MAX), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        SetSize(u64),
        Zero(u64, u64),
        Punch(u64, u64),
        Reserve(u64, u64, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = || prop_oneof![0..5 * P, (0..5u64).prop_map(|page| page * P)];
        let run = || (at(), 1..2 * P);
        prop_oneof![
            (at(), 1..3 * P as usize, 1..=255u8).prop_map(|(at, n, b)| Step::Write(at, n, b)),
            at().prop_map(Step::SetSize),
            run().prop_map(|(at, n)| Step::Zero(at, at + n)),
            run().prop_map(|(at, n)| Step::Punch(at, at + n)),
            (run(), any::<bool>()).prop_map(|((at, n), grow)| Step::Reserve(at, at + n, grow)),
        ]
    }

    /// The same done to a plain vector.
    fn model(bytes: &mut Vec<u8>, step: &Step) {
        let grow = |bytes: &mut Vec<u8>, end: u64| bytes.resize(bytes.len().max(end as usize), 0);
        match *step {
            Step::Write(at, n, byte) => {
                grow(bytes, at + n as u64);
                bytes[at as usize..][..n].fill(byte);
            }
            Step::SetSize(size) => bytes.resize(size as usize, 0),
            Step::Zero(start, end) => {
                grow(bytes, end);
                bytes[start as usize..end as usize].fill(0);
            }
            Step::Punch(start, end) => {
                let len = bytes.len();
                bytes[len.min(start as usize)..len.min(end as usize)].fill(0);
            }
            Step::Reserve(_, end, true) => grow(bytes, end),
            Step::Reserve(_, _, false) => {}
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_vector(steps in prop::collection::vec(step(), 1..40)) {
            let mut content = content(100);
            let mut bytes = Vec::new();
            for step in &steps {
                model(&mut bytes, step);
                match *step {
                    Step::Write(at, n, byte) => content.write_at(&vec![byte; n], at),
                    Step::SetSize(size) => content.set_size(size),
                    Step::Zero(start, end) => content.zero_at(start, end),
                    Step::Punch(start, end) => content.punch_hole(start, end),
                    Step::Reserve(start, end, grow) => content.reserve(start, end, grow),
                }
                .unwrap();
                prop_assert!(all_of(&content) == bytes, "after {step:?}");
                let held = content.pages.len() as u64 * P;
                prop_assert_eq!(content.space.free(), content.space.size - held);
            }
            let edges = (0..bytes.len() as u64).step_by(P as usize / 2);
            for offset in edges.flat_map(|edge| [edge.saturating_sub(1), edge]) {
                let hole = content.next_hole(offset).unwrap();
                let data = content.next_data(offset).unwrap_or(content.size());
                prop_assert!(hole == offset || data == offset);
                prop_assert!(bytes[offset as usize..data as usize].iter().all(|b| *b == 0));
            }
        }
    }
}
