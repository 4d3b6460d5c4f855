//! Requests that change the entries of directories.

use super::connection::Attached;
use super::known::Known;
use super::{attributes, reply};
use crate::region::Tick;
use crate::store::{Errno, Result};
use crate::wire::{
    Access, Answer, Attr, Caller, FileId, Kind, Make, Name, Node, RenameMode, Reply,
};
use std::sync::Arc;

/// The longest content of a symbolic link, in bytes.
const SYMLINK_BYTES_MAX: usize = 4095;

/// What a change of names has done.
struct Done<T> {
    value: T,
    /// The node that the answer tells of.
    answer: Option<FileId>,
    /// Nodes other than the directories whose attributes have changed.
    also: Vec<FileId>,
    /// The directories have changed.
    changed: bool,
}

/// What became of a change of names, when everyone has taken it in.
struct Outcome<T> {
    at: Tick,
    /// Somebody else has changed something since the answer was read.
    moved: bool,
    result: Result<T>,
}

impl Attached {
    pub(super) async fn make(
        &self,
        dir: &Node,
        name: &Name,
        make: &Make,
        mode: u16,
        by: Caller,
    ) -> Reply {
        if let Err(errno) = check_make(make) {
            return self.refuse(errno);
        }
        let made = self.in_dirs([dir], || {
            let attr = self.store().make(dir, name, make, mode & 0o7777, by)?;
            self.service.nodes.get(attr.id).learn_first(attr.stamp());
            Ok(Done {
                value: attr,
                answer: Some(attr.id),
                also: Vec::new(),
                changed: true,
            })
        });
        self.named(made.await, dir, name)
    }

    pub(super) async fn link(&self, node: &Node, dir: &Node, name: &Name) -> Reply {
        let linked = self.in_dirs([dir], || {
            let known = self.service.nodes.get(node.id);
            let _turn = known.turn.try_lock();
            let before = self.store().attr(node)?;
            let attr = self.store().link(node, dir, name)?;
            renamed(&known, &before, Some(attr));
            Ok(Done {
                value: attr,
                answer: Some(node.id),
                also: vec![node.id],
                changed: true,
            })
        });
        self.named(linked.await, dir, name)
    }

