//! An open regular file.

use super::attributes::{self, proc_path};
use super::xattr;
use crate::store::{Errno, Result, StoreFile};
use crate::wire::{Access, Allocate, Attr, Kind, SetAttr, SetTime};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::retry_on_intr;

/// From here on, zeroing is left to the file system where it can; below, writing is cheaper.
const ZERO_RANGE_BYTES_MIN: u64 = 64 << 10;
/// Zeroes written by one call.
const ZEROES: &[u8] = &[0; 64 << 10];

/// The furthest a file can reach, as far as system calls can tell.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// `EFBIG` for an end that no file can have.
fn check_end(end: u64) -> Result<()> {
    match end {
        0..=OFFSET_MAX => Ok(()),
        _ => Err(Errno::FBIG),
    }
}

/// An open regular file.
pub struct OpenFile {
    fd: OwnedFd,
    access: Access,
}

impl OpenFile {
    /// A file opened for this.
    pub fn new(fd: OwnedFd, access: Access) -> OpenFile {
        OpenFile { fd, access }
    }

    /// Opens what is held with `O_PATH` and known to be of this kind: nothing but a regular file is
    /// ever opened, as that could block or have effects.
    pub fn reopen(held: &OwnedFd, kind: Kind, access: Access) -> Result<OpenFile> {
        match kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let path = proc_path(held);
        let open = |flags: OFlags| {
            retry_on_intr(|| rustix::fs::openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty()))
        };
        let fd = match access {
            Access::Read => open(OFlags::RDONLY),
            // One may be allowed to write what one may not read.
            Access::Write => open(OFlags::RDWR).or_else(|error| match error {
                Errno::ACCESS => open(OFlags::WRONLY),
                error => Err(error),
            }),
        }?;
        Ok(OpenFile { fd, access })
    }

    /// Makes a part that is not a hole read as zeroes.
    fn zero_data(&self, mut start: u64, end: u64) -> Result<()> {
        if end - start >= ZERO_RANGE_BYTES_MIN {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match retry_on_intr(|| rustix::fs::fallocate(&self.fd, mode, start, end - start)) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                result => return result,
            }
        }
        while start < end {
            let bytes = (end - start).min(ZEROES.len() as u64);
            self.write_at(&ZEROES[..bytes as usize], start)?;
            start += bytes;
        }
        Ok(())
    }
}

impl StoreFile for OpenFile {
    fn attr(&self) -> Result<Attr> {
        attributes::of(&self.fd)
    }

    fn set_attr(&self, set: &SetAttr) -> Result<Attr> {
        let writable = (self.access == Access::Write).then(|| self.fd.as_fd());
        attributes::change(&self.fd, &self.attr()?, set, writable)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // Beyond what the kernel can count there is nothing.
        let wanted = OFFSET_MAX.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..wanted as usize];
        let mut done = 0;
        while done < buf.len() {
            let from = offset + done as u64;
            match rustix::io::pread(&self.fd, &mut buf[done..], from) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                // Open for writing only, see `reopen`.
                Err(Errno::BADF) => return Err(Errno::ACCESS),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if !buf.is_empty() {
            check_end(offset.saturating_add(buf.len() as u64))?;
        }
        let mut done = 0;
        while done < buf.len() {
            let to = offset + done as u64;
            match rustix::io::pwrite(&self.fd, &buf[done..], to) {
                Ok(0) => return Err(Errno::IO),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn zero_at(&self, start: u64, end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        if self.access == Access::Read {
            return Err(Errno::BADF);
        }
        check_end(end)?;
        let size = self.attr()?.size;
        let mut at = start;
        let mut wrote = false;
        while at < end.min(size) {
            let data = match self.next_data(at) {
                Ok(data) if data < end => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error),
            };
            // The file may shrink meanwhile, and then has no hole to find.
            let hole = match self.next_hole(data) {
                Err(Errno::NXIO) => break,
                hole => hole?.min(end),
            };
            self.zero_data(data, hole)?;
            wrote = true;
            at = hole;
        }
        if self.attr()?.size < end {
            rustix::fs::ftruncate(&self.fd, end)?;
        } else if !wrote {
            // Nothing had to be done, yet it was a write: its time has to tell.
            let set = SetAttr {
                mtime: Some(SetTime::Now),
                ..SetAttr::default()
            };
            match self.set_attr(&set) {
                Ok(_) | Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn allocate(&self, start: u64, end: u64, mode: Allocate) -> Result<Attr> {
        let bytes = end.checked_sub(start).ok_or(Errno::INVAL)?;
        check_end(end)?;
        let keep = FallocateFlags::KEEP_SIZE;
        let flags = match mode {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => keep,
            Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | keep,
            Allocate::ZeroExtend => FallocateFlags::ZERO_RANGE,
            Allocate::ZeroKeepSize => FallocateFlags::ZERO_RANGE | keep,
        };
        retry_on_intr(|| rustix::fs::fallocate(&self.fd, flags, start, bytes))?;
        self.attr()
    }

    fn next_data(&self, offset: u64) -> Result<u64> {
        check_end(offset).map_err(|_| Errno::NXIO)?;
        rustix::fs::seek(&self.fd, SeekFrom::Data(offset))
    }

    fn next_hole(&self, offset: u64) -> Result<u64> {
        check_end(offset).map_err(|_| Errno::NXIO)?;
        rustix::fs::seek(&self.fd, SeekFrom::Hole(offset))
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        xattr::list(&self.fd)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        match data_only {
            true => retry_on_intr(|| rustix::fs::fdatasync(&self.fd)),
            false => retry_on_intr(|| rustix::fs::fsync(&self.fd)),
        }
    }
}
