//! Locks that programs on this mount hold at the authority.
//!
//! The authority is asked for each. What was granted is noted here as well: to know without asking that there is nothing to
//! unlock when a file is closed, and to claim it again from an authority that has forgotten this replica. Where
//! that fails, the lock may have been somebody else's in the meantime: the open files through which it was
//! taken give `EIO` from then on.
//!
//! Before a lock is given up, what is dirty of the file is pushed, and stores through mappings before that. A read
//! after a lock was taken needs nothing of the kind: the push was answered only when this replica had dropped its
//! copy of those bytes.

use super::link::{self, Session};
use super::nodes::Node;
use super::{HandleNo, NodeNo, Replica, Shared, transfer};
use crate::region::{LockKey, LockMode, LockRun, LockRuns, LockSpace};
use crate::store::{Errno, Result};
use crate::transport::stream::{self, StreamError};
use crate::units::ByteRange;
use crate::wire::{Access, Answer, HandleId, HeldLock, ReadRequest, Reply, Request};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// All of a file.
const EVERYTHING: ByteRange = ByteRange {
    start: 0,
    end: u64::MAX,
};
/// The answer to the wish to wait no longer is awaited so long.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What is held.
#[derive(Default)]
pub(super) struct HeldLocks {
    nodes: Mutex<HashMap<NodeNo, OfNode>>,
    released: Notify,
}

struct OfNode {
    node: Arc<Node>,
    owners: HashMap<LockKey, Held>,
    /// Closed files whose locks are being given up.
    releasing: usize,
}

#[derive(Clone, Default)]
struct Held {
    pid: u32,
    runs: LockRuns,
    /// Through which open files.
    files: BTreeSet<HandleNo>,
}

/// What a program wants locked.
#[derive(Clone, Copy, Debug)]
pub struct LockAsked {
    /// For whom.
    pub key: LockKey,
    /// Which process asks.
    pub pid: u32,
    /// What, and how.
    pub run: LockRun,
}

impl HeldLocks {
    /// Changes what is noted of a node; what is empty is forgotten.
    fn change<R>(&self, node: &Arc<Node>, change: impl FnOnce(&mut OfNode) -> R) -> R {
        let mut nodes = self.nodes.lock();
        let of_node = nodes.entry(node.no).or_insert_with(|| OfNode {
            node: node.clone(),
            owners: HashMap::new(),
            releasing: 0,
        });
        let result = change(of_node);
        of_node.owners.retain(|_, held| !held.runs.is_empty());
        if of_node.owners.is_empty() && of_node.releasing == 0 {
            nodes.remove(&node.no);
        }
        result
    }

    fn forget(&self, node: &Arc<Node>, key: LockKey, range: ByteRange) {
        self.change(node, |of_node| {
            if let Some(held) = of_node.owners.get_mut(&key) {
                held.runs.set(range, None);
            }
        });
    }

    /// Whether an owner holds any of a range, and if so, whether exclusively.
    fn mode(&self, node: NodeNo, key: LockKey, range: ByteRange) -> Option<LockMode> {
        let nodes = self.nodes.lock();
        let held = nodes.get(&node)?.owners.get(&key)?;
        held.runs.in_range(range).map(|run| run.mode).max()
    }

    /// Waits until what was closed before is unlocked.
    async fn all_released(&self, node: NodeNo) {
        let is_releasing = || (self.nodes.lock().get(&node)).is_some_and(|it| it.releasing > 0);
        while is_releasing() {
            let released = self.released.notified();
            let mut released = std::pin::pin!(released);
            released.as_mut().enable();
            if is_releasing() {
                released.await;
            }
        }
    }
}

impl Replica {
    /// Takes a lock. `EAGAIN` if somebody else's is in the way. Given up, it is not taken, or given back.
    pub async fn lock(&self, handle: HandleNo, asked: LockAsked) -> Result<()> {
        let this = Replica {
            shared: self.shared.clone(),
        };
        let node = self.file(handle)?.node.clone();
        let before = (self.shared.locks).mode(node.no, asked.key, asked.run.range());
        let (tell, told) = oneshot::channel();
        self.shared.runtime.spawn(async move {
            let outcome = this.lock_now(handle, asked).await;
            // Where the file is closed by now, nothing of it is noted here.
            if tell.send(outcome).is_err() && before.is_none() {
                let _ = this
                    .shared
                    .unlock(&node, asked.key, asked.run.range())
                    .await;
            }
        });
        self.bounded(async { told.await.unwrap_or(Err(Errno::IO)) })
            .await
    }

