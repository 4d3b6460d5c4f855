//! How far stores that the authority has not taken reach past its size.

use crate::region::PageSet;
use crate::units::{ByteRange, PageRange};

/// Bytes past the authority's size that are stored here: they make the region longer than that.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Counts bytes where it says pages.
    bytes: PageSet,
}

impl Past {
    /// One past the last of them; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.bytes.end()
    }

    /// The part of `range` from `size` on is stored.
    pub fn store(&mut self, range: ByteRange, size: u64) {
        let run = PageRange::new(range.start.max(size), range.end);
        self.bytes.insert(run);
    }

    /// The authority has these bytes, or nobody wants them any more.
    pub fn forget(&mut self, range: ByteRange) {
        self.bytes.remove(PageRange::new(range.start, range.end));
    }
}
