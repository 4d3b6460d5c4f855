//! Requests that change one node, and the frame of all that change something.

use super::connection::Attached;
use super::known::Known;
use super::push::Bytes;
use super::read::check_xattr_name;
use super::session::Handle;
use super::{attributes, reply};
use crate::region::Tick;
use crate::store::{Errno, Result};
use crate::units::REGION_BYTES_MAX;
use crate::wire::{
    Access, Allocate, Answer, Attr, ChangeRequest, FileId, HandleId, Node, Reply, SetAttr, SetTime,
    Stale, XATTR_BYTES_MAX,
};
use std::sync::Arc;

/// How long calls to the store may take.
#[derive(Clone, Copy)]
pub(super) enum Cost {
    Brief,
    Long,
}

impl Attached {
    /// Applies a change, and answers when everyone who has to has taken it in. `bytes` are those of a push.
    pub(super) async fn change(&self, request: ChangeRequest, bytes: Option<Bytes<'_>>) -> Reply {
        match request {
            ChangeRequest::SetAttr {
                node, handle, set, ..
            } => self.set_attr(&node, handle, set).await,
            ChangeRequest::Make {
                dir,
                name,
                make,
                mode,
                by,
            } => self.make(&dir, &name, &make, mode, by).await,
            ChangeRequest::Create {
                dir,
                name,
                mode,
                exclusive,
                by,
            } => self.create(&dir, &name, mode, exclusive, by).await,
            ChangeRequest::Link { node, dir, name } => self.link(&node, &dir, &name).await,
            ChangeRequest::Remove {
                dir,
                name,
                directory,
            } => self.remove(&dir, &name, directory).await,
            ChangeRequest::Rename {
                from_dir,
                from,
                to_dir,
                to,
                mode,
            } => self.rename((&from_dir, &from), (&to_dir, &to), mode).await,
            ChangeRequest::SetXattr {
                node,
                name,
                value,
                mode,
            } => {
                let set = || match value.len() <= XATTR_BYTES_MAX {
                    true => self.store().set_xattr(&node, &name, &value, mode),
                    false => Err(Errno::TOOBIG),
                };
                self.change_xattr(&node, &name, set).await
            }
            ChangeRequest::RemoveXattr { node, name } => {
                let remove = || self.store().remove_xattr(&node, &name);
                self.change_xattr(&node, &name, remove).await
            }
            ChangeRequest::Allocate {
                handle,
                start,
                end,
                mode,
            } => self.allocate(handle, start, end, mode).await,
            ChangeRequest::Push {
                handle,
                epoch,
                extents,
                ..
            } => match bytes {
                Some(bytes) => self.push(handle, epoch, &extents, &bytes).await,
                None => self.refuse(Errno::INVAL),
            },
            ChangeRequest::Sync { handle, data_only } => self.sync(handle, data_only).await,
            ChangeRequest::SyncDir { dir } => self.sync_dir(&dir).await,
        }
    }

    async fn set_attr(&self, node: &Node, handle: Option<HandleId>, set: SetAttr) -> Reply {
        let checked = check_set(set).and_then(|set| match handle {
            Some(handle) => Ok((set, Some(self.handle_of(node, handle)?))),
            None => Ok((set, None)),
        });
        let (set, handle) = match checked {
            Ok((SetAttr { size: Some(_), .. }, Some(handle))) if handle.access != Access::Write => {
                return self.refuse(Errno::BADF);
            }
            Ok(checked) => checked,
            Err(errno) => return self.refuse(errno),
        };
        let stat = || match &handle {
            Some(handle) => handle.file.attr(),
            None => self.store().attr(node),
        };
        let known = self.service.nodes.get(node.id);
        // Cutting off a large file takes its time.
        let cost = if set.size.is_some() {
            Cost::Long
        } else {
            Cost::Brief
        };
        let changed = self.in_turn(&known, cost, stat, |before| {
            let what = match set.size {
                Some(size) => Stale::Bytes {
                    start: before.size.min(size),
                    end: u64::MAX,
                },
                None => Stale::Attributes,
            };
            let done = match &handle {
                Some(handle) => handle.file.set_attr(&set),
                None => self.store().set_attr(node, &set),
            };
            (vec![(node.id, what)], done)
        });
        let (at, changed) = changed.await;
        reply(at, changed.map(|(_, attr)| Answer::Attr(attr)))
    }

