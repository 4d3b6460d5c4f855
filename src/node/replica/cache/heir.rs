//! A file that takes another one's place: who writes a new file and renames it over the old one (editors, rsync, git)
//! mostly keeps most of the bytes.
//!
//! `paths/` has a file for each path, named by its hash, that tells whose copy was last seen there. A larger file that is
//! opened and has no copy inherits the one of its predecessor, if nobody uses that and nothing of it is dirty. What it
//! inherits is old, and is compared with what the file is now before it counts: see [`super::take_up`]. So nothing
//! need be true of what `paths/` says.

use super::map::PageMap;
use super::{Cache, hex, parse_stem, stem};
use crate::node::replica::Shared;
use crate::node::replica::nodes::Node;
use crate::wire::{Attr, FileId, RelPath};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Smaller files are brought as fast as they are compared.
const HEIR_BYTES_MIN: u64 = 1 << 20;
/// Where there are more paths than this, all are forgotten.
const PATHS_MAX: usize = 1 << 16;

impl Cache {
    fn heir_file(&self, path: &RelPath) -> PathBuf {
        let digest = ring::digest::digest(&ring::digest::SHA256, path.as_os().as_bytes());
        self.folder.join("paths").join(hex(&digest.as_ref()[..16]))
    }

    /// Notes whose copy it is that belongs to a path. Best effort.
    fn note_path(&self, id: FileId, path: &RelPath) {
        let file = self.heir_file(path);
        if let Some(folder) = file.parent() {
            let _ = super::private_folder(folder);
        }
        let mut options = std::fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&file)
            .and_then(|mut file| io::Write::write_all(&mut file, stem(id).as_bytes()));
        if let Err(error) = written {
            tracing::debug!("{}: {error}", file.display());
        }
    }

    /// Whose copy was last seen at a path.
    fn last_at(&self, path: &RelPath) -> Option<FileId> {
        parse_stem(&std::fs::read_to_string(self.heir_file(path)).ok()?)
    }

    /// Makes the copy of `old`, if nobody needs it, that of `heir`, which has none: all of it as old pages.
    fn inherit(&self, old: FileId, heir: FileId) -> io::Result<()> {
        let mut state = self.state.lock();
        let used = state.in_use.contains_key(&old) || state.in_use.contains_key(&heir);
        if used || self.holds(heir) || self.path(old, "open").exists() {
            return Ok(());
        }
        match PageMap::open(&self.path(old, "map")) {
            Ok(map) if !map.has_dirty() => {}
            // Not there any more, or not to be touched.
            _ => return Ok(()),
        }
        // In this order, so that no map ever goes with bytes it is not of.
        std::fs::remove_file(self.path(old, "map"))?;
        self.make_map(heir)?;
        std::fs::rename(self.path(old, "copy"), self.path(heir, "copy"))?;
        if let Some(idle) = state.idle.remove(&old) {
            state.idle.insert(heir, idle);
        }
        Ok(())
    }

    /// Forgets all paths, if they are too many.
    pub(super) fn bound_paths(&self) {
        let folder = self.folder.join("paths");
        if std::fs::read_dir(&folder).is_ok_and(|paths| paths.count() > PATHS_MAX) {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}

impl Shared {
    /// The file is about to get a region: gives it the copy of the one whose place it has taken, if it has none.
    pub(in crate::node::replica) fn find_heritage(&self, node: &Arc<Node>, attr: &Attr) {
        let Some(cache) = &self.cache else { return };
        let Ok(path) = node.path() else { return };
        if attr.size < HEIR_BYTES_MIN || node.region.lock().is_some() {
            return;
        }
        let old = cache.last_at(&path).filter(|old| *old != node.id);
        if let Some(old) = old
            && !cache.holds(node.id)
        {
            let known = self.nodes.by_id(old);
            // Moved to where it may be wanted as well.
            let elsewhere = |known: &Arc<Node>| known.path().is_ok_and(|at| at != path);
            if known.as_ref().is_some_and(elsewhere) {
                return;
            }
            if let Some(known) = known {
                self.give_up_idle(&known);
            }
            if let Err(error) = cache.inherit(old, node.id) {
                tracing::debug!("{path:?}: the copy of its predecessor is lost: {error}");
            }
        }
        if old.is_some() || cache.last_at(&path).is_none() {
            cache.note_path(node.id, &path);
        }
    }
}
