//! Names: looking up, making, linking, renaming, removing, listing.

use super::nodes::{Cached, Node};
use super::{DirItem, Entry, HandleNo, NodeNo, ROOT, Replica, Shared};
use crate::region::Tick;
use crate::store::{Errno, Result};
use crate::wire::{
    self, Answer, Attr, Caller, ChangeRequest, DirEntry, Make, Name, ReadRequest, RenameMode,
};
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A directory that is being read: what it listed so far.
pub(super) struct DirHandle {
    dir: Arc<Node>,
    listing: tokio::sync::Mutex<Listing>,
}

#[derive(Default)]
struct Listing {
    items: Vec<(Name, Arc<Node>, Attr)>,
    /// To go on at the authority; `None` at the end.
    next: Option<u64>,
}

/// Entries handed to a front end at once.
const BATCH: usize = 512;

impl Shared {
    /// The authority has listed an entry of a directory.
    fn listed(&self, dir: &Arc<Node>, name: &Name, attr: &Attr, at: Tick) -> Arc<Node> {
        let node = self.nodes.know(attr, dir, name);
        dir.learn_name(name, Some(node.no), at);
        self.adopt(&node, attr, at);
        node
    }

    /// Takes in what the authority has listed of the root when it let this mount in.
    pub(super) fn take_in(&self, listing: &wire::Listing) {
        if let Ok(root) = self.nodes.get(ROOT) {
            for entry in &listing.entries {
                self.listed(&root, &entry.name, &entry.attr, listing.at);
            }
        }
    }
}