    async fn change_xattr(
        &self,
        node: &Node,
        name: &[u8],
        change: impl FnOnce() -> Result<()>,
    ) -> Reply {
        if let Err(errno) = check_xattr_name(name) {
            return self.refuse(errno);
        }
        let known = self.service.nodes.get(node.id);
        let stat = || self.store().attr(node);
        let change = |_: &Attr| (vec![attributes(node.id)], change());
        let changed = self.in_turn(&known, Cost::Brief, stat, change);
        let (at, changed) = changed.await;
        reply(at, changed.map(|_| Answer::Done))
    }

    async fn allocate(&self, handle: HandleId, start: u64, end: u64, mode: Allocate) -> Reply {
        let handle = match self.writable(handle) {
            Ok(_) if start >= end => return self.refuse(Errno::INVAL),
            Ok(_) if end > REGION_BYTES_MAX => return self.refuse(Errno::FBIG),
            Ok(handle) => handle,
            Err(errno) => return self.refuse(errno),
        };
        let file = &*handle.file;
        let stat = || file.attr();
        let changed = self.in_turn(&handle.node, Cost::Long, stat, |_| {
            let what = match mode {
                Allocate::KeepSize => Stale::Attributes,
                _ => Stale::Bytes { start, end },
            };
            let done = file.allocate(start, end, mode);
            (vec![(handle.node.id, what)], done)
        });
        let (at, changed) = changed.await;
        reply(at, changed.map(|(_, attr)| Answer::Attr(attr)))
    }

    async fn sync(&self, handle: HandleId, data_only: bool) -> Reply {
        let handle = match self.session.handle(handle) {
            Ok(handle) => handle,
            Err(errno) => return self.refuse(errno),
        };
        let file = &handle.file;
        let synced = self.blocking(|| file.sync(data_only)).await;
        let coherence = &self.service.coherence;
        let at = coherence.subscribe_first(self.session.client, handle.node.id);
        let answer = synced.and_then(|()| file.attr());
        reply(at, answer.map(Answer::Attr))
    }

    async fn sync_dir(&self, dir: &Node) -> Reply {
        let at = self.service.coherence.mark().at;
        let synced = self.blocking(|| self.store().sync_dir(dir)).await;
        reply(at, synced.map(|()| Answer::Done))
    }

    /// A handle that is open for writing. `EBADF`.
    pub(super) fn writable(&self, handle: HandleId) -> Result<Arc<Handle>> {
        let handle = self.session.handle(handle)?;
        match handle.access {
            Access::Write => Ok(handle),
            Access::Read => Err(Errno::BADF),
        }
    }

    /// Changes a node in its turn: `change` gets its attributes and returns what others are to be told, also
    /// where it fails. When everyone has taken that in: the tick and attributes for the answer.
    pub(super) async fn in_turn<T>(
        &self,
        known: &Known,
        cost: Cost,
        stat: impl Fn() -> Result<Attr>,
        change: impl FnOnce(&Attr) -> (Vec<(FileId, Stale)>, Result<T>),
    ) -> (Tick, Result<(T, Attr)>) {
        let Attached {
            service, session, ..
        } = self;
        let turn = known.turn.lock().await;
        let calls = || {
            let mark = service.coherence.mark();
            let (stale, changed) = match stat() {
                Ok(before) => {
                    service.look(known, &before);
                    change(&before)
                }
                Err(errno) => (Vec::new(), Err(errno)),
            };
            let origin = Some(session.client);
            let told = changed.is_ok().then_some(known.id);
            let writes = |(id, what): &(FileId, Stale)| {
                *id == known.id && matches!(what, Stale::Bytes { .. })
            };
            let wrote = stale.iter().any(writes);
            let counted = service.coherence.change(origin, stale, told, mark);
            if wrote {
                known.wrote(origin, counted.at);
            }
            let after = stat().inspect(|attr| known.learn(attr.stamp()));
            (counted, changed.and_then(|changed| Ok((changed, after?))))
        };
        let (counted, answer) = match cost {
            Cost::Brief => self.brief(calls).await,
            Cost::Long => self.blocking(calls).await,
        };
        drop(turn);
        (counted.settled().await, answer)
    }
}

/// What may be asked of a store. `EINVAL`, `EFBIG`.
fn check_set(mut set: SetAttr) -> Result<SetAttr> {
    let is_time = |time: Option<SetTime>| match time {
        Some(SetTime::At(time)) => time.nanos < 1_000_000_000,
        _ => true,
    };
    if !is_time(set.atime) || !is_time(set.mtime) {
        return Err(Errno::INVAL);
    }
    if set.size.is_some_and(|size| size > REGION_BYTES_MAX) {
        return Err(Errno::FBIG);
    }
    set.mode = set.mode.map(|mode| mode & 0o7777);
    Ok(set)
}
