//! What an authority knows of its replicas: who has copies of what, which changes wait for whom.
//!
//! `Node` is whatever names a node (an id); `What` is whatever tells which part of it is stale.
//!
//! ```text
//! handle_change ──► Invalidate to every other subscriber of the node
//!                      │  each of them: has taken it · has given the node up · is gone · its lease has run out (Expired)
//!                      ▼
//!                   Settled: the change may be answered
//! ```
//!
//! The clock moves at each change and at each subscription, so that no two of them share a tick:
//! a replica that gives a node up names the newest answer it saw of it, and a subscription made
//! for an answer that is still under way is told from it.
//!
//! A client whose lease has passed is no worse off as long as nothing changed for it, and may renew.
//! It is *expired* by the first change that would have to wait for it: then it has missed something.
//!
//! An authority that begins anew does not know what the replicas of the one before have copies of: until each of
//! them has come again, or their leases must have run out, no change is settled ([`Authority::hold_until`]).
//!
//! A client that is let in as a new one counts as known once anything has been heard of it since: its
//! welcome may have been lost with the connection, and then it still believes in copies from
//! before, and has to be told once more that they do not hold.

use super::{ClientId, Tick};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Names a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeId(pub u64);

/// What an authority is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityEvent<Node, What> {
    /// Tell a replica that part of a node is stale. Told again when the replica has attached anew
    /// and has not taken the change in yet.
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

/// A replica, as long as it is known.
#[derive(Debug)]
struct Client<Node> {
    lease_end: Instant,
    /// It knows that it was let in as a new one.
    heard: bool,
    subscriptions: HashSet<Node>,
    /// Changes it has not taken in yet.
    pending: BTreeSet<ChangeId>,
}

/// A change that somebody has not taken in yet.
#[derive(Debug)]
struct Change<Node, What> {
    node: Node,
    what: What,
    at: Tick,
    since: Instant,
    waits_for: Vec<ClientId>,
    /// Waits for the leases of an earlier run as well.
    held: bool,
}

/// The clock of changes, subscriptions and leases of one authority.
#[derive(Debug)]
pub struct Authority<Node, What> {
    lease: Duration,
    tick: Tick,
    changes_made: u64,
    clients: BTreeMap<ClientId, Client<Node>>,
    /// Who subscribes to a node, each with the tick of its newest grant.
    subscribers: HashMap<Node, Vec<(ClientId, Tick)>>,
    changes: BTreeMap<ChangeId, Change<Node, What>>,
    /// Until when replicas of an earlier run may answer from their copies, and which of them have not come
    /// again.
    held_until: Option<Instant>,
    awaited: HashSet<ClientId>,
    events: VecDeque<AuthorityEvent<Node, What>>,
}

impl<Node: Copy + Eq + Hash + Ord, What: Copy> Authority<Node, What> {
    /// No replicas; the clock begins at tick 1.
    pub fn new(lease: Duration) -> Self {
        Authority {
            lease,
            tick: Tick(1),
            changes_made: 0,
            clients: BTreeMap::new(),
            subscribers: HashMap::new(),
            changes: BTreeMap::new(),
            held_until: None,
            awaited: HashSet::new(),
            events: VecDeque::new(),
        }
    }

    /// An earlier run may have granted leases that last until then, to these.
    pub fn hold_until(&mut self, until: Instant, clients: impl IntoIterator<Item = ClientId>) {
        self.awaited.extend(clients);
        self.held_until = (!self.awaited.is_empty()).then_some(until);
    }

    /// The clock of changes: to be read *before* an answer is made, after [`Self::subscribe`].
    pub fn now_tick(&self) -> Tick {
        self.tick
    }

