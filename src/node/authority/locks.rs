//! Locks: the core's [`Locks`] under one lock, and those who wait.
//!
//! A lock belongs to a session, however many connections it has. One whose session's lease has run out is kept until
//! somebody wants it: then the session is expired, so that it is not resumed, and its replica asks whether it
//! still holds what it held ([`ReadRequest::ReclaimLocks`]).
//!
//! A request that waits does so in the task of its stream. Its end is a wish to wait no longer, and so is
//! the end of the connection: a replica that comes again asks again.
//!
//! An authority that begins anew gives no locks before the replicas of the run before have said what they hold, or
//! their leases must have run out.

use super::coherence::Coherence;
use super::connection::Attached;
use crate::region::{
    ClientId, LockHolder, LockKey, LockOutcome, LockOwner, LockRequest, LockRun, LockWait, Locks,
};
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use crate::wire::{Answer, FileId, HandleId, HeldLock, ReadRequest, Reply};
use parking_lot::Mutex;
use quinn::RecvStream;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// All locks of one authority.
pub(super) struct LockTable {
    state: Mutex<State>,
    /// There may be nobody to wait for any more.
    reclaimed: Notify,
    /// There is but one replica.
    alone: bool,
}

#[derive(Default)]
struct State {
    core: Locks<FileId>,
    waiters: HashMap<LockWait, oneshot::Sender<LockOutcome>>,
    /// Replicas of an earlier run that have not said what they hold, and until when they may.
    awaited: HashSet<ClientId>,
    awaited_until: Option<Instant>,
}

/// What a request has come to.
enum Begun {
    Over(LockOutcome),
    Waits(LockWait, oneshot::Receiver<LockOutcome>),
}

impl LockTable {
    pub fn new(alone: bool) -> LockTable {
        LockTable {
            state: Mutex::default(),
            reclaimed: Notify::new(),
            alone,
        }
    }

    /// These replicas of an earlier run may hold locks, and say so until then.
    pub fn hold_until(&self, until: Instant, clients: &[ClientId]) {
        let mut state = self.state.lock();
        state.awaited.extend(clients);
        state.awaited_until = Some(until);
    }

    /// A session has ended.
    pub fn gone(&self, client: ClientId) {
        let mut state = self.state.lock();
        state.drop_client(client);
        state.awaited.remove(&client);
        state.carry_out();
        self.reclaimed.notify_waiters();
    }

