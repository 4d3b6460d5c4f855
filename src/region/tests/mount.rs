//! A replica's side: the machine and its local copy, handled as a node would, and what is known
//! about them in an obvious way.

use super::stored::Stored;
use super::world::{
    self, CELL_BYTES, CELLS, Cells, Down, LEASE, Landing, PAGES, Reply, Request, Up, World, bytes,
    cells, pages,
};
use crate::region::{
    ClientId, Compared, ComparisonId, Epoch, Failure, Lease, Pull, Push, PushId, Replica,
    ReplicaConfig, Tick, WaiterId,
};
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use std::collections::BTreeMap;
use std::time::Instant;

/// What dropped pages are filled with: nobody is to see it.
pub const JUNK: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    Down,
    /// Hello was sent then.
    Connecting(Instant),
    Up,
}

/// A push that has not been answered.
#[derive(Debug)]
pub struct Sent {
    id: PushId,
    extents: Vec<(Cells, Vec<u64>)>,
}

/// A truncation that has not been answered.
#[derive(Debug)]
pub struct Resize {
    pub number: u64,
    pub size: u64,
}

#[derive(Debug)]
pub struct Mount {
    pub client: ClientId,
    pub config: ReplicaConfig,
    /// `None`: nothing of the region is kept.
    pub core: Option<Replica>,
    /// `core` has been asked for.
    pub opening: bool,
    pub copy: Vec<u64>,
    /// What is dropped, and what is given up, may stay in the copy.
    pub keeps: bool,
    /// What the copy held when a comparison began.
    pub comparisons: BTreeMap<ComparisonId, Vec<u64>>,
    pub lease: Lease,
    pub link: Link,
    /// The newest answer.
    seen: Tick,
    /// The newest invalidation, also from while nothing was kept.
    changed_at: Tick,
    /// The size is being asked for.
    pub asking: bool,
    pub resize: Option<Resize>,
    sent: BTreeMap<u64, Sent>,
    numbers: u64,
    pub landings: Vec<Landing>,
    pub reads: Vec<super::reads::Read>,
    pub stores: Vec<(Cells, Option<WaiterId>)>,
    /// What was stored here and not taken away since, by cell.
    pub mine: BTreeMap<u64, u64>,
    pub stored: Stored,
    /// Of each cell: the last change that this replica knows of.
    pub known: Vec<u64>,
}

impl Mount {
    pub fn new(client: ClientId, config: ReplicaConfig, now: Instant) -> Mount {
        Mount {
            client,
            config,
            core: None,
            opening: false,
            copy: vec![0; CELLS as usize],
            keeps: false,
            comparisons: BTreeMap::new(),
            lease: Lease::new(now, std::time::Duration::ZERO),
            link: Link::Down,
            seen: Tick(0),
            changed_at: Tick(0),
            asking: false,
            resize: None,
            sent: BTreeMap::new(),
            numbers: 0,
            landings: Vec::new(),
            reads: Vec::new(),
            stores: Vec::new(),
            mine: BTreeMap::new(),
            stored: Stored::default(),
            known: vec![0; CELLS as usize],
        }
    }

    pub fn size(&self) -> u64 {
        let size = self.core.as_ref().map_or(0, |core| core.size());
        assert_eq!(size % CELL_BYTES, 0);
        size / CELL_BYTES
    }

    /// The authority's size, as far as known here.
    fn base(&self) -> u64 {
        self.core.as_ref().map_or(0, Replica::base_size) / CELL_BYTES
    }

    pub fn is_idle(&self) -> bool {
        self.sent.is_empty()
            && self.reads.is_empty()
            && self.stores.is_empty()
            && self.resize.is_none()
            && !self.opening
            && !self.asking
            && self.core.as_ref().is_none_or(Replica::is_idle)
    }

