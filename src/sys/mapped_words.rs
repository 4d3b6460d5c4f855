//! A sparse file of 64-bit words, mapped for reading and writing: what is stored in a word is in the file at
//! once, also where the process ends at the next instruction, and costs no system call.
//!
//! A word in a hole reads as 0. Before the first store in a page of the file, [`MappedWords::reserve`] has to
//! have allotted it: on a full disk that is an error, the store alone would be a SIGBUS.

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes in a word.
const WORD_BYTES: u64 = 8;

/// A file of words, mapped.
#[derive(Debug)]
pub struct MappedWords {
    file: File,
    /// In words; all of them are mapped and below the end of the file.
    len: u64,
    mapping: Option<MmapRaw>,
}

impl MappedWords {
    /// Opens a file in a folder that nobody else can enter, made empty with mode 0600 if there is none. Words
    /// past the last whole one are ignored.
    ///
    /// # Errors
    /// From `open(2)`; where it is no regular file.
    pub fn open(path: &Path) -> io::Result<MappedWords> {
        let file = super::mapped_file::open_private(path)?;
        let mut words = MappedWords {
            file,
            len: 0,
            mapping: None,
        };
        let len = words.file.metadata()?.len() / WORD_BYTES;
        words.map(len)?;
        Ok(words)
    }

    /// Size in words.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no word.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Extends it with a hole.
    ///
    /// # Errors
    /// From `ftruncate(2)` and `mmap(2)`.
    pub fn extend(&mut self, len: u64) -> io::Result<()> {
        if len > self.len {
            let bytes = len.checked_mul(WORD_BYTES);
            self.file
                .set_len(bytes.ok_or(io::ErrorKind::InvalidInput)?)?;
            self.map(len)?;
        }
        Ok(())
    }

    fn map(&mut self, len: u64) -> io::Result<()> {
        if len > 0 {
            let bytes = usize::try_from(len * WORD_BYTES);
            let bytes = bytes.map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.mapping = Some(MmapOptions::new().len(bytes).map_raw(&self.file)?);
        }
        self.len = len;
        Ok(())
    }

    /// Allots disk space for words, so that they can be stored to.
    ///
    /// # Errors
    /// From `fallocate(2)`; where they pass the end.
    pub fn reserve(&self, first: u64, count: u64) -> io::Result<()> {
        match first.checked_add(count) {
            Some(end) if end <= self.len => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        let (offset, len) = (first * WORD_BYTES, count * WORD_BYTES);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            // Not every file system has it: writing does the same, also where there are words already.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                use std::os::unix::fs::FileExt;
                let bytes: Vec<u8> = (first..first + count)
                    .flat_map(|at| self.load(at).to_le_bytes())
                    .collect();
                self.file.write_all_at(&bytes, offset)
            }
            outcome => Ok(outcome?),
        }
    }

    /// The first words at or after `from` that disk space is allotted for: a start and an end. `None` if there are
    /// none, or that cannot be told.
    pub fn allotted(&self, from: u64) -> Option<(u64, u64)> {
        let start = rustix::fs::seek(&self.file, SeekFrom::Data(from * WORD_BYTES)).ok()?;
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).ok()?;
        let words = (start / WORD_BYTES, end.div_ceil(WORD_BYTES).min(self.len));
        (words.0 < words.1).then_some(words)
    }

    /// Makes what was stored durable.
    ///
    /// # Errors
    /// From `fdatasync(2)`, which also writes what was stored through the mapping.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Bytes the file takes on its disk.
    ///
    /// # Errors
    /// From `fstat(2)`.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// A word; 0 past the end.
    pub fn load(&self, at: u64) -> u64 {
        self.word(at)
            .map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Stores a word. Nothing happens past the end.
    pub fn store(&self, at: u64, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Sets bits of a word. Nothing happens past the end.
    pub fn set_bits(&self, at: u64, bits: u64) {
        if let Some(word) = self.word(at) {
            word.fetch_or(bits.to_le(), Ordering::AcqRel);
        }
    }

    /// Clears bits of a word. Nothing happens past the end.
    pub fn clear_bits(&self, at: u64, bits: u64) {
        if let Some(word) = self.word(at) {
            word.fetch_and(!bits.to_le(), Ordering::AcqRel);
        }
    }

    fn word(&self, at: u64) -> Option<&AtomicU64> {
        let mapping = self.mapping.as_ref().filter(|_| at < self.len)?;
        // SAFETY: the word lies within the mapping, which is longer than any `at` below `len` needs, lives as
        // long as the reference, and is aligned to pages, so the word is aligned. All access in this process is
        // by these atomic operations; other processes have no business with the file, and whatever they store
        // there, a u64 is a u64. If they cut it off, access is a SIGBUS and nothing worse.
        Some(unsafe { AtomicU64::from_ptr(mapping.as_mut_ptr().cast::<u64>().add(at as usize)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        let mut words = MappedWords::open(&path).unwrap();
        assert!(words.is_empty() && words.load(0) == 0);
        words.extend(4096).unwrap();
        assert!(words.reserve(4000, 97).is_err());
        words.reserve(512, 512).unwrap();
        words.store(512, 5);
        words.set_bits(513, 7);
        words.clear_bits(513, 2);
        words.store(5000, 1);
        words.extend(1 << 20).unwrap();
        assert_eq!(
            (words.load(512), words.load(513), words.load(5000)),
            (5, 5, 0)
        );
        drop(words);
        let words = MappedWords::open(&path).unwrap();
        assert_eq!(
            (words.len(), words.load(512), words.load(513)),
            (1 << 20, 5, 5)
        );
        let (start, end) = words.allotted(0).unwrap();
        assert!(start <= 512 && 513 < end, "{start} {end}");
        words.sync().unwrap();
        assert!(words.allocated_bytes().unwrap() > 0);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[4096..4104], 5u64.to_le_bytes());
    }
}