    async fn lock_now(&self, handle: HandleNo, asked: LockAsked) -> Result<()> {
        self.prepare_lock(handle, asked).await?;
        loop {
            let (id, request) = self.lock_request(handle, asked, false).await?;
            let (answer, session) = match self.shared.link.read_on(request).await {
                Ok((_, answer, (session, _))) => (Ok(answer), Some(session)),
                Err(errno) => (Err(errno), None),
            };
            if let Some(outcome) = self.locked(handle, id, asked, answer, session).await {
                return outcome;
            }
        }
    }

    /// Takes a lock, and waits for it until `stop`: then `EINTR`. `EDEADLK` if that would be for ever.
    pub async fn lock_waiting(
        &self,
        handle: HandleNo,
        asked: LockAsked,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut stop = std::pin::pin!(stop);
        let prepared = self.bounded(self.prepare_lock(handle, asked));
        unless(&mut stop, prepared).await?;
        loop {
            let prepared = self.bounded(async {
                let (id, request) = self.lock_request(handle, asked, true).await?;
                Ok((id, request, self.shared.link.session().await?))
            });
            let (id, request, session) = unless(&mut stop, prepared).await?;
            let outcome = self
                .wait_for_lock(&session, request, (handle, asked), &mut stop)
                .await;
            let answer = match outcome {
                Ok(Some(reply)) => link::answer_of(&session, reply).map(|(_, answer)| answer),
                Ok(None) => return Err(Errno::INTR),
                Err(error) => {
                    let again = self.shared.link.recover(&session, error);
                    unless(&mut stop, self.bounded(again)).await?;
                    continue;
                }
            };
            if let Some(outcome) = self.locked(handle, id, asked, answer, Some(session)).await {
                return outcome;
            }
        }
    }

    async fn prepare_lock(&self, handle: HandleNo, asked: LockAsked) -> Result<()> {
        let file = self.usable_file(handle)?;
        let locks = &self.shared.locks;
        locks.all_released(file.node.no).await;
        let held = locks.mode(file.node.no, asked.key, asked.run.range());
        if held == Some(LockMode::Exclusive) {
            // Others may share it afterwards.
            self.push_before_unlock(&file.node, held).await;
        }
        Ok(())
    }

    async fn lock_request(
        &self,
        handle: HandleNo,
        asked: LockAsked,
        wait: bool,
    ) -> Result<(HandleId, ReadRequest)> {
        let region = self.usable_file(handle)?.region.clone();
        let handle = self.shared.handle_of(&region, Access::Read).await?;
        let LockAsked { key, pid, run } = asked;
        let request = ReadRequest::Lock {
            handle,
            key,
            pid,
            run,
            wait,
        };
        Ok((handle, request))
    }