    /// A replica has connected: its lease runs from now. Returns whether it is still known and knows it:
    /// its subscriptions hold. It will be told again of what it has not taken in yet.
    pub fn handle_attached(&mut self, now: Instant, client: ClientId) -> bool {
        let lease_end = now + self.lease;
        let Some(known) = self.clients.get_mut(&client) else {
            let new = Client {
                lease_end,
                heard: false,
                subscriptions: HashSet::new(),
                pending: BTreeSet::new(),
            };
            self.clients.insert(client, new);
            return false;
        };
        known.lease_end = known.lease_end.max(lease_end);
        for &id in &known.pending {
            if let Some(change) = self.changes.get(&id) {
                self.events.push_back(change.invalidate(client, id));
            }
        }
        known.heard
    }

    /// Something has arrived from a replica that it sent after it was welcomed: a request, an event.
    pub fn handle_heard(&mut self, client: ClientId) {
        if let Some(known) = self.clients.get_mut(&client) {
            known.heard = true;
            self.not_awaited(client);
        }
    }

    /// A renewal has arrived: true if it is to be answered. False if the client is not known (any
    /// more), or has left a change without an answer for a whole lease: its lease will run out, so that
    /// nobody waits for it for ever.
    pub fn handle_renew(&mut self, now: Instant, client: ClientId) -> bool {
        let overdue = self.overdue(now, client).is_some();
        let Some(known) = self.clients.get_mut(&client) else {
            return false;
        };
        known.heard = true;
        if !overdue {
            known.lease_end = known.lease_end.max(now + self.lease);
        }
        self.not_awaited(client);
        !overdue
    }

    /// Somebody wants what a client keeps from others. True where its lease has run out, so that it need not be
    /// waited for: it is expired then.
    pub fn handle_wanted(&mut self, now: Instant, client: ClientId) -> bool {
        let leased = (self.clients.get(&client)).map(|known| now < known.lease_end);
        if leased == Some(false) {
            self.expire(client);
        }
        leased != Some(true)
    }

    /// Until when a client's lease lasts.
    pub fn lease_end(&self, client: ClientId) -> Option<Instant> {
        self.clients.get(&client).map(|known| known.lease_end)
    }

    /// If a client has left a change without an answer for a whole lease: when its lease ends. It is not
    /// to be attached before that, as it would get a new one.
    pub fn overdue(&self, now: Instant, client: ClientId) -> Option<Instant> {
        let known = self.clients.get(&client)?;
        let oldest = self.changes.get(known.pending.first()?)?;
        (oldest.since + self.lease <= now).then_some(known.lease_end)
    }

    /// The replica says it is gone, or its session was dropped: it holds nothing any more.
    pub fn handle_gone(&mut self, _now: Instant, client: ClientId) {
        self.not_awaited(client);
        self.drop_client(client);
    }

    /// The replica is about to get an answer about `node`, and will be told of changes to it. Does nothing
    /// for a client that is not known (any more).
    pub fn subscribe(&mut self, client: ClientId, node: Node) {
        let Some(known) = self.clients.get_mut(&client) else {
            return;
        };
        self.tick.0 += 1;
        let subscribers = self.subscribers.entry(node).or_default();
        if known.subscriptions.insert(node) {
            subscribers.push((client, self.tick));
        } else if let Some(known) = subscribers.iter_mut().find(|(id, _)| *id == client) {
            known.1 = self.tick;
        }
    }

    /// The replica holds nothing of `node` that it got in an answer up to tick `seen`.
    pub fn handle_forget(&mut self, client: ClientId, node: Node, seen: Tick) {
        self.handle_heard(client);
        let granted = self.subscribers.get(&node).and_then(|subscribers| {
            let found = subscribers.iter().find(|(id, _)| *id == client);
            found.map(|&(_, granted)| granted)
        });
        if granted.is_none_or(|granted| granted > seen) {
            return;
        }
        self.drop_subscription(client, node);
        let Some(known) = self.clients.get_mut(&client) else {
            return;
        };
        known.subscriptions.remove(&node);
        let changes = &self.changes;
        let of_node = |id: &ChangeId| changes.get(id).is_some_and(|change| change.node == node);
        let pending: Vec<ChangeId> = known.pending.iter().copied().filter(of_node).collect();
        for change in pending {
            self.handle_taken(client, change);
        }
    }

