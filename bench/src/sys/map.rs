//! A file mapped to be read and changed in random places.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A whole file, mapped shared.
pub struct Mapping {
    start: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: threads share it for `load` and `store` alone, whose accesses are volatile and of plain bytes,
// of which any value is a good one; whoever stores and loads the same bytes at once gets some of either.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// For loads; the kernel is told that they come at random (MADV_RANDOM).
    ///
    /// # Errors
    /// As mmap(2) and madvise(2) say; `EINVAL` for an empty file.
    pub fn random(file: &File) -> io::Result<Mapping> {
        let mapping = Mapping::new(file, false)?;
        // SAFETY: these are the start and length of a mapping of our own.
        match unsafe { libc::madvise(mapping.start.cast(), mapping.len, libc::MADV_RANDOM) } {
            0 => Ok(mapping),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// For loads and stores; the kernel may read ahead.
    ///
    /// # Errors
    /// As mmap(2) says; `EACCES` where the file was not opened for both.
    pub fn writable(file: &File) -> io::Result<Mapping> {
        Mapping::new(file, true)
    }

    fn new(file: &File, writable: bool) -> io::Result<Mapping> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut protection = libc::PROT_READ;
        if writable {
            protection |= libc::PROT_WRITE;
        }
        let (any, shared, file) = (std::ptr::null_mut(), libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: the kernel chooses the place, so that nothing that is there is replaced.
        let start = unsafe { libc::mmap(any, len, protection, shared, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping {
            start: start.cast(),
            len,
            writable,
        })
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Loads the byte at a place, which brings its page. A page that cannot be brought ends the process
    /// (SIGBUS).
    ///
    /// # Panics
    /// Past the end.
    pub fn load(&self, offset: usize) -> u8 {
        assert!(offset < self.len, "{offset} is past the end");
        // SAFETY: the place is within the mapping, which lives as long as this does.
        unsafe { self.start.add(offset).read_volatile() }
    }

    /// Stores bytes at a place.
    ///
    /// # Panics
    /// Past the end, and where it is not writable.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        let fits = offset <= self.len && bytes.len() <= self.len - offset;
        assert!(fits && self.writable, "{offset} cannot be stored to");
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: the place is within the mapping, which is writable and lives as long as this does.
            unsafe { self.start.add(offset + at).write_volatile(*byte) };
        }
    }

    /// Waits until what was stored is where the file is kept (MS_SYNC).
    ///
    /// # Errors
    /// As msync(2) says.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: these are the start and length of a mapping of our own.
        match unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody can hold anything of it: `load` gives copies.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
