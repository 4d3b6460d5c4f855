//! What an earlier mount had not pushed, when its process ended or the authority could not be reached.
//!
//! ```text
//!  files marked as open for writing, each:
//!    found under its path, the same file? ── no ──────────────────────┐
//!    │ yes                                                            │
//!    stamp as recorded, or changed by nobody but that mount? ── no ───┤
//!    │ yes                                                            ▼
//!    └──▶ opened, taken up, pushed in the background        dirty pages are set aside: a conflict
//! ```
//!
//! That mount may have pushed more than it could record, so the stamp alone does not tell: the authority is asked
//! whether anybody else has changed the file since. Where it was started anew and does not know, the stamp after
//! the last push that was answered will do, or that a push that was under way is found in the file; what is clean
//! is then dropped, for others may have changed that. The mount can be used once all this is decided.

use super::Kept;
use super::map::Base;
use crate::node::replica::region::io_errno;
use crate::node::replica::{Entry, ROOT, Replica, transfer};

use crate::store::{Errno, Result};
use crate::units::{PAGE_BYTES, PageRange};
use crate::wire::{Answer, FileId, Node, ReadRequest, RelPath};
use std::sync::Arc;

/// Pages compared of each push that was under way.
const COMPARED_PAGES: u64 = 64;
/// Files looked at at once.
const AT_ONCE: usize = 32;

impl Replica {
    /// Takes up what an earlier mount of this source had not pushed.
    pub(in crate::node::replica) async fn recover(self: &Arc<Self>) {
        self.recover_all().await;
        let kept = self.conflicts().len();
        if kept > 0 {
            tracing::warn!(
                "of {kept} files that others have changed bytes are kept that were not pushed: see 'memfs conflicts'"
            );
        }
    }

