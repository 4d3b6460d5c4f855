//! Dirty pages of files that others had changed when they were found: kept until somebody settles it.
//!
//! The authority's version stays the file. Ours lies in the folder `conflicts`, a copy and its page map as they
//! were, under a name of its own, until it is pushed over the other one or dropped.

use super::map::PageMap;
use super::{Cache, private_folder, stem};
use crate::node::replica::region::io_errno;
use crate::node::replica::{NodeNo, Replica, Shared};
use crate::store::{Errno, Result};
use crate::sys::MappedFile;
use crate::units::{ByteRange, PAGE_BYTES};
use crate::wire::{FileId, RelPath};
use std::io;
use std::path::PathBuf;

/// Conflicts of one file that are kept.
const EACH_MAX: u32 = 10_000;
/// Bytes written at once to settle one.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes of this side that are kept beside the file that others have changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Conflict {
    /// Path below the mount, where the file was last seen.
    pub path: String,
    /// Bytes of ours.
    pub dirty_bytes: u64,
    /// Size of the file as programs on this side saw it.
    pub size: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
}

struct Aside {
    path: RelPath,
    map: PageMap,
    /// Without the suffix.
    file: PathBuf,
}

impl Aside {
    fn copy(&self) -> PathBuf {
        self.file.with_extension("copy")
    }

    fn describe(&self) -> Conflict {
        let size = self.map.size();
        let (_, dirty) = self.map.pages(size);
        Conflict {
            path: self.path.as_os().to_string_lossy().into_owned(),
            dirty_bytes: dirty.runs().map(|run| run.bytes_below(size).len()).sum(),
            size,
            used: self.map.used(),
        }
    }
}

impl Cache {
    /// Moves the copy of a file away. The copy is made durable: no later check would find it torn.
    fn move_aside(&self, id: FileId) -> io::Result<RelPath> {
        let folder = self.folder.join("conflicts");
        private_folder(&folder)?;
        let kept = self.find(id).map_err(io::Error::other)?;
        kept.copy.sync()?;
        kept.map.sync()?;
        let free = (1..EACH_MAX).map(|count| folder.join(format!("{}-{count}.map", stem(id))));
        let map = free.into_iter().find(|map| !map.exists());
        let map = map.ok_or(io::ErrorKind::StorageFull)?;
        // The map last: without it there is nothing.
        let (own, copy) = (self.path(id, "copy"), map.with_extension("copy"));
        std::fs::rename(&own, &copy)?;
        if let Err(error) = std::fs::rename(self.path(id, "map"), &map) {
            std::fs::rename(&copy, &own)?;
            return Err(error);
        }
        if let Err(error) = std::fs::File::open(&folder).and_then(|folder| folder.sync_all()) {
            tracing::warn!("{}: {error}", folder.display());
        }
        self.unmark_writing(id);
        Ok(kept.map.path().cloned().unwrap_or_default())
    }

    fn asides(&self) -> Vec<Aside> {
        let entries = std::fs::read_dir(self.folder.join("conflicts"));
        let paths = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let maps = paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "map"));
        let mut asides: Vec<Aside> = maps
            .filter_map(|file| match PageMap::open(&file) {
                Ok(map) => Some(Aside {
                    path: map.path().cloned().unwrap_or_default(),
                    map,
                    file: file.with_extension(""),
                }),
                Err(damage) => {
                    tracing::warn!(
                        "a conflict that cannot be read: {}: {damage}",
                        file.display()
                    );
                    None
                }
            })
            .collect();
        asides.sort_by(|a, b| (&a.path, a.map.used()).cmp(&(&b.path, b.map.used())));
        asides
    }

    fn aside_of(&self, path: &str) -> Option<Aside> {
        let mut asides = self.asides().into_iter();
        asides.find(|aside| aside.path.as_os().to_string_lossy() == path)
    }

    fn drop_aside(&self, aside: &Aside) -> io::Result<()> {
        std::fs::remove_file(aside.file.with_extension("map"))?;
        std::fs::remove_file(aside.copy())
    }
}

impl Shared {
    /// The dirty pages of a copy cannot be pushed: keeps them beside the file. Where that fails they stay where they
    /// are, for the next time, and it is false.
    pub(in crate::node::replica) fn set_aside(&self, cache: &Cache, id: FileId, why: &str) -> bool {
        let moved = cache.move_aside(id);
        match &moved {
            Ok(path) => tracing::warn!(
                "{path:?}: {why}, and an earlier mount had bytes for it that were not pushed: both are kept, see \
                 'memfs conflicts'"
            ),
            Err(error) => tracing::error!(
                "{}: {why}, and bytes for it that were not pushed cannot be set aside yet: {error}",
                cache.path(id, "copy").display()
            ),
        }
        moved.is_ok()
    }
}

impl Replica {
    /// What is kept beside files that others have changed.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let asides = self.shared.cache.as_ref().map(Cache::asides);
        asides.iter().flatten().map(Aside::describe).collect()
    }

    /// Drops what is kept beside the file at this path.
    ///
    /// # Errors
    /// `ENOENT` where nothing is.
    pub fn drop_conflict(&self, path: &str) -> Result<()> {
        let cache = self.shared.cache.as_ref().ok_or(Errno::NOENT)?;
        let aside = cache.aside_of(path).ok_or(Errno::NOENT)?;
        let dropped = cache.drop_aside(&aside);
        dropped.map_err(io_errno)
    }

    /// Pushes what is kept beside the file at this path over what is there now, until it is durable.
    ///
    /// # Errors
    /// `ENOENT` where nothing is kept, or no file is there; else what writing to it gives.
    pub async fn keep_conflict(&self, path: &str) -> Result<()> {
        let cache = self.shared.cache.as_ref().ok_or(Errno::NOENT)?;
        let aside = cache.aside_of(path).ok_or(Errno::NOENT)?;
        let copy = MappedFile::named(&aside.copy()).map_err(io_errno)?;
        if copy.len() < aside.map.copy_bytes() {
            return Err(Errno::IO);
        }
        let node = self.find_path(&aside.path).await?.node;
        let outcome = self.write_aside(node, &aside, &copy).await;
        self.forget(node, 1);
        outcome?;
        let dropped = cache.drop_aside(&aside);
        dropped.map_err(io_errno)
    }

    async fn write_aside(&self, node: NodeNo, aside: &Aside, copy: &MappedFile) -> Result<()> {
        let (handle, _) = self.open(node, false, true).await?;
        let outcome = async {
            let size = aside.map.size().min(copy.len());
            let (_, dirty) = aside.map.pages(size);
            for run in dirty.runs() {
                let ByteRange { start, end } = run.bytes_below(size);
                let mut at = start;
                while at < end {
                    let len = (end - at).min(STEP_BYTES).min(STEP_BYTES - at % PAGE_BYTES);
                    let bytes = copy.with_bytes(at, len as usize, <[u8]>::to_vec);
                    let bytes = bytes.map_err(io_errno)?;
                    self.write(handle, at, &bytes, false).await?;
                    at += len;
                }
            }
            self.sync(handle, false).await
        };
        let outcome = outcome.await;
        self.close(handle);
        outcome
    }
}
