//! The authority's side: what the region really holds, who changed it in which order, and the
//! network in between.

use crate::region::{
    Authority, AuthorityEvent, ChangeId, ClientId, Compared, ComparisonId, PullId, ReplicaConfig,
    Tick,
};
use crate::units::{ByteRange, PAGE_BYTES};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Half a page: the unit of content.
pub const CELL_BYTES: u64 = PAGE_BYTES / 2;
/// The region never has more.
pub const CELLS: u64 = 32;
pub const PAGES: u64 = CELLS / 2;
pub const LEASE: Duration = Duration::from_secs(10);
/// The only node.
pub const NODE: u32 = 7;

pub type Cells = Range<u64>;

pub fn bytes(cells: &Cells) -> ByteRange {
    ByteRange::new(cells.start * CELL_BYTES, cells.end * CELL_BYTES)
}

pub fn cells(bytes: ByteRange) -> Cells {
    assert!(bytes.start.is_multiple_of(CELL_BYTES) && bytes.end.is_multiple_of(CELL_BYTES));
    bytes.start / CELL_BYTES..(bytes.end / CELL_BYTES).min(CELLS)
}

pub fn pages(cells: &Cells) -> Range<u64> {
    cells.start / 2..cells.end.div_ceil(2)
}

/// From a replica, in any order.
#[derive(Clone, Debug)]
pub enum Request {
    Pull(PullId, Cells),
    /// The content of these is asked for in place of hashes.
    Compare(ComparisonId, Vec<Cells>),
    Attr,
    Push(u64, Vec<(Cells, Vec<u64>)>),
    Resize(u64, u64),
}

/// To a replica, in any order. Ends of the region are in cells.
#[derive(Clone, Debug)]
pub enum Reply {
    Pulled(Landing),
    PullFailed(PullId, bool),
    /// The tick and the size, and the content of each of the ranges as far as that.
    Hashed(ComparisonId, Tick, u64, Vec<(Cells, Vec<u64>)>),
    CompareFailed(ComparisonId, Compared),
    Attr(Tick, u64),
    /// The tick, the size then, and the place of the change in the order of all.
    Changed(u64, Result<(Tick, u64, u64), i32>),
    /// It was not even begun.
    Lost(u64),
}

/// The answer to a pull.
#[derive(Clone, Debug)]
pub struct Landing {
    pub pull: PullId,
    pub at: Tick,
    pub size: u64,
    pub range: Cells,
    pub content: Vec<u64>,
    pub zero_until: u64,
}

/// From a replica, in order.
#[derive(Clone, Debug)]
pub enum Up {
    Hello,
    Renew(u64),
    Taken(ChangeId),
    Forget(Tick),
    Goodbye,
}

/// To a replica, in order.
#[derive(Clone, Debug)]
pub enum Down {
    /// Whether the session goes on; the tick, the size.
    Welcome(bool, Tick, u64),
    Renewed(u64),
    /// The last is the place of the change in the order of all.
    Invalidate(ChangeId, Tick, Cells, u64),
    Closed,
}

/// What lies between one replica and the authority.
#[derive(Debug, Default)]
pub struct Wire {
    pub requests: Vec<Request>,
    pub replies: Vec<Reply>,
    pub up: VecDeque<Up>,
    pub down: VecDeque<Down>,
    /// The authority has a connection to this replica.
    pub open: bool,
}

/// A change that is not answered yet.
struct Settling {
    client: ClientId,
    number: u64,
    waits_for: BTreeSet<ChangeId>,
    outcome: (Tick, u64, u64),
}

pub struct World {
    pub now: Instant,
    pub size: u64,
    pub content: Vec<u64>,
    /// Of each cell: when it came to hold what.
    history: Vec<Vec<(u64, u64)>>,
    /// Of each cell: the last change that whoever made it knows to be done.
    pub floor: Vec<u64>,
    /// Changes so far.
    pub order: u64,
    pub authority: Authority<u32, (u64, u64, u64)>,
    pub wires: BTreeMap<ClientId, Wire>,
    settling: Vec<Settling>,
    answered: BTreeMap<(ClientId, u64), (Tick, u64, u64)>,
    versions: u64,
}

pub fn config(background: bool, pages_max: u64) -> ReplicaConfig {
    ReplicaConfig {
        background,
        background_bytes_max: 2 * pages_max * PAGE_BYTES,
        pull_bytes_max: pages_max * PAGE_BYTES,
        read_ahead_bytes_max: 4 * PAGE_BYTES,
    }
}