    /// Begins to connect, or renews the lease in time.
    pub fn keep_link(&mut self, world: &mut World) {
        match self.link {
            Link::Down => {
                self.link = Link::Connecting(world.now);
                let wire = world.wire(self.client);
                wire.up.clear();
                wire.down.clear();
                wire.up.push_back(Up::Hello);
            }
            Link::Up if self.lease.next_renewal() <= world.now => {
                let number = self.lease.handle_sent(world.now);
                world.wire(self.client).up.push_back(Up::Renew(number));
            }
            _ => {}
        }
    }

    /// The connection breaks. What is on its way to the authority may still arrive, `late`; so may
    /// the rest of answers that have begun to arrive here.
    pub fn cut(&mut self, world: &mut World, late: bool) {
        let wire = world.wire(self.client);
        wire.down.clear();
        wire.replies.clear();
        if !late {
            wire.open = false;
            wire.up.clear();
            wire.requests.clear();
        }
        self.link = Link::Down;
        (self.opening, self.asking) = (false, false);
        let landings = self.landings.clone();
        if let Some(core) = &mut self.core {
            core.fail_pulls();
        }
        for landing in landings {
            self.land(&landing, 0..CELLS, false);
        }
        self.landings.clear();
        self.comparisons.clear();
    }

    /// Asks for what is needed, when there is a connection.
    pub fn pull(&mut self, world: &mut World) {
        if self.link != Link::Up {
            return;
        }
        let wire = world.wire(self.client);
        if !self.opening && self.core.is_none() {
            self.opening = true;
            wire.requests.push(Request::Attr);
        }
        let Some(core) = &mut self.core else {
            return;
        };
        while let Some(Pull { id, range, .. }) = core.poll_pull() {
            let reach = core.reach();
            assert!(!range.is_empty() && range.len() <= self.config.pull_bytes_max);
            assert!(range.start % PAGE_BYTES == 0 && range.end <= reach);
            assert!(range.end % PAGE_BYTES == 0 || range.end >= core.base_size());
            wire.requests.push(Request::Pull(id, cells(range)));
        }
        self.begin_comparison(world);
    }

    /// The beginning comes along with something else.
    pub fn offer(&mut self, world: &mut World, end: u64) {
        let Some(core) = self.core.as_mut().filter(|_| self.link == Link::Up) else {
            return;
        };
        let end = super::world::bytes(&(0..end)).end;
        if let Some(Pull { id, range, .. }) = core.handle_offer(end) {
            assert!(range.start == 0 && !range.is_empty() && range.end <= core.base_size());
            let wire = world.wire(self.client);
            wire.requests.push(Request::Pull(id, cells(range)));
        }
    }

    pub fn push(&mut self, world: &mut World, bytes_max: u64, extents_max: usize) {
        let held = self.resize.is_some() || self.link != Link::Up || self.sent.len() > 3;
        let Some(core) = self.core.as_mut().filter(|_| !held) else {
            return;
        };
        let size = core.size();
        let Some(Push { id, extents }) = core.poll_push(bytes_max, extents_max) else {
            return;
        };
        assert!(extents.len() <= extents_max);
        assert!(extents.windows(2).all(|two| two[0].end < two[1].start));
        let mut pushed = BTreeMap::new();
        let mut sent = Vec::new();
        for range in extents.iter().copied() {
            assert!(!range.is_empty() && range.start % PAGE_BYTES == 0 && range.end <= size);
            assert!(range.end % PAGE_BYTES == 0 || range.end == size);
            let range = cells(range);
            for page in pages(&range) {
                let only_dirty = self.stored.dirty.remove(&page);
                assert!(only_dirty, "page {page} is pushed and not dirty");
                pushed.insert(page, self.stored.last[&page]);
            }
            let content = self.copy[range.start as usize..range.end as usize].to_vec();
            sent.push((range, content));
        }
        self.stored.pushing.insert(id, pushed);
        self.numbers += 1;
        let request = Request::Push(self.numbers, sent.clone());
        self.sent.insert(self.numbers, Sent { id, extents: sent });
        world.wire(self.client).requests.push(request);
    }

    /// Asks for the size, as stat does.
    pub fn ask(&mut self, world: &mut World) {
        if self.link == Link::Up && self.core.is_some() && !self.asking {
            self.asking = true;
            world.wire(self.client).requests.push(Request::Attr);
        }
    }

