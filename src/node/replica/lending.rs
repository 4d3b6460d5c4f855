//! Copies that the kernel reads by itself, without asking this process (FUSE passthrough): `--immutable`.
//!
//! A file is lent when a program opens it in a read-only mount and all of it is present. From then on the kernel reads
//! and maps the copy itself: nobody here sees a read any more, an invalidation does not reach a mapping, and a lease
//! that runs out stops nobody. So promise 2 does not hold for it, and it is done only where the user has said that the
//! source does not change.
//!
//! Should it change nevertheless, nobody sees a mix: **a copy is not changed in place while anybody may be reading
//! it.** What would change it first puts a copy of the copy in its place ([`MappedFile::part`]), whatever the reason:
//! bytes that arrive, a new size. Only eviction and `memfs forget` leave it alone instead.
//!
//! The kernel has one way for all who have an inode open at a time, and refuses (`EIO`) who is told another:
//!
//! | open on this mount | the next one |
//! |---|---|
//! | nobody | lent, if all is present |
//! | somebody, through the page cache | through the page cache |
//! | somebody, lent | the same file lent, also if the source has changed since |
//!
//! A mapping of a lent copy outlives the handle, and this process: it refers to the file itself. So before a copy
//! that was lent is changed, the kernel is asked whether anybody has it open or mapped
//! ([`MappedFile::is_in_use_elsewhere`]); so it is with a copy that is taken up from an earlier mount. Where the file
//! system cannot tell, nothing is lent.
//!
//! [`MappedFile::part`]: crate::sys::MappedFile::part
//! [`MappedFile::is_in_use_elsewhere`]: crate::sys::MappedFile::is_in_use_elsewhere

use super::inner::Inner;
use super::region::io_errno;
use super::{HandleNo, Replica};
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a front end has made of a copy, for the kernel; dropped when nobody has the file open that way.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// How the kernel has a file open on behalf of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through its page cache.
    Cached,
    /// It reads the copy itself.
    Lent,
}

/// How the kernel has a region open.
#[derive(Default)]
pub(super) struct Lending {
    /// Handles through the page cache.
    cached: u32,
    /// Handles that are lent, all of this.
    lent: u32,
    backing: Option<Backing>,
    /// Bytes of what is lent.
    bytes: u64,
    /// Somebody may be reading the copy there is now.
    pub shared: bool,
}

impl Lending {
    /// Whether a program has the file open that way.
    pub fn is_lent(&self) -> bool {
        self.lent > 0
    }
}

impl Inner {
    /// Opens in the way there is, or lends; `Ok(None)`: through the page cache.
    fn lend(
        &mut self,
        make: impl FnOnce(BorrowedFd<'_>) -> io::Result<Backing>,
    ) -> io::Result<Option<Backing>> {
        if self.lending.backing.is_none() && self.lending.cached == 0 && self.is_whole() {
            // Where that cannot be told, the copy could never be changed again.
            self.copy.is_in_use_elsewhere()?;
            let size = self.core.size();
            self.set_copy_len(size).map_err(io::Error::from)?;
            self.lending.backing = Some(make(self.copy.as_fd())?);
            self.lending.bytes = size;
            self.lending.shared = true;
        }
        Ok(self.lending.backing.clone())
    }

    /// Whether all of the region is here, as the authority has it.
    fn is_whole(&self) -> bool {
        let size = self.core.size();
        size > 0
            && self.core.reach() == size
            && self.core.dirty_pages() == 0
            && self.core.is_present(ByteRange::new(0, size))
    }

    /// A handle is closed.
    pub fn give_back(&mut self, way: Way) {
        let lending = &mut self.lending;
        match way {
            Way::Cached => lending.cached = lending.cached.saturating_sub(1),
            Way::Lent => lending.lent = lending.lent.saturating_sub(1),
        }
        if lending.lent == 0 {
            lending.backing = None;
        }
    }

    /// Whether anybody may be reading the copy by itself.
    pub fn is_read_directly(&mut self) -> bool {
        let lending = &mut self.lending;
        lending.shared =
            lending.shared && (lending.lent > 0 || self.copy.is_in_use_elsewhere().unwrap_or(true));
        lending.shared
    }

    /// Makes the copy one that may be changed.
    pub fn own_copy(&mut self) -> Result<()> {
        if self.lending.shared && self.is_read_directly() {
            self.copy.part().map_err(io_errno)?;
            self.lending.shared = false;
        }
        Ok(())
    }
}

impl Replica {
    /// Whether whole files may be lent to the kernel.
    pub fn lends(&self) -> bool {
        self.shared.options.immutable && self.is_read_only()
    }

    /// The kernel is about to have a file open for a program, by this handle: whether it is to read the copy
    /// itself. `make` tells the kernel of the copy, if nobody has done so yet. To be called once for each handle that
    /// the kernel gets, where [`Replica::lends`].
    pub fn lend(
        &self,
        handle: HandleNo,
        make: impl FnOnce(BorrowedFd<'_>) -> io::Result<Backing>,
    ) -> Option<Backing> {
        let file = self.file(handle).ok()?;
        let refused = &self.shared.lending_refused;
        let make = |copy: BorrowedFd<'_>| match refused.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::Unsupported.into()),
            false => make(copy),
        };
        let lent = file.region.update(|inner| {
            let lent = inner.lend(make);
            match lent {
                Ok(Some(_)) => inner.lending.lent += 1,
                _ => inner.lending.cached += 1,
            }
            lent
        });
        if let Err(why) = &lent
            && !refused.swap(true, Ordering::Relaxed)
        {
            tracing::debug!("no file is read by the kernel itself: {why}");
        }
        let backing = lent.ok().flatten();
        let way = match backing {
            Some(_) => Way::Lent,
            None => Way::Cached,
        };
        let _ = file.way.set(way);
        backing
    }
}

impl super::files::OpenFile {
    /// SEEK_DATA or SEEK_HOLE of what is lent, which may not be what the authority has now: all of it counts as data.
    /// `None` where it is not lent.
    pub fn seek_lent(&self, offset: u64, data: bool) -> Option<Result<u64>> {
        (self.way.get() == Some(&Way::Lent)).then(|| {
            let end = self.region.look(|inner| inner.lending.bytes);
            seek_data(end, offset, data)
        })
    }
}

/// SEEK_DATA or SEEK_HOLE where all up to `end` is data.
pub(super) fn seek_data(end: u64, offset: u64, data: bool) -> Result<u64> {
    match (offset < end, data) {
        (false, _) => Err(Errno::NXIO),
        (true, true) => Ok(offset),
        (true, false) => Ok(end),
    }
}
