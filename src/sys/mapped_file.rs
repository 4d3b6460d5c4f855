//! A sparse file that is written by system calls and read through a mapping.
//!
//! Writes go through `pwritev(2)`, so that a full disk is an error and not a SIGBUS; reads come from
//! a shared mapping of the same page cache, so that a reply to the kernel needs no copy of its own.
//! The mapping is made at the first read and is larger than the file, so that a file that grows
//! seldom needs another one.
//!
//! On tmpfs a mapped hole takes room when it is read, and is a SIGBUS where there is none: there, pages are asked for
//! before they are touched, and read by system calls if they cannot be had.
//!
//! Where somebody else reads the same file, [`MappedFile::part`] leaves it to them before it is changed.

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The most pieces one `pwritev(2)` takes (Linux: `UIO_MAXIOV`).
const PIECES_MAX: usize = 1024;
/// The least a mapping is made for, in bytes.
const MAPPING_BYTES_MIN: u64 = 1 << 20;

/// What statfs(2) says of tmpfs.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// A sparse file, mapped for reading.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    len: u64,
    place: Place,
    /// Reading a hole through the mapping takes room on its disk.
    holes_take_room: bool,
    /// Covers at least `len` bytes once there is one. Bytes past the end of the file must not be
    /// touched: SIGBUS.
    mapping: std::sync::OnceLock<MmapRaw>,
}

/// Where another file can be made in place of one.
#[derive(Debug)]
enum Place {
    Memory,
    /// Without a name, in this directory.
    Directory(PathBuf),
    Path(PathBuf),
}

/// What the name of a file ends with that [`MappedFile::part`] has not finished.
pub const UNFINISHED: &str = "new";