    pub(super) async fn create(
        &self,
        dir: &Node,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Reply {
        let store = self.store();
        let created = self.in_dirs([dir], || {
            self.session.check_room()?;
            let existed = store.lookup(dir, name).is_ok();
            let (attr, file) = store.create(dir, name, mode & 0o7777, exclusive, by)?;
            Ok(Done {
                value: self.keep(file, attr.id, Access::Write)?,
                answer: Some(attr.id),
                also: Vec::new(),
                changed: !existed,
            })
        });
        let Outcome { at, result, .. } = created.await;
        let opened = result.and_then(|(handle, kept)| self.opened(handle, &kept));
        reply(at, opened)
    }

    pub(super) async fn remove(&self, dir: &Node, name: &Name, directory: bool) -> Reply {
        let store = self.store();
        let removed = self.in_dirs([dir], || {
            let child = store.lookup(dir, name)?;
            let known = self.service.nodes.get(child.id);
            let _turn = known.turn.try_lock();
            store.remove(dir, name, directory)?;
            self.lost_name(&known, &child, None);
            Ok(Done {
                value: (),
                answer: None,
                also: vec![child.id],
                changed: true,
            })
        });
        let Outcome { at, result, .. } = removed.await;
        reply(at, result.map(|()| Answer::Done))
    }

    pub(super) async fn rename(
        &self,
        (from_dir, from): (&Node, &Name),
        (to_dir, to): (&Node, &Name),
        mode: RenameMode,
    ) -> Reply {
        let store = self.store();
        let renamed = self.in_dirs([from_dir, to_dir], || {
            let nodes = &self.service.nodes;
            let moved = store.lookup(from_dir, from)?;
            let moved = (nodes.get(moved.id), moved);
            let replaced = store.lookup(to_dir, to).ok();
            let replaced = replaced.map(|attr| (nodes.get(attr.id), attr));
            let all = || [Some(&moved), replaced.as_ref()].into_iter().flatten();
            let _turns: Vec<_> = all().map(|(known, _)| known.turn.try_lock()).collect();
            store.rename(from_dir, from, to_dir, to, mode)?;
            renamed(&moved.0, &moved.1, store.lookup(to_dir, to).ok());
            if let Some((known, before)) = &replaced {
                self.lost_name(known, before, store.lookup(from_dir, from).ok());
            }
            Ok(Done {
                value: (),
                answer: None,
                also: all().map(|(known, _)| known.id).collect(),
                changed: true,
            })
        });
        let Outcome { at, result, .. } = renamed.await;
        reply(at, result.map(|()| Answer::Done))
    }

    /// Changes the entries of directories in their turn, and waits until everyone has taken that in.
    async fn in_dirs<T, const N: usize>(
        &self,
        dirs: [&Node; N],
        change: impl FnOnce() -> Result<Done<T>>,
    ) -> Outcome<T> {
        let service = &self.service;
        let mut known: Vec<(Arc<Known>, &Node)> = dirs
            .into_iter()
            .map(|dir| (service.nodes.get(dir.id), dir))
            .collect();
        known.sort_by_key(|(known, _)| known.id);
        known.dedup_by_key(|(known, _)| known.id);
        let mut turns = Vec::new();
        for (known, _) in &known {
            turns.push(known.turn.lock().await);
        }
        let (counted, result) = self.brief(|| self.change_dirs(&known, change)).await;
        drop(turns);
        let moved = counted.moved;
        Outcome {
            at: counted.settled().await,
            moved,
            result,
        }
    }

    fn change_dirs<T>(
        &self,
        dirs: &[(Arc<Known>, &Node)],
        change: impl FnOnce() -> Result<Done<T>>,
    ) -> (super::coherence::Change, Result<T>) {
        let Attached {
            service, session, ..
        } = self;
        let mark = service.coherence.mark();
        let looked: Result<()> = dirs.iter().try_for_each(|(known, dir)| {
            let attr = self.store().attr(dir)?;
            service.look(known, &attr);
            Ok(())
        });
        let done = looked.and_then(|()| change());
        let mut stale = Vec::new();
        for (known, dir) in dirs {
            let now = self.store().attr(dir).map(|attr| attr.stamp());
            let changed = match &done {
                Ok(done) => done.changed,
                // It may have failed halfway.
                Err(_) => now.is_ok_and(|stamp| known.differs(stamp)),
            };
            if changed {
                stale.push(attributes(known.id));
            }
            if let Ok(stamp) = now {
                known.learn(stamp);
            }
        }
        let mut answer = None;
        if let Ok(done) = &done {
            stale.extend(done.also.iter().copied().map(attributes));
            answer = done.answer;
        }
        let client = Some(session.client);
        let counted = service.coherence.change(client, stale, answer, mark);
        (counted, done.map(|done| done.value))
    }

    /// As [`renamed`], for what has lost a name and may have none any more.
    fn lost_name(&self, known: &Arc<Known>, before: &Attr, after: Option<Attr>) {
        let last = before.kind == Kind::Directory || before.nlink == 1;
        let is_gone = last && after.is_none_or(|after| after.id != before.id);
        renamed(known, before, after);
        if is_gone {
            self.service.nodes.forget(known);
        }
    }

    /// The answer that tells of a node by its new name.
    fn named(&self, outcome: Outcome<Attr>, dir: &Node, name: &Name) -> Reply {
        let Outcome { at, moved, result } = outcome;
        let answer = result.map(|attr| {
            let path = dir.path.join(name).filter(|_| moved);
            // It was read before the replica was subscribed. Where it cannot be read again, its directory
            // has changed too, and the replica is told of that.
            let again = path.and_then(|path| self.store().attr(&Node { id: attr.id, path }).ok());
            Answer::Attr(again.unwrap_or(attr))
        });
        reply(at, answer)
    }
}

/// A change of names has changed the attributes of a node, and nothing else of it. For that its turn is
/// only tried, so that notices wait: those who hold the turns of directories wait for no other.
fn renamed(known: &Known, before: &Attr, after: Option<Attr>) {
    // Otherwise somebody else has changed it as well, which is still to be found.
    if !known.differs(before.stamp()) {
        let after = after.filter(|after| after.id == before.id);
        let open = || known.handle()?.file.attr().ok();
        if let Some(after) = after.or_else(open) {
            known.learn(after.stamp());
        }
    }
}

fn check_make(make: &Make) -> Result<()> {
    match make {
        Make::Symlink(content) if content.len() > SYMLINK_BYTES_MAX => Err(Errno::NAMETOOLONG),
        Make::Symlink(content) if content.is_empty() => Err(Errno::NOENT),
        Make::Symlink(content) if content.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}