    /// A node has changed, by the hand of `origin` or of nobody known here: to be called *after* the
    /// change can be read, and in the order in which the changes to a node were made. The change is
    /// settled when all other subscribers have taken it in.
    pub fn handle_change(
        &mut self,
        now: Instant,
        origin: Option<ClientId>,
        node: Node,
        what: What,
    ) -> (ChangeId, Tick) {
        self.tick.0 += 1;
        self.changes_made += 1;
        let (id, at) = (ChangeId(self.changes_made), self.tick);
        let mut change = Change {
            node,
            what,
            at,
            since: now,
            waits_for: Vec::new(),
            held: self.held_until.is_some_and(|until| now < until),
        };
        let mut expired = Vec::new();
        for &(client, _) in self.subscribers.get(&node).into_iter().flatten() {
            match self.clients.get_mut(&client) {
                Some(_) if Some(client) == origin => {}
                Some(known) if now < known.lease_end => {
                    known.pending.insert(id);
                    change.waits_for.push(client);
                }
                _ => expired.push(client),
            }
        }
        expired.into_iter().for_each(|client| self.expire(client));
        for &client in &change.waits_for {
            self.events.push_back(change.invalidate(client, id));
        }
        if change.is_settled() {
            self.events.push_back(AuthorityEvent::Settled(id));
        } else {
            self.changes.insert(id, change);
        }
        (id, at)
    }

    /// A replica has taken a change in.
    pub fn handle_taken(&mut self, client: ClientId, change: ChangeId) {
        self.handle_heard(client);
        let known = self.clients.get_mut(&client);
        if known.is_some_and(|known| known.pending.remove(&change)) {
            self.settle(client, change);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, known)| !known.pending.is_empty() && known.lease_end <= now)
            .map(|(&client, _)| client)
            .collect();
        late.into_iter().for_each(|client| self.expire(client));
        if self.held_until.is_some_and(|until| until <= now) {
            self.end_hold();
        }
    }

    /// A replica of an earlier run has come to this one: it has given up its copies, or they are known of.
    fn not_awaited(&mut self, client: ClientId) {
        if self.awaited.remove(&client) && self.awaited.is_empty() {
            self.end_hold();
        }
    }

    fn end_hold(&mut self) {
        self.held_until = None;
        self.awaited.clear();
        let events = &mut self.events;
        self.changes.retain(|&id, change| {
            change.held = false;
            if change.is_settled() {
                events.push_back(AuthorityEvent::Settled(id));
            }
            !change.is_settled()
        });
    }

    /// When [`Self::handle_timeout`] is next worth calling.
    pub fn next_timeout(&self) -> Option<Instant> {
        let waited_for = self.clients.values().filter(|it| !it.pending.is_empty());
        let leases = waited_for.map(|known| known.lease_end);
        leases.chain(self.held_until).min()
    }

    /// What to do next.
    pub fn poll_event(&mut self) -> Option<AuthorityEvent<Node, What>> {
        self.events.pop_front()
    }

    /// Replicas known.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Changes counted so far; subscriptions move the clock as well.
    pub fn changes_made(&self) -> u64 {
        self.changes_made
    }

    /// Every node that somebody subscribes to, in no order.
    pub fn nodes(&self) -> Vec<Node> {
        self.subscribers.keys().copied().collect()
    }

    /// Who subscribes to `node`, except `but`: whether a change to it would have to wait for anybody.
    pub fn has_other_subscribers(&self, node: Node, but: Option<ClientId>) -> bool {
        let subscribers = self.subscribers.get(&node);
        subscribers.is_some_and(|all| all.iter().any(|&(client, _)| Some(client) != but))
    }

    fn expire(&mut self, client: ClientId) {
        self.events.push_back(AuthorityEvent::Expired(client));
        self.drop_client(client);
    }

    fn drop_client(&mut self, client: ClientId) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        for node in known.subscriptions {
            self.drop_subscription(client, node);
        }
        for change in known.pending {
            self.settle(client, change);
        }
    }

    fn drop_subscription(&mut self, client: ClientId, node: Node) {
        if let Some(subscribers) = self.subscribers.get_mut(&node) {
            subscribers.retain(|&(id, _)| id != client);
            if subscribers.is_empty() {
                self.subscribers.remove(&node);
            }
        }
    }

    /// A change need not wait for `client` any more.
    fn settle(&mut self, client: ClientId, id: ChangeId) {
        let Some(change) = self.changes.get_mut(&id) else {
            return;
        };
        change.waits_for.retain(|&waited| waited != client);
        if change.is_settled() {
            self.changes.remove(&id);
            self.events.push_back(AuthorityEvent::Settled(id));
        }
    }
}