    /// Takes in the answer to a request for a lock; `None`: it has to be made again.
    async fn locked(
        &self,
        handle: HandleNo,
        id: HandleId,
        asked: LockAsked,
        answer: Result<Answer>,
        session: Option<Session>,
    ) -> Option<Result<()>> {
        let shared = &self.shared;
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(errno) => return Some(Err(errno)),
        };
        let range = asked.run.range();
        match answer {
            Ok(Answer::Done) => {
                let generation = session.map(|session| session.generation);
                let noted = shared.locks.change(&file.node, |of_node| {
                    // What is noted after that was looked through would not be claimed again.
                    if generation != Some(shared.era().generation) {
                        return false;
                    }
                    let held = of_node.owners.entry(asked.key).or_default();
                    held.pid = asked.pid;
                    held.runs.set(range, Some(asked.run.mode));
                    held.files.insert(handle);
                    true
                });
                noted.then_some(Ok(()))
            }
            Ok(_) => Some(Err(Errno::PROTO)),
            Err(Errno::BADF)
                if shared.remote_handle_for(&file.node, Access::Read).await != Some(id) =>
            {
                None
            }
            Err(errno) => {
                // In another mode, it was given up before.
                if asked.key.space == LockSpace::Flock {
                    shared.locks.forget(&file.node, asked.key, range);
                }
                Some(Err(errno))
            }
        }
    }

    /// The answer to a request that may wait; `None` where it is not known at `stop`: then the lock is given back if it was
    /// granted.
    async fn wait_for_lock(
        &self,
        session: &Session,
        request: ReadRequest,
        (handle, asked): (HandleNo, LockAsked),
        stop: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> std::result::Result<Option<Reply>, StreamError> {
        let (mut send, mut receive) = link::open(session).await?;
        stream::send(&mut send, &Request::Read(request)).await?;
        let mut reply = Box::pin(async move { link::receive_reply(&mut receive).await });
        tokio::select! {
            reply = &mut reply => return reply.map(Some),
            () = stop => {}
        }
        // The authority either gives up waiting, or the lock is had.
        let _ = send.finish();
        match tokio::time::timeout(STOP_PATIENCE, &mut reply).await {
            Ok(Ok(reply)) => return Ok(Some(reply)),
            Ok(Err(_)) => self.undo_later(handle, asked, std::future::ready(())),
            // Not before: it could be overtaken.
            Err(_) => self.undo_later(handle, asked, async { drop(reply.await) }),
        }
        Ok(None)
    }

    /// Nobody waits any more for a lock that may have been granted: if its owner held nothing of this before, it is
    /// given up.
    fn undo_later(
        &self,
        handle: HandleNo,
        asked: LockAsked,
        answered: impl Future<Output = ()> + Send + 'static,
    ) {
        let Ok(file) = self.file(handle) else { return };
        let (shared, range) = (self.shared.clone(), asked.run.range());
        if shared.locks.mode(file.node.no, asked.key, range).is_none() {
            self.shared.runtime.spawn(async move {
                answered.await;
                let _ = shared.unlock(&file.node, asked.key, range).await;
            });
        }
    }

    /// Gives up what an owner holds of a range, after what is dirty was pushed.
    pub async fn unlock(&self, handle: HandleNo, key: LockKey, range: ByteRange) -> Result<()> {
        let node = self.file(handle)?.node.clone();
        self.release(&node, key, range).await
    }

    /// A lock that is in the way.
    pub async fn test_lock(&self, handle: HandleNo, asked: LockAsked) -> Result<Option<HeldLock>> {
        let file = self.usable_file(handle)?;
        self.bounded(async {
            let LockAsked { key, run, .. } = asked;
            loop {
                let handle = self.shared.handle_of(&file.region, Access::Read).await?;
                let request = ReadRequest::TestLock { handle, key, run };
                match self.shared.link.read(request).await {
                    Ok((_, Answer::Lock(holder))) => return Ok(holder),
                    Ok(_) => return Err(Errno::PROTO),
                    Err(Errno::BADF)
                        if self
                            .shared
                            .remote_handle_for(&file.node, Access::Read)
                            .await
                            != Some(handle) => {}
                    Err(errno) => return Err(errno),
                }
            }
        })
        .await
    }

    /// `close(2)` of a descriptor: pushes what was stored through it, and gives up the `fcntl` locks of this owner.
    pub async fn flush_and_unlock(&self, handle: HandleNo, owner: u64) -> Result<()> {
        let file = self.file(handle)?;
        let space = LockSpace::Fcntl;
        let key = LockKey { space, owner };
        // Begun first, so that it is done also where nobody waits for the flush any more; it pushes by itself before.
        let released = self.release_later(&file.node, |it, _| *it == key);
        let flushed = match file.may_write() {
            true => self.flush(handle).await,
            false => Ok(()),
        };
        if let Some(released) = released {
            // Where there is no way to the authority, a program can end all the same: it is unlocked later.
            let _ = tokio::time::timeout(STOP_PATIENCE, released).await;
        }
        flushed
    }

    async fn release(&self, node: &Arc<Node>, key: LockKey, range: ByteRange) -> Result<()> {
        let Some(mode) = self.shared.locks.mode(node.no, key, range) else {
            return Ok(());
        };
        // As a task: also where nobody waits for it any more it has to be unlocked.
        let (shared, node) = (self.shared.clone(), node.clone());
        let unlocking = self.shared.runtime.spawn(async move {
            shared.push_before_unlock(&node, Some(mode)).await;
            shared.unlock(&node, key, range).await
        });
        self.bounded(async { unlocking.await.unwrap_or(Err(Errno::IO)) })
            .await
    }

    async fn push_before_unlock(&self, node: &Arc<Node>, held: Option<LockMode>) {
        self.shared.push_before_unlock(node, held).await;
    }

    /// An open file is gone, and with it the locks taken through it that a process does not hold by itself.
    pub(super) fn release_locks_of(&self, handle: HandleNo, node: &Arc<Node>) {
        // Nobody waits, but for who wants a lock of this file next.
        drop(self.release_later(node, |_, held| held.files.contains(&handle)));
    }

    /// Has some locks of a file given up; `None` where there are none.
    fn release_later(
        &self,
        node: &Arc<Node>,
        which: impl Fn(&LockKey, &Held) -> bool,
    ) -> Option<JoinHandle<()>> {
        let locks = &self.shared.locks;
        if !locks.nodes.lock().contains_key(&node.no) {
            return None;
        }
        let keys: Vec<LockKey> = locks.change(node, |of_node| {
            let owners = of_node.owners.iter();
            let through = owners.filter(|(key, held)| which(key, held));
            let keys: Vec<LockKey> = through.map(|(&key, _)| key).collect();
            of_node.releasing += usize::from(!keys.is_empty());
            keys
        });
        if keys.is_empty() {
            return None;
        }
        let (shared, node) = (self.shared.clone(), node.clone());
        Some(self.shared.runtime.spawn(async move {
            for key in keys {
                let held = shared.locks.mode(node.no, key, EVERYTHING);
                shared.push_before_unlock(&node, held).await;
                let _ = shared.unlock(&node, key, EVERYTHING).await;
            }
            shared.locks.change(&node, |of_node| of_node.releasing -= 1);
            shared.locks.released.notify_waiters();
        }))
    }
}