    pub fn can_resize(&self) -> bool {
        self.core.is_some() && self.sent.is_empty() && self.resize.is_none()
    }

    /// Truncates or extends; no push is under way.
    pub fn resize(&mut self, world: &mut World, size: u64) {
        assert!(self.sent.is_empty() && self.resize.is_none());
        self.numbers += 1;
        let number = self.numbers;
        self.resize = Some(Resize { number, size });
        let request = Request::Resize(number, size);
        world.wire(self.client).requests.push(request);
    }

    pub fn store(&mut self, world: &mut World, range: &Cells) {
        let core = self.core.as_mut().unwrap();
        core.handle_stored(world.now, bytes(range));
        let version = world.new_version();
        for cell in range.clone() {
            self.copy[cell as usize] = version;
            self.mine.insert(cell, version);
        }
        for page in pages(range) {
            self.stored.dirty.insert(page);
            self.stored.last.insert(page, version);
        }
        assert!(self.size() >= range.end);
    }

    pub fn flush(&mut self) {
        let unpushed = self.stored.unpushed();
        let Some(flush) = self.core.as_mut().and_then(Replica::handle_flush) else {
            assert!(unpushed.is_empty());
            return;
        };
        let last = &self.stored.last;
        let waits_for = unpushed.iter().map(|page| (*page, last[page])).collect();
        self.stored.flushes.insert(flush, waits_for);
    }

    /// Keeps nothing of the region any more, and says so.
    pub fn give_up(&mut self, world: &mut World) {
        let idle = self.core.as_ref().is_some_and(Replica::is_idle);
        if !idle || !self.is_idle() || self.link != Link::Up {
            return;
        }
        self.core = None;
        if !self.keeps {
            self.copy.fill(0);
        }
        self.mine.clear();
        let forget = Up::Forget(self.seen);
        world.wire(self.client).up.push_back(forget);
    }

    pub fn handle_down(&mut self, world: &mut World, event: Down, random: &mut super::Random) {
        let welcome = matches!(
            (&event, self.link),
            (Down::Welcome(..), Link::Connecting(_))
        );
        if !welcome && self.link != Link::Up {
            return; // from the connection before
        }
        match event {
            Down::Closed => self.cut(world, true),
            Down::Renewed(number) => self.lease.handle_renewed(number),
            Down::Invalidate(change, at, range, order) => {
                self.invalidate(at, &range, order);
                world.wire(self.client).up.push_back(Up::Taken(change));
            }
            Down::Welcome(resumed, at, size) => {
                let Link::Connecting(sent) = self.link else {
                    panic!("nobody said hello");
                };
                self.link = Link::Up;
                self.lease = Lease::new(sent, LEASE);
                if !resumed {
                    self.reattach(world, at, size, random);
                }
                for (&number, sent) in &self.sent {
                    let request = Request::Push(number, sent.extents.clone());
                    world.wire(self.client).requests.push(request);
                }
                if let Some(Resize { number, size }) = self.resize {
                    let request = Request::Resize(number, size);
                    world.wire(self.client).requests.push(request);
                }
            }
        }
    }

    fn invalidate(&mut self, at: Tick, range: &Cells, order: u64) {
        self.changed_at = self.changed_at.max(at);
        let whole = ByteRange::new(range.start * CELL_BYTES, u64::MAX);
        let to_the_end = range.end == CELLS;
        let range_bytes = if to_the_end { whole } else { bytes(range) };
        let mut dropped = Vec::new();
        if let Some(core) = &mut self.core {
            core.handle_invalidate(at, range_bytes, &mut dropped);
        }
        self.knows(range.clone(), order);
        if !(to_the_end && self.keeps) {
            self.dropped(&dropped, self.base());
        }
        self.taken_away(&dropped);
    }

    fn knows(&mut self, range: Cells, order: u64) {
        for cell in range {
            let known = &mut self.known[cell as usize];
            *known = order.max(*known);
        }
    }

