//! Names: looking up, making, linking, renaming, removing.

use super::kernel::Job;
use super::link::Moment;
use super::mode::Mode;
use super::nodes::{Cached, Node};
use super::{Entry, HandleNo, NodeNo, Replica, Shared};
use crate::store::{Errno, Result};
use crate::wire::{Answer, Attr, Caller, ChangeRequest, Make, Name, ReadRequest, RenameMode};
use std::sync::Arc;

impl Shared {
    /// The authority says that `name` in `dir` is the node `attr` is of.
    pub(super) fn listed(
        &self,
        dir: &Arc<Node>,
        name: &Name,
        attr: &Attr,
        at: Moment,
    ) -> Arc<Node> {
        let node = self.nodes.know(attr, dir, name);
        self.learn_name(dir, name, Some(node.no), at);
        self.adopt(&node, attr, at);
        node
    }

    fn learn_name(&self, dir: &Node, name: &Name, node: Option<NodeNo>, at: Moment) {
        if !dir.learn_name(name, node, at) {
            self.queue(Job::DropNames);
        }
    }
}

impl Replica {
    /// Looks a name up and raises the node's lookup count.
    pub async fn lookup(&self, dir: NodeNo, name: &Name) -> Result<Entry> {
        let dir = self.shared.nodes.get(dir)?;
        let cached = || match self.shared.nodes.cached(&dir, name) {
            Cached::Absent => Some(Err(Errno::NOENT)),
            Cached::Node(node) => Some(Ok(self.refer(&node, &node.cached_attr()?))),
            Cached::Unknown => None,
        };
        if self.shared.link.may_use_copies()
            && let Some(found) = cached()
        {
            return found;
        }
        let ask = async {
            let request = ReadRequest::Lookup {
                dir: dir.to_wire()?,
                name: name.clone(),
            };
            match self.shared.link.read_at_tick(request).await? {
                (at, Ok(Answer::Attr(attr))) => Ok(Ok(self.found(&dir, name, &attr, at))),
                (at, Err(Errno::NOENT)) => {
                    self.shared.learn_name(&dir, name, None, at);
                    Err(Errno::NOENT)
                }
                (_, Err(errno)) => Err(self.after(&dir, errno)),
                _ => Err(Errno::PROTO),
            }
        };
        self.or_adrift(ask, async { cached() }).await?
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
    fn found(&self, dir: &Arc<Node>, name: &Name, attr: &Attr, at: Moment) -> Entry {
        let node = self.shared.listed(dir, name, attr, at);
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
    pub(super) fn after(&self, dir: &Arc<Node>, errno: Errno) -> Errno {
        if errno == Errno::STALE || errno == Errno::NOENT || errno == Errno::NOTDIR {
            let mut place = dir.state.lock().place.clone();
            dir.forget_names();
            while let Some((above, name)) = place {
                above.forget_name(&name);
                place = above.state.lock().place.clone();
            }
            self.shared.queue(Job::DropNames);
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

    /// Makes a regular file and opens it for writing, maybe for reading as well; as [`Replica::lookup`] of it.
    pub async fn create(
        &self,
        dir: NodeNo,
        name: &Name,
        mode: u16,
        exclusive: bool,
        read: bool,
        by: Caller,
    ) -> Result<(Entry, HandleNo)> {
        let opened = Mode { read, write: true };
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
                        xattrs,
                        ..
                    },
                ) => {
                    let entry = self.found(&dir, name, &attr, at);
                    let node = self.shared.nodes.get(entry.node)?;
                    if let Some(names) = xattrs {
                        node.learn_xattrs(&names, at);
                    }
                    let there = self.opened(&node, handle, &attr, epoch, at, opened).await?;
                    let handle = match there {
                        Some(handle) => handle,
                        // It went with its session; that the file was made did not.
                        None => self.open(node.no, opened.read, true).await?.0,
                    };
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
            self.shared.learn_name(&dir, name, None, at);
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
        self.shared.queue(Job::DropAttributes(node.no));
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
            self.shared.queue(Job::DropAttributes(node.no));
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
    ) -> Result<(Moment, Answer)> {
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