impl<Node: Copy, What: Copy> Change<Node, What> {
    fn is_settled(&self) -> bool {
        self.waits_for.is_empty() && !self.held
    }

    fn invalidate(&self, client: ClientId, change: ChangeId) -> AuthorityEvent<Node, What> {
        AuthorityEvent::Invalidate {
            client,
            change,
            node: self.node,
            what: self.what,
            at: self.at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);
    const A: ClientId = ClientId([1; 16]);
    const B: ClientId = ClientId([2; 16]);
    const C: ClientId = ClientId([3; 16]);

    type Machine = Authority<u32, char>;

    fn attached(now: Instant, clients: &[ClientId]) -> Machine {
        let mut machine = Authority::new(LEASE);
        for &client in clients {
            assert!(!machine.handle_attached(now, client));
        }
        machine
    }

    fn events(machine: &mut Machine) -> Vec<String> {
        let name = |client: ClientId| ["A", "B", "C"][client.0[0] as usize - 1];
        std::iter::from_fn(|| machine.poll_event())
            .map(|event| match event {
                AuthorityEvent::Invalidate { client, what, .. } => {
                    format!("{} {what}", name(client))
                }
                AuthorityEvent::Settled(change) => format!("settled {}", change.0),
                AuthorityEvent::Expired(client) => format!("expired {}", name(client)),
            })
            .collect()
    }

    #[test]
    fn a_change_waits_for_the_other_subscribers() {
        let now = Instant::now();
        let mut machine = attached(now, &[A, B, C]);
        for client in [A, B, C] {
            machine.subscribe(client, 7);
        }
        let (change, at) = machine.handle_change(now, Some(A), 7, 'x');
        assert_eq!(at, machine.now_tick());
        assert_eq!(events(&mut machine), ["B x", "C x"]);
        machine.handle_taken(B, change);
        machine.handle_taken(B, change);
        machine.handle_taken(A, change);
        assert!(events(&mut machine).is_empty());
        machine.handle_gone(now, C);
        assert_eq!(events(&mut machine), ["settled 1"]);
        assert!(machine.has_other_subscribers(7, Some(A)));
        machine.handle_change(now, Some(A), 8, 'y');
        assert_eq!(
            events(&mut machine),
            ["settled 2"],
            "nobody has copies of it"
        );
    }

    #[test]
    fn a_lease_that_has_run_out_is_not_waited_for() {
        let now = Instant::now();
        let mut machine = attached(now, &[A, B]);
        machine.subscribe(B, 7);
        machine.subscribe(B, 8);
        machine.handle_change(now + 4 * SECOND, Some(A), 7, 'x');
        assert_eq!(events(&mut machine), ["B x"]);
        assert_eq!(machine.next_timeout(), Some(now + LEASE));
        machine.handle_timeout(now + 9 * SECOND);
        assert!(events(&mut machine).is_empty());
        machine.handle_timeout(now + LEASE);
        assert_eq!(events(&mut machine), ["expired B", "settled 1"]);
        assert_eq!(machine.next_timeout(), None);
        assert!(!machine.has_other_subscribers(8, None));
        assert!(!machine.handle_renew(now + LEASE, B));
        machine.subscribe(B, 7);
        assert!(!machine.has_other_subscribers(7, None));
        assert!(!machine.handle_attached(now + 11 * SECOND, B));
        assert_eq!(machine.clients(), 2);
    }

    #[test]
    fn a_lease_that_passed_while_nothing_changed_is_renewed() {
        let now = Instant::now();
        let mut machine = attached(now, &[A, B]);
        machine.subscribe(A, 7);
        machine.subscribe(B, 7);
        machine.handle_timeout(now + LEASE);
        assert!(machine.handle_renew(now + LEASE, B));
        machine.handle_change(now + LEASE, None, 7, 'x');
        assert_eq!(events(&mut machine), ["expired A", "B x"]);
        assert!(machine.handle_attached(now + LEASE + SECOND, B));
        assert_eq!(events(&mut machine), ["B x"], "told again");
    }

    #[test]
    fn a_new_run_waits_for_the_leases_of_the_one_before() {
        let now = Instant::now();
        let mut machine = attached(now, &[A, B]);
        machine.hold_until(now + 5 * SECOND, [C]);
        machine.subscribe(B, 7);
        machine.handle_change(now, Some(A), 8, 'x');
        let (change, _) = machine.handle_change(now, Some(A), 7, 'y');
        assert_eq!(events(&mut machine), ["B y"]);
        assert_eq!(machine.next_timeout(), Some(now + 5 * SECOND));
        machine.handle_timeout(now + 5 * SECOND);
        assert_eq!(events(&mut machine), ["settled 1"]);
        machine.handle_taken(B, change);
        assert_eq!(events(&mut machine), ["settled 2"]);
        machine.handle_change(now + 5 * SECOND, Some(A), 8, 'z');
        assert_eq!(events(&mut machine), ["settled 3"]);
        assert_eq!(machine.next_timeout(), None);
    }

    #[test]
    fn a_new_run_waits_no_longer_than_until_all_have_come_again() {
        let now = Instant::now();
        let mut machine: Machine = Authority::new(LEASE);
        machine.hold_until(now + LEASE, [A, B]);
        for client in [A, B] {
            machine.handle_attached(now, client);
        }
        machine.handle_heard(A);
        machine.handle_change(now, Some(A), 7, 'x');
        assert!(events(&mut machine).is_empty(), "B's welcome may be lost");
        machine.handle_heard(B);
        assert_eq!(events(&mut machine), ["settled 1"]);
        assert_eq!(machine.next_timeout(), None);
    }

    #[test]
    fn a_welcome_that_was_lost_is_not_a_session() {
        let now = Instant::now();
        let mut machine = attached(now, &[A]);
        machine.subscribe(A, 7);
        assert!(
            !machine.handle_attached(now, A),
            "it may not know of the first"
        );
        machine.handle_heard(A);
        assert!(machine.handle_attached(now, A));
        assert!(machine.has_other_subscribers(7, None));
    }

    #[test]
    fn who_leaves_a_change_unanswered_cannot_renew_for_ever() {
        let now = Instant::now();
        let mut machine = attached(now, &[A, B]);
        machine.subscribe(B, 7);
        machine.handle_change(now, Some(A), 7, 'x');
        assert!(machine.handle_renew(now + 9 * SECOND, B));
        assert_eq!(machine.overdue(now + 9 * SECOND, B), None);
        assert!(!machine.handle_renew(now + 12 * SECOND, B));
        let overdue = machine.overdue(now + 12 * SECOND, B);
        assert_eq!(overdue, Some(now + 19 * SECOND));
        assert_eq!(machine.next_timeout(), Some(now + 19 * SECOND));
    }

    #[test]
    fn a_later_subscription_stays_when_an_earlier_one_is_given_up() {
        let now = Instant::now();
        let mut machine = attached(now, &[A]);
        machine.subscribe(A, 7);
        let first_answer = machine.now_tick();
        machine.subscribe(A, 7);
        let second_answer = machine.now_tick();
        machine.handle_forget(A, 7, first_answer);
        assert!(machine.has_other_subscribers(7, None));
        machine.handle_change(now, None, 7, 'x');
        machine.handle_forget(A, 7, second_answer);
        assert_eq!(events(&mut machine), ["A x", "settled 1"]);
        assert!(!machine.has_other_subscribers(7, None));
        assert!(machine.subscribers.is_empty());
    }
}
