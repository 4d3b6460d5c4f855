//! Directories, listed a piece at a time.
//!
//! A cursor is the offset the kernel gives with each entry, good for any descriptor of the directory
//! on most file systems. Some count entries instead, so that a removal would shift what
//! follows; and some seek slowly. So a listing that is not at its end keeps its descriptor, and
//! what it has read ahead, until the rest is asked for. Only if that was given up meanwhile does the
//! next piece begin with a seek.

use super::attributes::stat_at;
use super::tree::{Located, reopen_directory};
use crate::store::{Errno, Result};
use crate::wire::{DirEntry, FileId, Name};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{RawDir, SeekFrom};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The most listings kept open.
const OPEN_MAX: usize = 32;
/// How long a listing is kept open that nobody goes on with.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Read ahead: about a thousand entries.
const BUFFER_BYTES: usize = 32 << 10;

/// Listings under way.
#[derive(Default)]
pub struct Listings(Mutex<VecDeque<Kept>>);

struct Kept {
    dir: FileId,
    cursor: u64,
    since: Instant,
    stream: Stream,
}

/// An open directory.
struct Stream {
    fd: OwnedFd,
    /// Names read and not yet asked for, with the cursors after them.
    ahead: VecDeque<(Name, u64)>,
}

impl Listings {
    /// Up to `max` entries of `dir` after `cursor`, none only at the end.
    pub fn read(&self, dir: &Located, cursor: u64, max: usize) -> Result<Vec<DirEntry>> {
        let id = dir.attr.id;
        let mut stream = match self.take(id, cursor) {
            Some(stream) => stream,
            None => Stream::open(dir, cursor)?,
        };
        let mut entries = Vec::new();
        while entries.len() < max {
            let Some((name, cursor)) = stream.next()? else {
                return Ok(entries);
            };
            match stat_at(&stream.fd, &name) {
                Ok(attr) => entries.push(DirEntry {
                    name,
                    attr,
                    cursor,
                    xattrs: None,
                }),
                Err(Errno::NOENT) => {}
                Err(Errno::ACCESS) => return Err(Errno::ACCESS),
                // A broken mount or a bad block is no reason to hide the others.
                Err(error) => tracing::warn!("entry {name:?} is not listed: {error}"),
            }
        }
        if let Some(last) = entries.last() {
            self.keep(id, last.cursor, stream);
        }
        Ok(entries)
    }

    fn take(&self, dir: FileId, cursor: u64) -> Option<Stream> {
        let mut kept = self.0.lock();
        let at = kept
            .iter()
            .position(|kept| kept.cursor == cursor && kept.dir == dir)?;
        kept.remove(at).map(|kept| kept.stream)
    }

    fn keep(&self, dir: FileId, cursor: u64, stream: Stream) {
        let since = Instant::now();
        let mut kept = self.0.lock();
        kept.retain(|kept| since.duration_since(kept.since) < IDLE_MAX);
        if kept.len() >= OPEN_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept {
            dir,
            cursor,
            since,
            stream,
        });
    }
}

impl Stream {
    fn open(dir: &Located, cursor: u64) -> Result<Stream> {
        let fd = reopen_directory(&dir.fd)?;
        if cursor != 0 {
            if i64::try_from(cursor).is_err() {
                return Err(Errno::INVAL);
            }
            rustix::fs::seek(&fd, SeekFrom::Start(cursor))?;
        }
        Ok(Stream {
            fd,
            ahead: VecDeque::new(),
        })
    }

    fn next(&mut self) -> Result<Option<(Name, u64)>> {
        while self.ahead.is_empty() {
            if !self.read_ahead()? {
                return Ok(None);
            }
        }
        Ok(self.ahead.pop_front())
    }

    /// Whether there was more.
    fn read_ahead(&mut self) -> Result<bool> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut entries = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            any = true;
            let cursor = entry.next_entry_cookie();
            // `.` and `..` are no names, so they drop out here.
            if let Some(name) = Name::new(entry.file_name().to_bytes()) {
                if cursor == 0 {
                    // Going on after it would begin anew, for ever.
                    return Err(Errno::IO);
                }
                self.ahead.push_back((name, cursor));
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(any)
    }
}