    fn reattach(&mut self, world: &mut World, at: Tick, size: u64, random: &mut super::Random) {
        (self.seen, self.changed_at) = (at, Tick(0));
        self.sent.clear();
        for (_, pages) in std::mem::take(&mut self.stored.pushing) {
            self.stored.dirty.extend(pages.into_keys());
        }
        let base_before = self.base();
        let same = self.is_current(world) && random.percent(70);
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        if let Some(core) = &mut self.core {
            let size = size * CELL_BYTES;
            core.handle_reattached(at, Epoch(1), size, same, &mut dropped, &mut zeroed);
        }
        self.taken_away(&dropped);
        if !self.keeps {
            self.dropped(&dropped, base_before);
        }
        self.zeroed(&zeroed, self.size());
        self.known.fill(world.order);
    }

    /// Whether all that is clean here is what the authority has.
    fn is_current(&self, world: &World) -> bool {
        let Some(core) = &self.core else {
            return true;
        };
        if core.base_size() != world.size * CELL_BYTES {
            return false;
        }
        let unpushed = self.stored.unpushed();
        let runs = core.present_runs(PageRange::new(0, PAGES));
        let clean = runs.iter().flat_map(|run| run.start..run.end);
        clean.filter(|page| !unpushed.contains(page)).all(|page| {
            let mut cells = page * 2..(page * 2 + 2).min(self.size());
            cells.all(|cell| self.copy[cell as usize] == world.content[cell as usize])
        })
    }

    pub fn handle_reply(&mut self, world: &mut World, reply: Reply, random: &mut super::Random) {
        if self.link != Link::Up {
            return; // from the connection before
        }
        match reply {
            Reply::Attr(at, size) if self.core.is_none() => {
                (self.opening, self.asking) = (false, false);
                let size = size * CELL_BYTES;
                let mut core = Replica::new(size, at, Epoch(0), self.config);
                // What was given up is still in the copy, but for what is past the end.
                self.copy[(size / CELL_BYTES) as usize..].fill(0);
                core.handle_old(&[PageRange::new(0, PAGES)].into_iter().collect());
                self.core = Some(core);
                self.seen = self.seen.max(at);
                if at < self.changed_at {
                    // Told before there was anything to tell it to.
                    self.invalidate(self.changed_at, &(0..CELLS), 0);
                }
            }
            Reply::Attr(at, size) => {
                self.asking = false;
                self.told_size(at, size);
            }
            Reply::Pulled(landing) => {
                self.told_size(landing.at, landing.size);
                self.landings.push(landing);
            }
            Reply::PullFailed(pull, refused) => {
                let failure = if refused {
                    Failure::Refused(5)
                } else {
                    Failure::Link
                };
                if let Some(core) = &mut self.core {
                    core.handle_pull_failed(pull, failure);
                }
            }
            Reply::CompareFailed(comparison, outcome) => self.compared(comparison, outcome),
            Reply::Hashed(comparison, at, size, extents) => {
                self.told_size(at, size);
                self.compare(world, comparison, at, extents, random);
            }
            Reply::Changed(number, outcome) => {
                if self.resize.as_ref().is_some_and(|it| it.number == number) {
                    let size = self.resize.take().unwrap().size;
                    self.resized(world, size, outcome.unwrap());
                } else if let Some(sent) = self.sent.remove(&number) {
                    match outcome {
                        Ok(outcome) => self.pushed(world, &sent, outcome, random),
                        Err(errno) => self.push_failed(sent.id, Failure::Refused(errno)),
                    }
                }
            }
            Reply::Lost(number) => {
                if let Some(sent) = self.sent.remove(&number) {
                    self.push_failed(sent.id, Failure::Link);
                }
            }
        }
    }

    pub fn told_size(&mut self, at: Tick, size: u64) {
        self.seen = self.seen.max(at);
        let mut zeroed = Vec::new();
        if let Some(core) = &mut self.core {
            core.handle_size(at, size * CELL_BYTES, &mut zeroed);
        }
        self.zeroed(&zeroed, self.size());
    }