impl MappedFile {
    /// An empty nameless file in `directory`: gone with its last descriptor, however this process ends.
    ///
    /// # Errors
    /// From `open(2)` with `O_TMPFILE`.
    pub fn in_directory(directory: &Path) -> io::Result<MappedFile> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Self::from_file(
            rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into(),
            Place::Directory(directory.to_owned()),
        ))
    }

    /// A file in a folder that nobody else can enter, made empty with mode 0600 if there is none.
    ///
    /// # Errors
    /// From `open(2)`; where it is no regular file.
    pub fn named(path: &Path) -> io::Result<MappedFile> {
        let file = open_private(path)?;
        let len = file.metadata()?.len();
        Ok(MappedFile {
            len,
            ..Self::from_file(file, Place::Path(path.to_owned()))
        })
    }

    /// An empty file in memory.
    ///
    /// # Errors
    /// From `memfd_create(2)`.
    pub fn in_memory() -> io::Result<MappedFile> {
        let made = File::from(rustix::fs::memfd_create("memfs-copy", MemfdFlags::CLOEXEC)?);
        // The descriptor it was made with does not count as one that writes, so with that one the kernel cannot tell
        // whether there are others; without /proc it is taken that there are.
        let again = format!("/proc/self/fd/{}", made.as_raw_fd());
        let again = File::options().read(true).write(true).open(again);
        Ok(Self::from_file(again.unwrap_or(made), Place::Memory))
    }

    fn from_file(file: File, place: Place) -> MappedFile {
        // Memory has no limit of its own that it could run into.
        let on_disk = !matches!(place, Place::Memory);
        let is_tmpfs = || rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
        MappedFile {
            holes_take_room: on_disk && is_tmpfs(),
            file,
            len: 0,
            place,
            mapping: std::sync::OnceLock::new(),
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts off or extends with a hole. Wants `&mut`: nobody may be reading.
    ///
    /// # Errors
    /// From `ftruncate(2)`.
    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len != self.len {
            self.file.set_len(len)?;
            self.len = len;
        }
        if self
            .mapping
            .get()
            .is_some_and(|mapping| (mapping.len() as u64) < len)
        {
            self.mapping = std::sync::OnceLock::new();
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset`, which must end within the file.
    ///
    /// # Errors
    /// From `pwrite(2)`; some of the bytes may have been written.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    /// Writes all the pieces one after the other at `offset`, within the file.
    ///
    /// # Errors
    /// From `pwritev(2)`; some of the bytes may have been written.
    pub fn write_pieces_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check(offset, pieces.iter().map(|piece| piece.len() as u64).sum())?;
        let mut at = offset;
        for batch in pieces.chunks(PIECES_MAX) {
            let len: usize = batch.iter().map(|piece| piece.len()).sum();
            let written = rustix::io::pwritev(&self.file, batch, at)?;
            if written < len {
                self.write_rest(batch, written, at)?;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// After a short `pwritev(2)`: a signal, or a disk that is about to be full.
    fn write_rest(&self, pieces: &[IoSlice<'_>], written: usize, offset: u64) -> io::Result<()> {
        let (mut skip, mut at) = (written, offset + written as u64);
        for piece in pieces {
            let rest = &piece[skip.min(piece.len())..];
            skip -= skip.min(piece.len());
            self.file.write_all_at(rest, at)?;
            at += rest.len() as u64;
        }
        Ok(())
    }

    /// Makes a range of the file a hole.
    ///
    /// # Errors
    /// From `fallocate(2)`.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?)
    }

    /// Bytes the file takes on its disk or in memory.
    ///
    /// # Errors
    /// From `fstat(2)`.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// The first bytes at or after `from` that are no hole: a start and an end. `None` if there are none, or
    /// that cannot be told.
    pub fn next_data(&self, from: u64) -> Option<(u64, u64)> {
        use rustix::fs::SeekFrom;
        let start = rustix::fs::seek(&self.file, SeekFrom::Data(from)).ok()?;
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).ok()?;
        Some((start, end))
    }

    /// Whether anybody but this `MappedFile` has the file open or mapped, in this process or another.
    ///
    /// # Errors
    /// Where the file system cannot tell.
    pub fn is_in_use_elsewhere(&self) -> io::Result<bool> {
        super::lease::is_open_elsewhere(&self.file)
    }

    /// Puts a file with the same bytes and holes in the place of this one, which stays as it is for those who
    /// have it open or mapped. One with a name keeps its name, at every instant; until it has that, it is called as
    /// [`UNFINISHED`] says.
    ///
    /// # Errors
    /// From making and copying; then nothing has changed.
    pub fn part(&mut self) -> io::Result<()> {
        let mut fresh = match &self.place {
            Place::Memory => MappedFile::in_memory()?,
            Place::Directory(directory) => MappedFile::in_directory(directory)?,
            Place::Path(path) => {
                let unfinished = path.with_extension(UNFINISHED);
                match std::fs::remove_file(&unfinished) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => MappedFile::named(&unfinished)?,
                }
            }
        };
        fresh.set_len(self.len)?;
        self.copy_to(&fresh)?;
        if let Place::Path(path) = &self.place {
            std::fs::rename(path.with_extension(UNFINISHED), path)?;
        }
        self.file = fresh.file;
        self.mapping = std::sync::OnceLock::new();
        Ok(())
    }

    /// Copies all that is no hole.
    fn copy_to(&self, other: &MappedFile) -> io::Result<()> {
        use rustix::fs::SeekFrom;
        let mut at = 0;
        while at < self.len {
            let mut from = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => return Ok(()),
                start => start?,
            };
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(from))?.min(self.len);
            let mut to = from;
            while from < at {
                let len = usize::try_from(at - from).unwrap_or(usize::MAX);
                let (file, other) = (&self.file, &other.file);
                let copied =
                    rustix::fs::copy_file_range(file, Some(&mut from), other, Some(&mut to), len)?;
                if copied == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// From `fdatasync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Hands the bytes at `offset` to `deliver`, which should only pass them on to the kernel or copy
    /// them: another thread may be writing them, so what it sees may be half old and half new.
    ///
    /// # Errors
    /// Where the range passes the end of the file, or no mapping can be had.
    pub fn with_bytes<R>(
        &self,
        offset: u64,
        len: usize,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> io::Result<R> {
        self.check(offset, len as u64)?;
        if len == 0 {
            return Ok(deliver(&[]));
        }
        let mapping = self.mapping()?;
        if self.holes_take_room && !populate(mapping, offset as usize, len) {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, offset)?;
            return Ok(deliver(&bytes));
        }
        // SAFETY: the range lies within the file by the check above and within the mapping, which
        // `set_len` replaces before the file outgrows it; the file cannot shrink meanwhile, because
        // that takes `&mut self` (and the file has no name by which others could shrink it, or one in a folder
        // that only this user can enter: who cuts it off there gets this process a SIGBUS). The bytes
        // may change under the slice by `pwritev` on another thread; the contract above confines what
        // is done with them to copying, whose outcome is then unspecified bytes and nothing worse.
        let bytes =
            unsafe { std::slice::from_raw_parts(mapping.as_ptr().add(offset as usize), len) };
        Ok(deliver(bytes))
    }

    fn mapping(&self) -> io::Result<&MmapRaw> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let len = self.len.saturating_add(self.len / 2).max(MAPPING_BYTES_MIN);
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mapping = MmapOptions::new().len(len).map_raw_read_only(&self.file)?;
        Ok(self.mapping.get_or_init(|| mapping))
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

impl AsFd for MappedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Has the pages of a range mapped; false where that cannot be (Linux 5.14 or later can). The range is within the mapping.
fn populate(mapping: &MmapRaw, offset: usize, len: usize) -> bool {
    let start = offset - offset % rustix::param::page_size();
    let advice = rustix::mm::Advice::LinuxPopulateRead;
    // SAFETY: the pages are those of the range, so within the mapping; they are read and nothing else.
    unsafe {
        let pages = mapping.as_mut_ptr().add(start).cast();
        rustix::mm::madvise(pages, offset + len - start, advice).is_ok()
    }
}

/// Opens a regular file for reading and writing, made with mode 0600 if there is none.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no regular file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut file = MappedFile::in_memory().unwrap();
        file.set_len(10_000).unwrap();
        file.write_at(b"abc", 4095).unwrap();
        file.write_pieces_at(&[IoSlice::new(b"d"), IoSlice::new(b"ef")], 4098)
            .unwrap();
        file.with_bytes(4095, 6, |bytes| assert_eq!(bytes, b"abcdef"))
            .unwrap();
        file.punch(4096, 4096).unwrap();
        file.with_bytes(4095, 6, |bytes| assert_eq!(bytes, b"a\0\0\0\0\0"))
            .unwrap();
    }

    #[test]
    fn nothing_reaches_past_the_end() {
        let mut file = MappedFile::in_memory().unwrap();
        file.set_len(100).unwrap();
        assert!(file.write_at(b"abc", 98).is_err());
        assert!(file.with_bytes(98, 3, |_| ()).is_err());
        assert!(file.with_bytes(u64::MAX, 3, |_| ()).is_err());
        file.with_bytes(98, 2, |bytes| assert_eq!(bytes, b"\0\0"))
            .unwrap();
    }

    #[test]
    fn grows_beyond_its_mapping_and_shrinks() {
        let mut file = MappedFile::in_memory().unwrap();
        file.set_len(1).unwrap();
        file.with_bytes(0, 1, |_| ()).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_at(b"end", (64 << 20) - 3).unwrap();
        file.with_bytes((64 << 20) - 3, 3, |bytes| assert_eq!(bytes, b"end"))
            .unwrap();
        file.set_len(5000).unwrap();
        file.set_len(64 << 20).unwrap();
        file.with_bytes((64 << 20) - 3, 3, |bytes| assert_eq!(bytes, b"\0\0\0"))
            .unwrap();
    }

    #[test]
    fn who_reads_a_file_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.copy");
        for mut file in [
            MappedFile::in_memory().unwrap(),
            MappedFile::in_directory(folder.path()).unwrap(),
            MappedFile::named(&path).unwrap(),
        ] {
            file.set_len(3 << 20).unwrap();
            file.write_at(b"abc", (1 << 20) - 1).unwrap();
            file.with_bytes(0, 1, |_| ()).unwrap();
            assert!(!file.is_in_use_elsewhere().unwrap());
            let through = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            let reader = File::open(through).unwrap();
            let mapping = MmapOptions::new().map_raw_read_only(&reader).unwrap();
            assert!(file.is_in_use_elsewhere().unwrap());
            drop(reader);
            assert!(file.is_in_use_elsewhere().unwrap(), "a mapping is a use");

            file.part().unwrap();
            assert!(!file.is_in_use_elsewhere().unwrap());
            file.write_at(b"xyz", 1 << 20).unwrap();
            let place = (1 << 20) - 1;
            file.with_bytes(place, 4, |bytes| assert_eq!(bytes, b"axyz"))
                .unwrap();
            assert!(file.allocated_bytes().unwrap() < 1 << 20, "holes stay");
            // SAFETY: within the mapping, whose file nobody writes to.
            let seen =
                unsafe { std::slice::from_raw_parts(mapping.as_ptr().add(place as usize), 4) };
            assert_eq!(seen, b"abc\0");
        }
        let found = std::fs::read(&path).unwrap();
        assert_eq!(found[(1 << 20) - 1..][..4], *b"axyz");
        assert!(!path.with_extension(UNFINISHED).exists());
    }

    #[test]
    fn many_pieces() {
        let mut file = MappedFile::in_memory().unwrap();
        file.set_len(5000).unwrap();
        let pieces: Vec<_> = (0..2500).map(|_| IoSlice::new(b"xy")).collect();
        file.write_pieces_at(&pieces, 0).unwrap();
        file.with_bytes(0, 5000, |bytes| {
            assert!(bytes.chunks(2).all(|pair| pair == b"xy"));
        })
        .unwrap();
    }
}
