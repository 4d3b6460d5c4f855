//! Requests that change nothing, except for pulls.

use super::connection::Attached;
use super::session::Handle;
use super::{EPOCH, reply};
use crate::region::{ClientId, Tick};
use crate::store::{Errno, Result, StoreFile};
use crate::units::REGION_BYTES_MAX;
use crate::wire::{
    Access, Answer, DIR_ENTRIES_MAX, DirEntry, ENTRY_XATTRS_BYTES_MAX, FileId, HandleId, Kind,
    LISTING_ENTRIES_MAX, Listing, Name, Node, ReadRequest, RelPath, Reply, XATTR_BYTES_MAX,
};
use std::collections::HashSet;

/// An answer that names other nodes each time it is read is read so often.
const TRIES_MAX: usize = 8;

impl Attached {
    /// The answer to a request that changes nothing and is no pull.
    pub(super) async fn read(&self, request: ReadRequest) -> Reply {
        let service = &self.service;
        match request {
            ReadRequest::Lookup { dir, name } => self.brief(|| self.look_up(&dir, &name)).await,
            ReadRequest::GetAttr { node, handle } => self.brief(|| self.attr(&node, handle)).await,
            ReadRequest::ReadLink { node } => {
                let read = || self.store().read_link(&node).map(Answer::Bytes);
                self.brief(|| self.of_node(&node, read)).await
            }
            ReadRequest::ReadDir {
                dir,
                cursor,
                xattrs,
            } => {
                let list = || self.list(&dir, cursor, DIR_ENTRIES_MAX, xattrs);
                self.blocking(list).await
            }
            ReadRequest::Open { node, access } => self.open(&node, access).await,
            // Nobody's copy depends on this.
            ReadRequest::Close { handle } => {
                let closed = self.brief(|| self.session.close(handle)).await;
                reply(service.coherence.mark().at, closed.map(|()| Answer::Done))
            }
            ReadRequest::Seek {
                handle,
                offset,
                data,
            } => self.brief(|| self.seek(handle, offset, data)).await,
            ReadRequest::GetXattr { node, name } => {
                let read = || {
                    check_xattr_name(&name)?;
                    sendable(self.store().get_xattr(&node, &name)?)
                };
                self.brief(|| self.of_node(&node, read)).await
            }
            ReadRequest::ListXattr { node } => {
                let read = || sendable(self.store().list_xattr(&node)?);
                self.brief(|| self.of_node(&node, read)).await
            }
            ReadRequest::StatFs => {
                let at = service.coherence.mark().at;
                let found = self.blocking(|| self.store().stat_fs()).await;
                reply(at, found.map(Answer::StatFs))
            }
            ReadRequest::Only { node, after, by } => self.only(&node, after, by).await,
            ReadRequest::Order { handle } => {
                let answer =
                    |handle: &Handle| Ok(Answer::Order(service.orders.order(handle.node.id)));
                self.blocking(|| self.hint(handle, answer)).await
            }
            ReadRequest::Touched { handle, runs } => {
                let take = |handle: &Handle| service.touched(&*handle.file, &runs);
                self.blocking(|| self.hint(handle, take)).await
            }
            ReadRequest::Hashes {
                handle,
                extents,
                unit,
            } => self.hashes(handle, &extents, unit).await,
            // Pulls have frames, and a lock may have to wait: these are served elsewhere.
            other => {
                let answer = self.about_locks(other);
                reply(service.coherence.mark().at, answer)
            }
        }
    }

    fn look_up(&self, dir: &Node, name: &Name) -> Reply {
        self.current(Some(dir), |told| {
            let found = self.store().lookup(dir, name);
            match &found {
                Ok(attr) => told.extend([dir.id, attr.id]),
                // That it is missing is kept as well.
                Err(Errno::NOENT) => told.push(dir.id),
                Err(_) => {}
            }
            found.map(Answer::Attr)
        })
    }

