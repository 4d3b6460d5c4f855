//! Who has copies of what: the core's [`Authority`] under one lock, its events carried out.
//!
//! **Answers.** A copy is only kept coherent if the replica was subscribed to the node when the
//! answer was read. Which nodes an answer tells of is often known only after it was read, so the order is:
//! mark, read, subscribe. If no change was counted in between, none was missed; if one was, the answer is
//! read again, now that the replica is subscribed ([`Coherence::subscribe`]).
//!
//! **Changes.** They are counted after the store has made them ([`Coherence::change`]); whoever made one
//! waits, without any lock, until the others have dropped their copies or their leases have run out
//! ([`Change::settled`]).

use super::outbox::{End, Outbox};
use crate::region::{Authority, AuthorityEvent as Event, ChangeId, ClientId, Tick};
use crate::wire::{AuthorityEvent, FileId, Stale};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// The timer rests at least so long between two looks.
const TIMER_REST: Duration = Duration::from_millis(1);

pub(super) struct Coherence {
    lease: Duration,
    state: Mutex<State>,
    /// The timer has to look again, sooner than it was about to.
    rearm: Notify,
}

struct State {
    core: Authority<FileId, Stale>,
    settling: HashMap<ChangeId, oneshot::Sender<()>>,
    /// Of the clients that are connected.
    outboxes: HashMap<ClientId, Arc<Outbox>>,
    /// When the timer looks next.
    armed: Option<Instant>,
}

/// A point in the order of changes.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    /// The clock of changes.
    pub at: Tick,
    /// Changes counted so far: subscriptions move the clock as well.
    changes: u64,
}

/// A change that was counted.
#[must_use]
pub(super) struct Change {
    /// The clock of changes after it.
    pub at: Tick,
    /// Others have changed something between the mark given and this change.
    pub moved: bool,
    settling: Vec<oneshot::Receiver<()>>,
}

impl Change {
    /// Waits until no other replica answers from a copy without it.
    pub async fn settled(self) -> Tick {
        for change in self.settling {
            // An error means that the authority ends: then nobody is served any more.
            let _ = change.await;
        }
        self.at
    }
}

impl Coherence {
    pub fn new(lease: Duration) -> Coherence {
        Coherence {
            lease,
            state: Mutex::new(State {
                core: Authority::new(lease),
                settling: HashMap::new(),
                outboxes: HashMap::new(),
                armed: None,
            }),
            rearm: Notify::new(),
        }
    }

    /// An earlier run may have granted leases that last until then, to these.
    pub fn hold_until(&self, until: Instant, clients: Vec<ClientId>) {
        let mut state = self.state.lock();
        state.core.hold_until(until, clients);
        self.carry_out(&mut state);
    }

    /// Where the order of changes is now: to be asked before the store is.
    pub fn mark(&self) -> Mark {
        self.state.lock().mark()
    }

    /// Subscribes `client` to what an answer read since `before` tells of, and returns the answer's tick.
    /// `Err` where it has to be read again, with the mark for that. `held` are the nodes of
    /// earlier tries.
    pub fn subscribe(
        &self,
        client: ClientId,
        nodes: &[FileId],
        before: Mark,
        held: &mut HashSet<FileId>,
    ) -> Result<Tick, Mark> {
        let mut state = self.state.lock();
        let mut complete = true;
        for node in nodes.iter().filter(|node| !held.contains(node)) {
            state.core.subscribe(client, *node);
            complete = false;
        }
        let now = state.mark();
        drop(state);
        if now.changes == before.changes {
            return Ok(now.at);
        }
        if complete {
            return Ok(before.at);
        }
        held.extend(nodes);
        Err(now)
    }

    /// Subscribes `client` to one node that surely exists, and returns the tick for an answer that is read
    /// from now on.
    pub fn subscribe_first(&self, client: ClientId, node: FileId) -> Tick {
        let mut state = self.state.lock();
        state.core.subscribe(client, node);
        state.core.now_tick()
    }

    /// Counts changes that the store has made, by the hand of `origin` (`None`: somebody on this machine).
    /// `before` is from before the answer to them was read, and `origin` gets subscribed to `answer`,
    /// the node which that answer tells of.
    pub fn change(
        &self,
        origin: Option<ClientId>,
        changes: impl IntoIterator<Item = (FileId, Stale)>,
        answer: Option<FileId>,
        before: Mark,
    ) -> Change {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let (Some(origin), Some(answer)) = (origin, answer) {
            state.core.subscribe(origin, answer);
        }
        let Mark {
            mut at,
            changes: counted,
        } = state.mark();
        let mut settling = Vec::new();
        for (node, what) in changes {
            let (change, tick) = state.core.handle_change(now, origin, node, what);
            at = tick;
            if origin.is_some() {
                let (sender, receiver) = oneshot::channel();
                state.settling.insert(change, sender);
                settling.push(receiver);
            }
        }
        self.carry_out(&mut state);
        Change {
            at,
            moved: counted != before.changes,
            settling,
        }
    }