impl Shared {
    /// Before others may have the lock. What cannot be pushed is kept, and the next `fsync` or `close` tells.
    async fn push_before_unlock(&self, node: &Arc<Node>, held: Option<LockMode>) {
        let region = node.region.lock().clone();
        let Some(region) = region else { return };
        if held == Some(LockMode::Exclusive)
            && region.look(|inner| inner.mappers > 0)
            && let (Some(kernel), Ok(path)) = (self.kernel.get(), node.path())
        {
            kernel.write_back(node.no, path).await;
        }
        let _ = self.flush_node(node).await;
    }

    async fn unlock(&self, node: &Arc<Node>, key: LockKey, range: ByteRange) -> Result<()> {
        // Before it is: it is not to be claimed again in between.
        self.locks.forget(node, key, range);
        let request = ReadRequest::Unlock {
            id: node.id,
            key,
            start: range.start,
            end: range.end,
        };
        self.link.read(request).await.map(drop)
    }

    /// The authority does not know this replica any more: claims all locks again.
    pub(super) async fn reclaim_locks(self: &Arc<Self>, session: &Session) {
        let held: Vec<(Arc<Node>, LockKey, Held)> = {
            let nodes = self.locks.nodes.lock();
            let all = nodes.values().flat_map(|of_node| {
                let owners = of_node.owners.iter();
                owners.map(|(&key, held)| (of_node.node.clone(), key, held.clone()))
            });
            all.collect()
        };
        for (node, key, held) in held {
            if let Err(why) = self.reclaim(session, &node, key, &held).await {
                let path = node.path_or_unnamed();
                tracing::warn!("{path:?}: process {} has lost its locks: {why}", held.pid);
                self.locks.forget(&node, key, EVERYTHING);
                let files = self.files.read();
                for file in held.files.iter().filter_map(|handle| files.get(handle)) {
                    file.lost_lock.store(true, Ordering::Release);
                }
            }
        }
        // Where this fails, others wait for as long as a lease lasts.
        let told = Request::Read(ReadRequest::LocksReclaimed);
        let _ = link::exchange(session, &told).await;
    }

    async fn reclaim(
        self: &Arc<Self>,
        session: &Session,
        node: &Arc<Node>,
        key: LockKey,
        held: &Held,
    ) -> Result<()> {
        let region = node.region.lock().clone().ok_or(Errno::STALE)?;
        let errno = |broken| match broken {
            transfer::Broken::Errno(errno) => errno,
            transfer::Broken::Stream(_) => Errno::IO,
        };
        let handle = transfer::remote(self, &region, session, Access::Read);
        let request = ReadRequest::ReclaimLocks {
            handle: handle.await.map_err(errno)?,
            key,
            pid: held.pid,
            runs: held.runs.runs().to_vec(),
        };
        let reply = link::exchange(session, &Request::Read(request)).await;
        let reply = reply.map_err(|_| Errno::IO)?;
        link::answer_of(session, reply).map(drop)
    }
}

/// The outcome of `work`, unless `stop` comes before: then `EINTR`.
async fn unless<R>(
    stop: &mut Pin<&mut impl Future<Output = ()>>,
    work: impl Future<Output = Result<R>>,
) -> Result<R> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = stop => Err(Errno::INTR),
    }
}