    async fn recover_all(self: &Arc<Self>) {
        let Some(cache) = &self.shared.cache else {
            return;
        };
        let marked = cache.marked();
        if marked.is_empty() {
            return;
        }
        if self.is_read_only() {
            tracing::info!(
                "bytes that an earlier mount had not pushed wait for one that is not read-only"
            );
            return;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for id in marked {
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await;
            }
            let replica = Arc::clone(self);
            tasks.spawn(async move { replica.recover_one(id).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn recover_one(self: Arc<Self>, id: FileId) {
        let Some(cache) = &self.shared.cache else {
            return;
        };
        // What cannot be read is dropped, and told of, when the file is opened.
        let found = cache.find(id).ok().map(|kept| {
            let dirty = kept.map.has_dirty();
            (kept.map.path().cloned(), kept.map.base(), dirty)
        });
        let Some((path, base, dirty)) = found else {
            return cache.unmark_writing(id);
        };
        let path = path.unwrap_or_default();
        let outcome = self.take_up(id, &path, base, dirty).await;
        match outcome {
            Ok(()) if !dirty => cache.unmark_writing(id),
            Ok(()) => tracing::warn!(
                "{path:?}: bytes that an earlier mount had not pushed are pushed now"
            ),
            Err(_) if !dirty => cache.unmark_writing(id),
            Err(Errno::STALE) => {
                let why = "others have changed the file";
                self.shared.set_aside(cache, id, why);
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                let why = "the file is not there any more";
                self.shared.set_aside(cache, id, why);
            }
            Err(errno) => {
                tracing::warn!(
                    "{path:?}: bytes that an earlier mount had not pushed stay here: {errno}"
                );
            }
        }
    }

    /// `ESTALE` where others have changed the file, `ENOENT` where it is not there.
    async fn take_up(
        self: &Arc<Self>,
        id: FileId,
        path: &RelPath,
        base: Option<Base>,
        dirty: bool,
    ) -> Result<()> {
        let entry = self.find_path(path).await?;
        let outcome = self.take_up_node(&entry, id, path, base, dirty).await;
        self.forget(entry.node, 1);
        outcome
    }

    async fn take_up_node(
        self: &Arc<Self>,
        entry: &Entry,
        id: FileId,
        path: &RelPath,
        base: Option<Base>,
        dirty: bool,
    ) -> Result<()> {
        if entry.attr.id != id {
            return Err(Errno::NOENT);
        }
        let base = base.ok_or(Errno::STALE)?;
        let stamp = entry.attr.stamp();
        if base.stamp != stamp {
            let cache = self.shared.cache.as_ref().ok_or(Errno::STALE)?;
            let alone = self.was_alone(id, path, &base).await;
            let mut kept = cache.find(id).map_err(|_| Errno::STALE)?;
            match alone {
                Ok(()) => {}
                Err(Errno::STALE) => {
                    let expected = kept.map.pushed() == Some(stamp);
                    if !expected && !self.has_arrived(id, path, &kept).await? {
                        return Err(Errno::STALE);
                    }
                    kept.map.forget_clean();
                }
                Err(errno) => return Err(errno),
            }
            kept.map.set_base(Base { stamp, ..base });
        }
        if dirty {
            let (handle, _) = self.open(entry.node, false, true).await?;
            self.remember(entry.node);
            let (replica, node) = (Arc::clone(self), entry.node);
            tokio::spawn(async move {
                // What is refused stays dirty, as with any program's; the next close or fsync tells.
                if let Err(errno) = replica.flush(handle).await {
                    tracing::warn!("bytes of an earlier mount cannot be pushed: {errno}");
                }
                replica.shared.finish_recording().await;
                replica.close(handle);
                replica.forget(node, 1);
            });
        }
        Ok(())
    }

    /// Whether nobody but the earlier mount has changed the file since its copy was good. `ESTALE`.
    async fn was_alone(&self, id: FileId, path: &RelPath, base: &Base) -> Result<()> {
        if self.shared.era().boot != base.boot {
            return Err(Errno::STALE);
        }
        let node = Node {
            id,
            path: path.clone(),
        };
        let (after, by) = (base.at, base.client);
        match self
            .shared
            .link
            .read(ReadRequest::Only { node, after, by })
            .await?
        {
            (_, Answer::Done) => Ok(()),
            _ => Err(Errno::PROTO),
        }
    }

    /// Whether a push that was under way has reached the file: then it explains that the stamp is another one.
    async fn has_arrived(&self, id: FileId, path: &RelPath, kept: &Kept) -> Result<bool> {
        let size = kept.map.size().min(kept.copy.len());
        let (_, dirty) = kept.map.pages(size);
        let node = Node {
            id,
            path: path.clone(),
        };
        for push in kept.map.pushes() {
            let Some(run) = dirty.runs_in(push).next() else {
                continue;
            };
            let end = run.end.min(run.start + COMPARED_PAGES);
            let range = PageRange::new(run.start, end).bytes_below(size);
            let here = kept
                .copy
                .with_bytes(range.start, range.len() as usize, <[u8]>::to_vec);
            let here = here.map_err(io_errno)?;
            let there = transfer::read_there(&self.shared, node.clone(), range).await?;
            let mut pages = here
                .chunks(PAGE_BYTES as usize)
                .zip(there.chunks(PAGE_BYTES as usize));
            // Zeroes tell nothing: they may have been there before.
            if pages.any(|(here, there)| here == there && here.iter().any(|byte| *byte != 0)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The node at a path below the root; it is referred to once more.
    pub(in crate::node::replica) async fn find_path(&self, path: &RelPath) -> Result<Entry> {
        let mut names = Vec::new();
        let mut rest = path.clone();
        while let Some((dir, name)) = rest.split() {
            names.push(name);
            rest = dir;
        }
        let mut found: Option<Entry> = None;
        for name in names.iter().rev() {
            let dir = found.map_or(ROOT, |entry| entry.node);
            let next = self.lookup(dir, name).await;
            if let Some(entry) = found {
                self.forget(entry.node, 1);
            }
            found = Some(next?);
        }
        found.ok_or(Errno::NOENT)
    }
}