    fn attr(&self, node: &Node, handle: Option<HandleId>) -> Reply {
        if let Some(handle) = handle {
            return match self.handle_of(node, handle) {
                Ok(handle) => self.of_handle(&handle, |file| file.attr().map(Answer::Attr)),
                Err(errno) => self.refuse(errno),
            };
        }
        let first = self.of_node(node, || self.store().attr(node).map(Answer::Attr));
        match first.result {
            // Where a replica has a directory, it will have entries.
            Ok(Answer::Attr(attr))
                if attr.kind == Kind::Directory
                    && self.session.observe(node, &self.service.nodes) =>
            {
                self.of_node(node, || self.store().attr(node).map(Answer::Attr))
            }
            _ => first,
        }
    }

    /// The first entries of the root, for the welcome.
    pub(super) async fn first_listing(&self, root: FileId) -> Option<Listing> {
        let root = Node {
            id: root,
            path: RelPath::root(),
        };
        let listed = || self.list(&root, 0, LISTING_ENTRIES_MAX, false);
        match self.blocking(listed).await {
            Reply {
                at,
                result: Ok(Answer::Entries(entries)),
            } => Some(Listing { at, entries }),
            _ => None,
        }
    }

    fn list(&self, dir: &Node, cursor: u64, max: usize, xattrs: bool) -> Reply {
        self.current(Some(dir), |told| {
            let mut entries = self.store().read_dir(dir, cursor, max)?;
            entries.truncate(max);
            for entry in entries.iter_mut().filter(|_| xattrs) {
                entry.xattrs = self.xattrs_of(dir, entry);
            }
            told.push(dir.id);
            told.extend(entries.iter().map(|entry| entry.attr.id));
            Ok(Answer::Entries(entries))
        })
    }

    /// Names of the extended attributes of an entry, if it is still there and they are few.
    fn xattrs_of(&self, dir: &Node, entry: &DirEntry) -> Option<Vec<u8>> {
        let node = Node {
            id: entry.attr.id,
            path: dir.path.join(&entry.name)?,
        };
        few_xattrs(self.store().list_xattr(&node))
    }

    /// Opens a file and keeps it under a handle.
    pub(super) async fn open(&self, node: &Node, access: Access) -> Reply {
        if access == Access::Write && self.read_only {
            return self.refuse(Errno::ROFS);
        }
        let opened = self.brief(|| {
            self.session.check_room()?;
            let file = self.store().open(node, access)?;
            let id = file.attr()?.id;
            self.keep(file, id, access)
        });
        match opened.await {
            Ok((id, handle)) => self.of_handle(&handle, |_| self.opened(id, &handle)),
            Err(errno) => self.refuse(errno),
        }
    }

    /// The answer that a file is open, read now.
    pub(super) fn opened(&self, id: HandleId, handle: &Handle) -> Result<Answer> {
        let attr = handle.file.attr()?;
        let xattrs = || few_xattrs(handle.file.list_xattr());
        Ok(Answer::Opened {
            handle: id,
            attr,
            epoch: EPOCH,
            learning: self.service.orders.learning(&attr),
            // The kernel there asks for one of them before it stores anything.
            xattrs: (handle.access == Access::Write).then(xattrs).flatten(),
        })
    }

    /// Keeps an open file. If it is nobody's turn to change it, it is a good moment for a look
    /// whether another program has.
    pub(super) fn keep(
        &self,
        file: Box<dyn StoreFile>,
        id: FileId,
        access: Access,
    ) -> Result<(HandleId, std::sync::Arc<Handle>)> {
        let node = self.service.nodes.get(id);
        node.watch_writers(self.service.coherence.mark().at);
        if let Ok(_turn) = node.turn.try_lock() {
            self.service.look(&node, &file.attr()?);
        }
        self.session.keep(node, file, access)
    }

    async fn only(&self, node: &Node, after: Tick, by: ClientId) -> Reply {
        let Some(known) = self.service.nodes.find(node.id) else {
            return self.refuse(Errno::STALE);
        };
        let _turn = known.turn.lock().await;
        let looked = self.brief(|| {
            let attr = self.store().attr(node)?;
            self.service.look(&known, &attr);
            match known.only_by(by, after) {
                true => Ok(Answer::Done),
                false => Err(Errno::STALE),
            }
        });
        reply(self.service.coherence.mark().at, looked.await)
    }