    /// As [`Coherence::change`] for what nobody waits for.
    pub fn change_by_others(&self, changes: impl IntoIterator<Item = (FileId, Stale)>) {
        let _ = self.change(None, changes, None, self.mark());
    }

    /// Waits until a client that takes nothing in has lost its lease: attached before, it would get a
    /// new one, and whoever waits for it would wait on.
    pub async fn overdue(&self, client: ClientId) {
        loop {
            let end = {
                let mut state = self.state.lock();
                state.core.handle_timeout(Instant::now());
                self.carry_out(&mut state);
                state.core.overdue(Instant::now(), client)
            };
            match end {
                Some(end) => tokio::time::sleep_until(end.into()).await,
                None => return,
            }
        }
    }

    /// A client has connected; its events go to `outbox` from here on. Returns whether its
    /// subscriptions hold.
    pub fn attach(&self, client: ClientId, outbox: Arc<Outbox>) -> bool {
        let mut state = self.state.lock();
        state.outboxes.insert(client, outbox);
        let known = state.core.handle_attached(Instant::now(), client);
        self.carry_out(&mut state);
        known
    }

    /// The connection with this outbox is gone; the client may come again.
    pub fn detach(&self, client: ClientId, outbox: &Arc<Outbox>) {
        let mut state = self.state.lock();
        let current = state.outboxes.get(&client);
        if current.is_some_and(|current| Arc::ptr_eq(current, outbox)) {
            state.outboxes.remove(&client);
        }
    }

    /// A client holds nothing any more.
    pub fn gone(&self, client: ClientId) {
        let mut state = self.state.lock();
        state.outboxes.remove(&client);
        state.core.handle_gone(Instant::now(), client);
        self.carry_out(&mut state);
    }

    /// A client has sent something after it was welcomed.
    pub fn heard(&self, client: ClientId) {
        let mut state = self.state.lock();
        state.core.handle_heard(client);
        state.carry_out();
    }

    /// A client asks for its lease to be renewed; false where it is not to be answered.
    pub fn renew(&self, client: ClientId) -> bool {
        let mut state = self.state.lock();
        let renewed = state.core.handle_renew(Instant::now(), client);
        self.carry_out(&mut state);
        renewed
    }

    /// Whether a client need not be waited for, as its lease has run out. It is told so when it comes again.
    pub fn has_lapsed(&self, client: ClientId) -> bool {
        let mut state = self.state.lock();
        let lapsed = state.core.handle_wanted(Instant::now(), client);
        self.carry_out(&mut state);
        lapsed
    }

    /// Until when a client's lease lasts, unless it is renewed.
    pub fn lease_end(&self, client: ClientId) -> Option<Instant> {
        self.state.lock().core.lease_end(client)
    }

    /// A client has taken a change in.
    pub fn taken(&self, client: ClientId, change: u64) {
        let mut state = self.state.lock();
        state.core.handle_taken(client, ChangeId(change));
        self.carry_out(&mut state);
    }

    /// A client holds nothing of these nodes that is newer than these ticks.
    pub fn forget(&self, client: ClientId, nodes: &[(FileId, Tick)]) {
        let mut state = self.state.lock();
        for (node, seen) in nodes {
            state.core.handle_forget(client, *node, *seen);
        }
        self.carry_out(&mut state);
    }

    /// How long a replica may answer from its copies.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Whether anybody has copies of `node`.
    pub fn has_subscribers(&self, node: FileId) -> bool {
        self.state.lock().core.has_other_subscribers(node, None)
    }

    /// Every node that somebody has copies of.
    pub fn nodes(&self) -> Vec<FileId> {
        self.state.lock().core.nodes()
    }

    /// Lets leases run out when it is time. Does not end.
    pub async fn run_timer(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.core.handle_timeout(Instant::now());
                state.carry_out();
                state.armed = state.core.next_timeout();
                state.armed
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.rearm.notified() => {}
            }
            tokio::time::sleep(TIMER_REST).await;
        }
    }

    fn carry_out(&self, state: &mut State) {
        state.carry_out();
        let Some(next) = state.core.next_timeout() else {
            return;
        };
        if state.armed.is_none_or(|armed| next < armed) {
            state.armed = Some(next);
            self.rearm.notify_one();
        }
    }
}

impl State {
    fn mark(&self) -> Mark {
        Mark {
            at: self.core.now_tick(),
            changes: self.core.changes_made(),
        }
    }

    fn carry_out(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Invalidate {
                    client,
                    change,
                    node,
                    what,
                    at,
                } => {
                    if let Some(outbox) = self.outboxes.get(&client) {
                        outbox.put(AuthorityEvent::Invalidate {
                            change: change.0,
                            id: node,
                            at,
                            what,
                        });
                    }
                }
                Event::Settled(change) => {
                    if let Some(waiter) = self.settling.remove(&change) {
                        // Whoever waited may have gone.
                        let _ = waiter.send(());
                    }
                }
                Event::Expired(client) => {
                    if let Some(outbox) = self.outboxes.remove(&client) {
                        outbox.end(End::Expired);
                    }
                }
            }
        }
    }
}