impl World {
    pub fn new(size: u64, clients: &[ClientId]) -> World {
        let mut world = World {
            now: Instant::now(),
            size: 0,
            content: vec![0; CELLS as usize],
            history: vec![vec![(0, 0)]; CELLS as usize],
            floor: vec![0; CELLS as usize],
            order: 0,
            authority: Authority::new(LEASE),
            wires: clients.iter().map(|&id| (id, Wire::default())).collect(),
            settling: Vec::new(),
            answered: BTreeMap::new(),
            versions: 0,
        };
        let content = (0..size).map(|_| world.new_version()).collect::<Vec<_>>();
        world.write(0..size, &content);
        world
    }

    pub fn new_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    pub fn wire(&mut self, client: ClientId) -> &mut Wire {
        self.wires.get_mut(&client).unwrap()
    }

    /// Whether a cell held `version` at some time after change number `since` was made.
    pub fn has_held(&self, cell: u64, version: u64, since: u64) -> bool {
        let mut until = u64::MAX;
        for &(from, held) in self.history[cell as usize].iter().rev() {
            if held == version && until > since {
                return true;
            }
            until = from;
        }
        false
    }

    fn set(&mut self, cell: u64, version: u64) {
        self.content[cell as usize] = version;
        self.history[cell as usize].push((self.order, version));
    }

    fn write(&mut self, range: Cells, content: &[u64]) {
        self.size = self.size.max(range.end);
        for (cell, &version) in range.zip(content) {
            self.set(cell, version);
        }
    }

    fn resize(&mut self, size: u64) {
        for cell in size..self.size.max(size) {
            self.set(cell, 0);
        }
        self.size = size;
    }

    /// A program on the authority's own machine writes, or brings back what was there before.
    pub fn write_there(&mut self, range: Cells, back: bool) {
        self.order += 1;
        let before = |cell: u64| {
            let history = &self.history[cell as usize];
            history[history.len().saturating_sub(2)].1
        };
        let content: Vec<u64> = match back {
            true => range.clone().map(before).collect(),
            false => range.clone().map(|_| self.new_version()).collect(),
        };
        self.write(range.clone(), &content);
        self.count(None, range);
        self.carry_out();
    }

    fn count(&mut self, origin: Option<ClientId>, range: Cells) -> (ChangeId, Tick) {
        let what = (range.start, range.end, self.order);
        self.authority.handle_change(self.now, origin, NODE, what)
    }

    /// A request arrives; `refuse` says that the store fails.
    pub fn handle_request(&mut self, client: ClientId, request: Request, refuse: bool) {
        if !self.wire(client).open {
            return;
        }
        self.authority.handle_heard(client);
        self.authority.subscribe(client, NODE);
        let at = self.authority.now_tick();
        let size = self.size;
        let reply = match request {
            Request::Attr => Reply::Attr(at, size),
            Request::Pull(pull, _) if refuse => Reply::PullFailed(pull, true),
            Request::Compare(comparison, _) if refuse => {
                Reply::CompareFailed(comparison, Compared::Refused)
            }
            Request::Compare(comparison, extents) => {
                let below = |range: Cells| range.start..range.end.min(size.max(range.start));
                let read = extents.into_iter().map(below).map(|range| {
                    let cells = range.start as usize..range.end as usize;
                    (range, self.content[cells].to_vec())
                });
                Reply::Hashed(comparison, at, size, read.collect())
            }
            Request::Pull(pull, range) => Reply::Pulled(self.landing(pull, at, &range)),
            Request::Push(number, _) | Request::Resize(number, _)
                if self.answered.contains_key(&(client, number)) =>
            {
                Reply::Changed(number, Ok(self.answered[&(client, number)]))
            }
            Request::Push(number, _) | Request::Resize(number, _)
                if self.is_settling(client, number) =>
            {
                return;
            }
            Request::Push(number, _) if refuse => Reply::Changed(number, Err(28)),
            Request::Push(number, extents) => return self.push(client, number, extents),
            Request::Resize(number, size) => {
                let changed = size.min(self.size)..CELLS;
                self.order += 1;
                self.resize(size);
                return self.change(client, number, vec![changed]);
            }
        };
        self.wire(client).replies.push(reply);
    }

    fn is_settling(&self, client: ClientId, number: u64) -> bool {
        let mut settling = self.settling.iter();
        settling.any(|it| (it.client, it.number) == (client, number))
    }

    fn landing(&self, pull: PullId, at: Tick, range: &Cells) -> Landing {
        let end = range.end.min(self.size.max(range.start));
        let mut zero_until = range.end;
        while zero_until < self.size && self.content[zero_until as usize] == 0 {
            zero_until += 1;
        }
        Landing {
            pull,
            at,
            size: self.size,
            range: range.start..end,
            content: self.content[range.start as usize..end as usize].to_vec(),
            zero_until: zero_until.min(self.size),
        }
    }