    fn pushed(
        &mut self,
        world: &mut World,
        sent: &Sent,
        (at, size, order): (Tick, u64, u64),
        random: &mut super::Random,
    ) {
        for (range, _) in &sent.extents {
            for cell in range.clone() {
                let floor = &mut world.floor[cell as usize];
                *floor = order.max(*floor);
            }
            self.knows(range.clone(), order);
        }
        let size_first = random.percent(50);
        if size_first {
            self.told_size(at, size);
        }
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        if let Some(core) = &mut self.core {
            core.handle_pushed(sent.id, at, &mut dropped, &mut zeroed);
        }
        for (page, store) in self.stored.pushing.remove(&sent.id).unwrap_or_default() {
            self.stored.taken.insert(page, store);
        }
        self.dropped(&dropped, self.base());
        self.zeroed(&zeroed, self.size());
        if !size_first {
            self.told_size(at, size);
        }
    }

    fn push_failed(&mut self, push: PushId, failure: Failure) {
        self.core
            .as_mut()
            .unwrap()
            .handle_push_failed(push, failure);
        if let Some(pages) = self.stored.pushing.remove(&push) {
            self.stored.dirty.extend(pages.into_keys());
        }
    }

    fn resized(&mut self, world: &mut World, size: u64, (at, size_then, order): (Tick, u64, u64)) {
        assert_eq!(size, size_then);
        for cell in size..CELLS {
            let floor = &mut world.floor[cell as usize];
            *floor = order.max(*floor);
        }
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        let core = self.core.as_mut().unwrap();
        core.handle_resized(at, size * CELL_BYTES, &mut dropped, &mut zeroed);
        self.stored.forget(size.min(self.size()).div_ceil(2));
        self.dropped(&dropped, size);
        self.mine.retain(|&cell, _| cell < size);
        self.zeroed(&zeroed, size.min(self.size()));
        self.knows(size..CELLS, order);
        self.seen = self.seen.max(at);
    }

    pub fn forget(&mut self, range: &Cells) {
        let mut dropped = Vec::new();
        if let Some(core) = &mut self.core {
            core.handle_forget(bytes(range), &mut dropped);
        }
        self.dropped(&dropped, self.base());
    }

    /// Below `end` the copy of a dropped page may hold anything from now on.
    fn dropped(&mut self, dropped: &[PageRange], end: u64) {
        let unpushed = self.stored.unpushed();
        for page in dropped.iter().flat_map(|run| run.start..run.end) {
            assert!(!unpushed.contains(&page), "page {page} is not clean");
            for cell in page * 2..(page * 2 + 2).min(end) {
                self.copy[cell as usize] = JUNK;
            }
        }
        self.taken_away(dropped);
    }

    /// Nothing of these pages is here any more, but for what the copy still holds.
    fn taken_away(&mut self, dropped: &[PageRange]) {
        for page in dropped.iter().flat_map(|run| run.start..run.end) {
            self.mine.retain(|cell, _| cell / 2 != page);
        }
    }

    /// The region ends at `end` now, or has ended there.
    fn zeroed(&mut self, zeroed: &[ByteRange], end: u64) {
        let unpushed = self.stored.unpushed();
        for cell in zeroed.iter().flat_map(|&range| cells(range)) {
            let stored = unpushed.contains(&(cell / 2)) && cell < end;
            assert!(!stored, "cell {cell} is not past the end");
            self.copy[cell as usize] = 0;
            self.mine.remove(&cell);
        }
    }

    pub fn request_lost(&mut self, request: &Request) -> Option<Reply> {
        match request {
            Request::Pull(pull, _) => Some(Reply::PullFailed(*pull, false)),
            Request::Compare(id, _) => Some(Reply::CompareFailed(*id, Compared::Link)),
            Request::Push(number, _) => Some(Reply::Lost(*number)),
            Request::Attr | Request::Resize(..) => None,
        }
    }

    pub fn config_of(background: bool, pages_max: u64) -> ReplicaConfig {
        world::config(background, pages_max)
    }
}