    fn seek(&self, handle: HandleId, offset: u64, data: bool) -> Reply {
        if offset > REGION_BYTES_MAX {
            return self.refuse(Errno::NXIO);
        }
        match self.session.handle(handle) {
            Ok(handle) => self.of_handle(&handle, |file| {
                let found = match data {
                    true => file.next_data(offset),
                    false => file.next_hole(offset),
                };
                found.map(Answer::Offset)
            }),
            Err(errno) => self.refuse(errno),
        }
    }

    /// An answer about an open file on which nobody's copy depends.
    fn hint(&self, id: HandleId, answer: impl FnOnce(&Handle) -> Result<Answer>) -> Reply {
        let handle = self.session.handle(id);
        let answer = handle.and_then(|handle| answer(&handle));
        reply(self.service.coherence.mark().at, answer)
    }

    /// A handle of this very node. `EBADF`.
    pub(super) fn handle_of(&self, node: &Node, id: HandleId) -> Result<std::sync::Arc<Handle>> {
        let handle = self.session.handle(id)?;
        match handle.node.id == node.id {
            true => Ok(handle),
            false => Err(Errno::BADF),
        }
    }

    /// An answer about an open file.
    fn of_handle(
        &self,
        handle: &Handle,
        read: impl FnOnce(&dyn StoreFile) -> Result<Answer>,
    ) -> Reply {
        let coherence = &self.service.coherence;
        let at = coherence.subscribe_first(self.session.client, handle.node.id);
        reply(at, read(&*handle.file))
    }

    /// An answer about one node.
    fn of_node(&self, node: &Node, mut read: impl FnMut() -> Result<Answer>) -> Reply {
        self.current(None, |told| {
            let answer = read()?;
            told.push(node.id);
            Ok(answer)
        })
    }

    /// An answer about nodes that are known only when it has been read: `read` adds them to its
    /// argument. `dir` is one whose entries the answer tells.
    fn current(
        &self,
        dir: Option<&Node>,
        mut read: impl FnMut(&mut Vec<FileId>) -> Result<Answer>,
    ) -> Reply {
        let Attached {
            service, session, ..
        } = self;
        let mut told = Vec::new();
        let mut held = HashSet::new();
        let mut mark = service.coherence.mark();
        for _ in 0..TRIES_MAX {
            told.clear();
            let answer = read(&mut told);
            if told.is_empty() {
                return reply(mark.at, answer);
            }
            if dir.is_some_and(|dir| session.observe(dir, &service.nodes)) {
                // What happened before it was watched was not noticed.
                continue;
            }
            let subscribed = service
                .coherence
                .subscribe(session.client, &told, mark, &mut held);
            match subscribed {
                Ok(at) => return reply(at, answer),
                Err(next) => mark = next,
            }
        }
        // Others change the directory faster than it can be read: the replica may have this answer, and is
        // told at once that it is stale.
        told.clear();
        let answer = read(&mut told);
        let client = session.client;
        let _ = service.coherence.subscribe(client, &told, mark, &mut held);
        let stale = told.into_iter().map(super::attributes);
        service.coherence.change_by_others(stale);
        reply(mark.at, answer)
    }

    /// An answer that tells of no node.
    pub(super) fn refuse(&self, errno: Errno) -> Reply {
        reply(self.service.coherence.mark().at, Err(errno))
    }
}

/// `ERANGE`, as Linux has it, for a name that is no name of an extended attribute.
pub(super) fn check_xattr_name(name: &[u8]) -> Result<()> {
    match !name.is_empty() && name.len() <= 255 && !name.contains(&0) {
        true => Ok(()),
        false => Err(Errno::RANGE),
    }
}

/// Names of extended attributes, if they could be listed and are few.
fn few_xattrs(names: Result<Vec<u8>>) -> Option<Vec<u8>> {
    let few = |names: &Vec<u8>| names.len() <= ENTRY_XATTRS_BYTES_MAX;
    names.ok().filter(few)
}

fn sendable(bytes: Vec<u8>) -> Result<Answer> {
    match bytes.len() <= XATTR_BYTES_MAX {
        true => Ok(Answer::Bytes(bytes)),
        false => Err(Errno::TOOBIG),
    }
}
