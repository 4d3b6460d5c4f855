//! What an authority knows of its replicas: who has copies of what, which changes wait for whom.
//!
//! `Node` is whatever names a node (an id); `What` is whatever tells which part of it is stale.

use super::{ClientId, Tick};
use std::time::{Duration, Instant};

/// Names a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeId(pub u64);

/// What an authority is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityEvent<Node, What> {
    /// Tell a replica that part of a node is stale.
    Invalidate {
        /// Whom.
        client: ClientId,
        /// To be named in its answer.
        change: ChangeId,
        /// Which node.
        node: Node,
        /// What of it.
        what: What,
        /// When.
        at: Tick,
    },
    /// Every replica has taken a change in, or its lease has run out: it can be answered.
    Settled(ChangeId),
    /// A replica's lease has run out while a change waited for it: it has no subscriptions any more, and
    /// must not be told that its session was resumed.
    Expired(ClientId),
}

/// The clock of changes, subscriptions and leases of one authority.
#[derive(Debug)]
pub struct Authority<Node, What> {
    _node: std::marker::PhantomData<(Node, What)>,
}

impl<Node: Copy + Eq + std::hash::Hash + Ord, What: Copy> Authority<Node, What> {
    /// No replicas; the clock begins at tick 1.
    pub fn new(_lease: Duration) -> Self {
        unimplemented!()
    }
    /// The clock of changes: to be read *before* an answer is made, after [`Self::subscribe`].
    pub fn now_tick(&self) -> Tick {
        unimplemented!()
    }
    /// A replica has connected. Returns whether it is still known: its subscriptions hold.
    pub fn handle_attached(&mut self, _now: Instant, _client: ClientId) -> bool {
        unimplemented!()
    }
    /// A renewal has arrived; false if the client is not known (any more).
    pub fn handle_renew(&mut self, _now: Instant, _client: ClientId) -> bool {
        unimplemented!()
    }
    /// The replica says it is gone, or its session was dropped: it holds nothing any more.
    pub fn handle_gone(&mut self, _now: Instant, _client: ClientId) {
        unimplemented!()
    }
    /// The replica is about to get an answer about `node`, and will be told of changes to it.
    pub fn subscribe(&mut self, _client: ClientId, _node: Node) {
        unimplemented!()
    }
    /// The replica holds nothing of `node` that it got in an answer up to tick `seen`.
    pub fn handle_forget(&mut self, _client: ClientId, _node: Node, _seen: Tick) {
        unimplemented!()
    }
    /// A node has changed, by the hand of `origin` or of nobody known here: to be called *after* the
    /// change can be read. The change is settled when all other subscribers have taken it in.
    pub fn handle_change(
        &mut self,
        _now: Instant,
        _origin: Option<ClientId>,
        _node: Node,
        _what: What,
    ) -> (ChangeId, Tick) {
        unimplemented!()
    }
    /// A replica has taken a change in.
    pub fn handle_taken(&mut self, _client: ClientId, _change: ChangeId) {
        unimplemented!()
    }
    /// Time has passed.
    pub fn handle_timeout(&mut self, _now: Instant) {
        unimplemented!()
    }
    /// When [`Self::handle_timeout`] is next worth calling.
    pub fn next_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }
    /// What to do next.
    pub fn poll_event(&mut self) -> Option<AuthorityEvent<Node, What>> {
        unimplemented!()
    }
    /// Replicas known.
    pub fn clients(&self) -> usize {
        unimplemented!()
    }
    /// Who subscribes to `node`, except `but`: whether a change to it would have to wait for anybody.
    pub fn has_other_subscribers(&self, _node: Node, _but: Option<ClientId>) -> bool {
        unimplemented!()
    }
}