    /// Waits until nobody can have a lock that is not known.
    async fn all_reclaimed(&self) {
        loop {
            let changed = self.reclaimed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let Some(until) = self.state.lock().reclaims_until() else {
                return;
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    fn begin(&self, request: LockRequest<FileId>, wait: bool, coherence: &Coherence) -> Begun {
        let mut state = self.state.lock();
        let in_the_way = state.core.in_the_way(&request);
        let lapsed = state.drop_lapsed(in_the_way, coherence);
        let outcome = state.core.handle_lock(request, wait);
        if lapsed {
            tracing::info!(?request, "locks are taken from a replica that is away");
        }
        let begun = match outcome {
            LockOutcome::Waits(wait) => {
                let (sender, receiver) = oneshot::channel();
                state.waiters.insert(wait, sender);
                Begun::Waits(wait, receiver)
            }
            outcome => Begun::Over(outcome),
        };
        state.carry_out();
        begun
    }

    /// Frees what a request waits for if that is of replicas whose leases have run out. Otherwise: when to look again.
    fn look_again(&self, wait: LockWait, coherence: &Coherence) -> Option<Instant> {
        let mut state = self.state.lock();
        let waits_for = state.core.waits_for(wait);
        state.drop_lapsed(waits_for, coherence);
        state.carry_out();
        let ends = state.core.waits_for(wait).into_iter();
        ends.filter_map(|client| coherence.lease_end(client)).min()
    }

    /// The request waits no longer; its outcome if it has one.
    fn cancel(
        &self,
        wait: LockWait,
        mut ended: oneshot::Receiver<LockOutcome>,
    ) -> Result<LockOutcome> {
        let mut state = self.state.lock();
        if state.core.handle_cancel(wait) {
            state.waiters.remove(&wait);
            return Err(Errno::INTR);
        }
        ended.try_recv().map_err(|_| Errno::INTR)
    }

    fn unlock(&self, id: FileId, owner: LockOwner, range: ByteRange) -> Result<Answer> {
        let mut state = self.state.lock();
        let done = state.core.handle_unlock(id, owner, range);
        state.carry_out();
        match done {
            true => Ok(Answer::Done),
            false => Err(Errno::NOLCK),
        }
    }

    fn test(&self, request: &LockRequest<FileId>, coherence: &Coherence) -> Answer {
        let mut state = self.state.lock();
        let in_the_way = state.core.in_the_way(request);
        state.drop_lapsed(in_the_way, coherence);
        state.carry_out();
        let holder = state.core.holder(request);
        Answer::Lock(holder.map(|LockHolder { run, pid, .. }| HeldLock { run, pid }))
    }

    fn reclaim(&self, id: FileId, owner: LockOwner, pid: u32, runs: &[LockRun]) -> Result<Answer> {
        let mut state = self.state.lock();
        let awaited = state.reclaims_until().is_some() && state.awaited.contains(&owner.client);
        let take = awaited || self.alone;
        let has = state.core.handle_reclaim(id, owner, pid, runs, take);
        state.carry_out();
        match has {
            true => Ok(Answer::Done),
            false => Err(Errno::IO),
        }
    }

    fn reclaimed(&self, client: ClientId) {
        self.state.lock().awaited.remove(&client);
        self.reclaimed.notify_waiters();
    }
}

impl State {
    /// Until when replicas of an earlier run may say what they hold; `None`: all have.
    fn reclaims_until(&mut self) -> Option<Instant> {
        let until = self.awaited_until.filter(|until| Instant::now() < *until);
        if until.is_none() || self.awaited.is_empty() {
            self.awaited.clear();
            self.awaited_until = None;
        }
        self.awaited_until
    }

    /// Frees the locks of those clients whose leases have run out.
    fn drop_lapsed(&mut self, clients: BTreeSet<ClientId>, coherence: &Coherence) -> bool {
        // Under the lock: a client that comes again finds either all of its locks or none.
        let lapsed = clients.into_iter().filter(|it| coherence.has_lapsed(*it));
        let lapsed: Vec<ClientId> = lapsed.collect();
        for client in &lapsed {
            self.drop_client(*client);
        }
        !lapsed.is_empty()
    }

    fn drop_client(&mut self, client: ClientId) {
        self.core.handle_gone(client);
        let State { core, waiters, .. } = self;
        waiters.retain(|wait, _| core.is_known(*wait));
    }

    fn carry_out(&mut self) {
        while let Some((wait, outcome)) = self.core.poll_ended() {
            if let Some(waiter) = self.waiters.remove(&wait) {
                // Whoever waited asks again when it finds that it is too late to wait no longer.
                let _ = waiter.send(outcome);
            }
        }
    }
}

impl Attached {
    /// A lock, after a wait if need be, unless the request's half of the stream ends meanwhile.
    pub(super) async fn lock(&self, asked: ReadRequest, receive: &mut RecvStream) -> Reply {
        let answer = self.take_lock(asked, receive).await;
        super::reply(self.service.coherence.mark().at, answer)
    }

    async fn take_lock(&self, asked: ReadRequest, receive: &mut RecvStream) -> Result<Answer> {
        let ReadRequest::Lock {
            handle,
            key,
            pid,
            run,
            wait: may_wait,
        } = asked
        else {
            return Err(Errno::INVAL);
        };
        let request = self.lock_request(handle, key, pid, run)?;
        let (locks, coherence) = (&self.service.locks, &self.service.coherence);
        let (wait, mut ended) = {
            // A request that does not wait is finished from the beginning.
            if may_wait {
                tokio::select! {
                    () = locks.all_reclaimed() => {}
                    () = end_of(receive) => return Err(Errno::INTR),
                }
            } else {
                locks.all_reclaimed().await;
            }
            match locks.begin(request, may_wait, coherence) {
                Begun::Over(outcome) => return answer(outcome),
                Begun::Waits(wait, ended) => (wait, ended),
            }
        };
        let stop = end_of(receive);
        let mut stop = std::pin::pin!(stop);
        loop {
            let look_again = locks.look_again(wait, coherence);
            let look_again = async {
                match look_again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // An error: this session is gone.
                outcome = &mut ended => return outcome.map_or(Err(Errno::INTR), answer),
                () = &mut stop => return locks.cancel(wait, ended).and_then(answer),
                () = look_again => {}
            }
        }
    }

    /// The answer to a request about locks that does not wait.
    pub(super) fn about_locks(&self, request: ReadRequest) -> Result<Answer> {
        let locks = &self.service.locks;
        match request {
            ReadRequest::Unlock {
                id,
                key,
                start,
                end,
            } => locks.unlock(id, self.owner(key), ByteRange::new(start, end)),
            ReadRequest::TestLock { handle, key, run } => {
                let request = self.lock_request(handle, key, 0, run)?;
                Ok(locks.test(&request, &self.service.coherence))
            }
            ReadRequest::ReclaimLocks {
                handle,
                key,
                pid,
                runs,
            } => {
                let id = self.session.handle(handle)?.node.id;
                locks.reclaim(id, self.owner(key), pid, &runs)
            }
            ReadRequest::LocksReclaimed => {
                locks.reclaimed(self.session.client);
                Ok(Answer::Done)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn owner(&self, key: LockKey) -> LockOwner {
        LockOwner {
            client: self.session.client,
            key,
        }
    }

    /// `EBADF`; `EINVAL` for no bytes.
    fn lock_request(
        &self,
        handle: HandleId,
        key: LockKey,
        pid: u32,
        run: LockRun,
    ) -> Result<LockRequest<FileId>> {
        let node = self.session.handle(handle)?.node.id;
        let range = run.range();
        match range.is_empty() {
            true => Err(Errno::INVAL),
            false => Ok(LockRequest {
                node,
                owner: self.owner(key),
                pid,
                range,
                mode: run.mode,
            }),
        }
    }
}

/// Waits for the end of the request's half of the stream, however it ends.
async fn end_of(receive: &mut RecvStream) {
    let _ = receive.read_chunk(1, true).await;
}

fn answer(outcome: LockOutcome) -> Result<Answer> {
    match outcome {
        LockOutcome::Held => Ok(Answer::Done),
        LockOutcome::Busy => Err(Errno::AGAIN),
        LockOutcome::Deadlock => Err(Errno::DEADLK),
        LockOutcome::Full => Err(Errno::NOLCK),
        // Never of one that has ended.
        LockOutcome::Waits(_) => Err(Errno::IO),
    }
}