    fn push(&mut self, client: ClientId, number: u64, extents: Vec<(Cells, Vec<u64>)>) {
        self.order += 1;
        for (range, content) in &extents {
            self.write(range.clone(), content);
        }
        let changed = extents.into_iter().map(|(range, _)| range).collect();
        self.change(client, number, changed);
    }

    /// Counts what has been changed just now, and waits for the others.
    fn change(&mut self, client: ClientId, number: u64, changed: Vec<Cells>) {
        let mut waits_for = BTreeSet::new();
        let mut at = self.authority.now_tick();
        for range in changed {
            let (change, tick) = self.count(Some(client), range);
            waits_for.insert(change);
            at = tick;
        }
        self.settling.push(Settling {
            client,
            number,
            waits_for,
            outcome: (at, self.size, self.order),
        });
        self.carry_out();
    }

    /// An event arrives on the control stream.
    pub fn handle_up(&mut self, client: ClientId, event: Up) {
        let now = self.now;
        match event {
            Up::Hello => {
                let known = self.authority.handle_attached(now, client);
                self.wire(client).open = true;
                let wire = self.wire(client);
                wire.requests.clear();
                wire.replies.clear();
                wire.down.clear();
                if !known {
                    self.forget_session(client);
                }
                self.authority.subscribe(client, NODE);
                let welcome = Down::Welcome(known, self.authority.now_tick(), self.size);
                self.wire(client).down.push_back(welcome);
            }
            _ if !self.wire(client).open => {}
            Up::Renew(number) => {
                if self.authority.handle_renew(now, client) {
                    self.wire(client).down.push_back(Down::Renewed(number));
                }
            }
            Up::Taken(change) => self.authority.handle_taken(client, change),
            Up::Forget(seen) => self.authority.handle_forget(client, NODE, seen),
            Up::Goodbye => {
                self.authority.handle_gone(now, client);
                self.forget_session(client);
                self.wire(client).open = false;
            }
        }
        self.carry_out();
    }

    fn forget_session(&mut self, client: ClientId) {
        self.answered.retain(|(owner, _), _| *owner != client);
        self.settling.retain(|it| it.client != client);
    }

    pub fn pass_time(&mut self, time: Duration) {
        self.now += time;
        if self
            .authority
            .next_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.authority.handle_timeout(self.now);
            let next = self.authority.next_timeout();
            assert!(next.is_none_or(|next| next > self.now));
            self.carry_out();
        }
    }

    /// The authority ends and begins anew; its store stays.
    pub fn restart(&mut self) {
        self.authority = Authority::new(LEASE);
        let clients = self.wires.keys().copied();
        self.authority.hold_until(self.now + LEASE, clients);
        self.settling.clear();
        self.answered.clear();
    }

    fn carry_out(&mut self) {
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Invalidate {
                    client,
                    change,
                    node,
                    what: (start, end, order),
                    at,
                } => {
                    assert_eq!(node, NODE);
                    let wire = self.wire(client);
                    if wire.open {
                        let range = start..end;
                        wire.down
                            .push_back(Down::Invalidate(change, at, range, order));
                    }
                }
                AuthorityEvent::Settled(change) => self.settled(change),
                AuthorityEvent::Expired(client) => {
                    self.forget_session(client);
                    let wire = self.wire(client);
                    if wire.open {
                        wire.open = false;
                        wire.down.push_back(Down::Closed);
                    }
                }
            }
        }
    }

    fn settled(&mut self, change: ChangeId) {
        for it in &mut self.settling {
            it.waits_for.remove(&change);
        }
        let done = |it: &mut Settling| it.waits_for.is_empty();
        for it in self.settling.extract_if(.., done).collect::<Vec<_>>() {
            self.answered.insert((it.client, it.number), it.outcome);
            let wire = self.wire(it.client);
            if wire.open {
                wire.replies.push(Reply::Changed(it.number, Ok(it.outcome)));
            }
        }
    }

    /// What is left to do when all is done: nothing.
    pub fn assert_idle(&mut self) {
        assert!(self.settling.is_empty());
        self.pass_time(2 * LEASE);
        assert_eq!(self.authority.next_timeout(), None, "a change waits");
        let clients: Vec<ClientId> = self.wires.keys().copied().collect();
        for client in clients {
            self.authority.handle_gone(self.now, client);
        }
        assert!(self.authority.poll_event().is_none());
        assert!(self.authority.nodes().is_empty());
    }
}