impl Replica {
    /// Looks a name up and raises the node's lookup count.
    pub async fn lookup(&self, dir: NodeNo, name: &Name) -> Result<Entry> {
        let dir = self.shared.nodes.get(dir)?;
        if self.shared.link.lease_is_valid() {
            match self.shared.nodes.cached(&dir, name) {
                Cached::Absent => return Err(Errno::NOENT),
                Cached::Node(node) => {
                    if let Some(attr) = node.cached_attr() {
                        return Ok(self.refer(&node, &attr));
                    }
                }
                Cached::Unknown => {}
            }
        }
        self.bounded(async {
            let request = ReadRequest::Lookup {
                dir: dir.to_wire()?,
                name: name.clone(),
            };
            match self.shared.link.read_at_tick(request).await? {
                (at, Ok(Answer::Attr(attr))) => Ok(self.found(&dir, name, &attr, at)),
                (at, Err(Errno::NOENT)) => {
                    dir.learn_name(name, None, at);
                    Err(Errno::NOENT)
                }
                (_, Err(errno)) => Err(self.after(&dir, errno)),
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }

    /// As [`Replica::lookup`], without asking, by what was last known: good enough for finding pages to write back.
    pub fn lookup_known(&self, dir: NodeNo, name: &Name) -> Option<Entry> {
        let dir = self.shared.nodes.get(dir).ok()?;
        let Cached::Node(node) = self.shared.nodes.cached(&dir, name) else {
            return None;
        };
        let attr = node.cached_attr()?;
        Some(self.refer(&node, &attr))
    }

    /// Takes in that `name` in `dir` is the node `attr` is of; refers to it.
    fn found(&self, dir: &Arc<Node>, name: &Name, attr: &Attr, at: Tick) -> Entry {
        let node = self.shared.nodes.know(attr, dir, name);
        dir.learn_name(name, Some(node.no), at);
        self.shared.adopt(&node, attr, at);
        self.refer(&node, attr)
    }

    /// Makes the answer to the kernel, who refers to the node once more.
    fn refer(&self, node: &Arc<Node>, attr: &Attr) -> Entry {
        // An inode that is new to the kernel could miss an invalidation that is on its way: its attributes
        // are not to be kept (an inode it knows ignores answers older than an invalidation).
        let fresh = node.lookups.load(std::sync::atomic::Ordering::Relaxed) == 0;
        self.shared.nodes.refer(node);
        let mut entry = self.shared.entry(node, attr);
        if fresh {
            entry.ttl = std::time::Duration::ZERO;
        }
        entry
    }

    /// After an answer with `errno` to a request about `dir`: a stale path is not used again.
    fn after(&self, dir: &Arc<Node>, errno: Errno) -> Errno {
        if errno == Errno::STALE || errno == Errno::NOENT || errno == Errno::NOTDIR {
            let mut place = dir.state.lock().place.clone();
            dir.forget_names();
            while let Some((above, name)) = place {
                above.forget_name(&name);
                place = above.state.lock().place.clone();
            }
        }
        errno
    }

    /// Makes a node; as [`Replica::lookup`] of it.
    pub async fn make(
        &self,
        dir: NodeNo,
        name: &Name,
        make: Make,
        mode: u16,
        by: Caller,
    ) -> Result<Entry> {
        let dir = self.shared.nodes.get(dir)?;
        let by = self.shared.owners.to_server(by);
        self.bounded(async {
            let at_dir = dir.to_wire()?;
            let request = ChangeRequest::Make {
                dir: at_dir,
                name: name.clone(),
                make,
                mode,
                by,
            };
            match self.change_names(&dir, &[name], request).await? {
                (at, Answer::Attr(attr)) => Ok(self.found(&dir, name, &attr, at)),
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }

    /// Makes a regular file and opens it; as [`Replica::lookup`] of it.
    pub async fn create(
        &self,
        dir: NodeNo,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Result<(Entry, HandleNo)> {
        let dir = self.shared.nodes.get(dir)?;
        let by = self.shared.owners.to_server(by);
        self.bounded(async {
            let at_dir = dir.to_wire()?;
            let name_there = name.clone();
            let request = ChangeRequest::Create {
                dir: at_dir,
                name: name_there,
                mode,
                exclusive,
                by,
            };
            match self.change_names(&dir, &[name], request).await? {
                (
                    at,
                    Answer::Opened {
                        handle,
                        attr,
                        epoch,
                        ..
                    },
                ) => {
                    let entry = self.found(&dir, name, &attr, at);
                    let node = self.shared.nodes.get(entry.node)?;
                    let handle = self.opened(&node, handle, &attr, epoch, at, true).await?;
                    Ok((entry, handle))
                }
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }

    /// A further name; as [`Replica::lookup`] of it.
    pub async fn link(&self, node: NodeNo, dir: NodeNo, name: &Name) -> Result<Entry> {
        let node = self.shared.nodes.get(node)?;
        let dir = self.shared.nodes.get(dir)?;
        self.bounded(async {
            // The link counts and times the answer brings are to be the last word.
            self.shared.flush_node(&node).await?;
            node.touch();
            let request = ChangeRequest::Link {
                node: node.to_wire()?,
                dir: dir.to_wire()?,
                name: name.clone(),
            };
            match self.change_names(&dir, &[name], request).await? {
                (at, Answer::Attr(attr)) => Ok(self.found(&dir, name, &attr, at)),
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }

    /// Takes a name away.
    pub async fn remove(&self, dir: NodeNo, name: &Name, directory: bool) -> Result<()> {
        let dir = self.shared.nodes.get(dir)?;
        self.bounded(async {
            let request = ChangeRequest::Remove {
                dir: dir.to_wire()?,
                name: name.clone(),
                directory,
            };
            let known = self.shared.nodes.cached(&dir, name);
            if let Cached::Node(node) = &known {
                node.touch();
            }
            let (at, _) = self.change_names(&dir, &[name], request).await?;
            dir.learn_name(name, None, at);
            if let Cached::Node(node) = known {
                self.lost_name(&node, &dir, name).await;
            }
            Ok(())
        })
        .await
    }

    /// A node has lost a name: other names of it are found again by looking them up.
    async fn lost_name(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &Name) {
        node.touch();
        self.shared
            .queue(super::kernel::Job::DropAttributes(node.no));
        if node.is_at(dir, name) {
            node.unset_place();
            self.shared.unlinked(node).await;
        }
    }

    /// Renames.
    pub async fn rename(
        &self,
        from_dir: NodeNo,
        from: &Name,
        to_dir: NodeNo,
        to: &Name,
        mode: RenameMode,
    ) -> Result<()> {
        let from_dir = self.shared.nodes.get(from_dir)?;
        let to_dir = self.shared.nodes.get(to_dir)?;
        self.bounded(async {
            let moved = self.shared.nodes.cached(&from_dir, from);
            let target = self.shared.nodes.cached(&to_dir, to);
            for node in [&moved, &target] {
                if let Cached::Node(node) = node {
                    node.touch();
                }
            }
            let request = ChangeRequest::Rename {
                from_dir: from_dir.to_wire()?,
                from: from.clone(),
                to_dir: to_dir.to_wire()?,
                to: to.clone(),
                mode,
            };
            to_dir.forget_name(to);
            self.change_names(&from_dir, &[from], request).await?;
            to_dir.forget_name(to);
            to_dir.touch();
            self.renamed((&from_dir, from, &moved), (&to_dir, to, &target), mode)
                .await;
            self.shared.record_paths();
            Ok(())
        })
        .await
    }

    async fn renamed(
        &self,
        (from_dir, from, moved): (&Arc<Node>, &Name, &Cached),
        (to_dir, to, target): (&Arc<Node>, &Name, &Cached),
        mode: RenameMode,
    ) {
        let same = match (moved, target) {
            (Cached::Node(moved), Cached::Node(target)) => moved.no == target.no,
            _ => false,
        };
        if same {
            // Two names of one node: POSIX has rename do nothing.
            return;
        }
        if let Cached::Node(node) = moved {
            node.touch();
            node.set_place(to_dir, to);
            self.shared
                .queue(super::kernel::Job::DropAttributes(node.no));
        }
        if let Cached::Node(node) = target {
            if mode == RenameMode::Exchange {
                node.touch();
                node.set_place(from_dir, from);
            } else {
                self.lost_name(node, to_dir, to).await;
            }
        }
    }

    /// A change to names in `dir`: what was cached of them does not outlive it.
    async fn change_names(
        &self,
        dir: &Arc<Node>,
        names: &[&Name],
        request: ChangeRequest,
    ) -> Result<(Tick, Answer)> {
        if self.is_read_only() {
            return Err(Errno::ROFS);
        }
        for name in names {
            dir.forget_name(name);
        }
        let outcome = self.shared.link.change(request).await;
        for name in names {
            dir.forget_name(name);
        }
        dir.touch();
        outcome.map_err(|errno| self.after(dir, errno))
    }

    /// Opens a directory: what it lists is as of its last read at cursor 0.
    pub fn open_dir(&self, dir: NodeNo) -> Result<HandleNo> {
        let dir = self.shared.nodes.get(dir)?;
        let handle = self.shared.new_handle();
        let listing = tokio::sync::Mutex::new(Listing::default());
        let open = Arc::new(DirHandle { dir, listing });
        self.shared.dirs.write().insert(handle, open);
        Ok(handle)
    }

    /// Closes a directory.
    pub fn close_dir(&self, handle: HandleNo) {
        self.shared.dirs.write().remove(&handle);
        self.shared.sweep();
    }

    /// Entries after `cursor` (0: from the start, anew), `.` and `..` among them; empty at the end.
    pub async fn read_dir(&self, handle: HandleNo, cursor: u64) -> Result<Vec<DirItem>> {
        let open = self
            .shared
            .dirs
            .read()
            .get(&handle)
            .cloned()
            .ok_or(Errno::BADF)?;
        let mut listing = open.listing.lock().await;
        if cursor == 0 {
            let wanted = &self.shared.xattrs_wanted;
            let fewer = |listings: u32| listings.checked_sub(1);
            // Who wants them asks anew where they do not come any more.
            let _ = wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
            *listing = Listing {
                items: Vec::new(),
                next: Some(0),
            };
            return self.dots(&open.dir).await;
        }
        // Cursors 1 and 2 are behind `.` and `..`; the entry at index n has cursor n + 3.
        let index = cursor.saturating_sub(2) as usize;
        while listing.items.len() <= index && listing.next.is_some() {
            self.bounded(self.list_more(&open.dir, &mut listing))
                .await?;
        }
        let items = listing.items.iter().enumerate().skip(index).take(BATCH);
        Ok(items
            .map(|(index, (name, node, attr))| {
                let attr = node.cached_attr().unwrap_or(*attr);
                let mut entry = self.shared.entry(node, &attr);
                entry.ttl = std::time::Duration::ZERO;
                DirItem {
                    name: OsString::from(name.clone()),
                    entry,
                    cursor: index as u64 + 3,
                }
            })
            .collect())
    }

    async fn dots(&self, dir: &Arc<Node>) -> Result<Vec<DirItem>> {
        let this = self.get_attr(dir.no).await?;
        let above = dir
            .state
            .lock()
            .place
            .clone()
            .map_or(ROOT, |(above, _)| above.no);
        let above = Entry {
            node: above,
            ..this
        };
        Ok(vec![
            DirItem {
                name: ".".into(),
                entry: this,
                cursor: 1,
            },
            DirItem {
                name: "..".into(),
                entry: above,
                cursor: 2,
            },
        ])
    }

    async fn list_more(&self, dir: &Arc<Node>, listing: &mut Listing) -> Result<()> {
        let Some(cursor) = listing.next else {
            return Ok(());
        };
        let request = ReadRequest::ReadDir {
            dir: dir.to_wire()?,
            cursor,
            xattrs: self.shared.xattrs_wanted.load(Ordering::Relaxed) > 0,
        };
        let (at, answer) = self
            .shared
            .link
            .read(request)
            .await
            .map_err(|errno| self.after(dir, errno))?;
        let Answer::Entries(entries) = answer else {
            return Err(Errno::PROTO);
        };
        listing.next = entries.last().map(|entry| entry.cursor);
        for entry in entries {
            let DirEntry { name, attr, .. } = entry;
            let node = self.shared.listed(dir, &name, &attr, at);
            listing.items.push((name, node, attr));
        }
        Ok(())
    }

    /// Makes changes to a directory durable.
    pub async fn sync_dir(&self, dir: NodeNo) -> Result<()> {
        let dir = self.shared.nodes.get(dir)?;
        if self.is_read_only() {
            return Ok(());
        }
        self.bounded(async {
            self.shared
                .link
                .change(ChangeRequest::SyncDir {
                    dir: dir.to_wire()?,
                })
                .await?;
            Ok(())
        })
        .await
    }

    /// A directory entry was handed to the kernel with its attributes: as [`Replica::lookup`].
    pub fn remember(&self, node: NodeNo) {
        if let Ok(node) = self.shared.nodes.get(node) {
            self.shared.nodes.refer(&node);
        }
    }

    /// The kernel has dropped so many references to a node.
    pub fn forget(&self, node: NodeNo, lookups: u64) {
        if let Some(node) = self.shared.nodes.unrefer(node, lookups) {
            self.shared.forgotten(&[node]);
        }
    }
}
