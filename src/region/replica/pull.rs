//! What to bring in next, and who waits for it.
//!
//! Five sources, in this order:
//!
//! 1. **Waiters**: each knows which of its pages have not arrived since it began. It asks for those
//!    that no pull for a waiter has under way, nor the oldest of the others: those are next in
//!    line anyhow, what is behind them would come too late. A sequential reader waits for all of the
//!    others: they come in its own order.
//! 2. **Read-ahead**: of the streams of access that faults are seen to form ([`super::predict`]).
//! 3. **Wanted**: what somebody asked for without waiting, and what a pull did not bring that was
//!    made for nobody.
//! 4. **Learned**: what an earlier use has touched, in that order ([`super::learned`]), from the first fault on.
//!    Many small ones are under way at once.
//! 5. **Background**: from the end of the last fault to the end of the region. It waits for an order that has
//!    been asked for.
//!
//! Nothing is queued twice: the sources say what is missing, the pulls under way say what has been
//! asked for. So a pull that failed, or came too late, is made again by being no longer under way.
//!
//! Old pages ([`super::compare`]) are compared instead, except for waiters.

use super::compare::{AHEAD_PAGES, Compared, Old};
use super::learned::Learned;
use super::predict::Streams;
use super::{Failure, Pull, PullId, ReplicaConfig, WaiterId};
use crate::region::{Order, PageSet};
use crate::units::{PAGE_BYTES, PageRange, pages_for};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A pull under way.
#[derive(Debug)]
struct Pulling {
    pages: PageRange,
    bytes: u64,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A waiter, or read-ahead for one.
    Demand,
    Wanted,
    Learned,
    Background,
}

/// Learned pulls under way, at most: far fewer than a connection may have requests. Of single pages it is what a line
/// of 400 Mbit/s carries in 40 ms.
const LEARNED_MAX: usize = 512;

#[derive(Debug)]
struct Waiter {
    /// All it asked for.
    pages: PageRange,
    /// What was absent of it and has not arrived since.
    missing: PageSet,
    /// A wider pull was refused: ask for no more than its pages.
    exact: bool,
    /// All that is under way comes in its own order.
    sequential: bool,
    /// What is being compared comes as well.
    near: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pulls {
    config: ReplicaConfig,
    under_way: BTreeMap<PullId, Pulling>,
    pulls_made: u64,
    /// Bytes of those under way that nobody waits for.
    idle_bytes: u64,
    /// How many of those are learned.
    learned_count: usize,
    waiters: BTreeMap<WaiterId, Waiter>,
    waiters_made: u64,
    /// Waiters that may have something to ask for.
    asking: BTreeSet<WaiterId>,
    woken: VecDeque<(WaiterId, Result<(), Failure>)>,
    streams: Streams,
    /// The last fault was that of a reader that goes forward.
    sequential: bool,
    /// There was a fault.
    touched: bool,
    wanted: PageSet,
    /// Where the background goes on.
    background: Option<u64>,
    learned: Option<Learned>,
    /// It has been asked for.
    learning: bool,
    /// What is compared before it is pulled.
    pub old: Old,
}

/// For those who do not wait for comparisons.
static NONE: PageSet = PageSet::new();

impl Pulls {
    pub fn new(config: ReplicaConfig) -> Pulls {
        Pulls {
            config,
            under_way: BTreeMap::new(),
            pulls_made: 0,
            idle_bytes: 0,
            learned_count: 0,
            waiters: BTreeMap::new(),
            waiters_made: 0,
            asking: BTreeSet::new(),
            woken: VecDeque::new(),
            streams: Streams::new(config.read_ahead_bytes_max / PAGE_BYTES),
            sequential: false,
            touched: false,
            wanted: PageSet::new(),
            background: None,
            learned: None,
            learning: false,
            old: Old::default(),
        }
    }

    /// Somebody waits for `missing`, which is part of `pages` and not empty.
    pub fn wait(&mut self, pages: PageRange, missing: PageSet) -> WaiterId {
        self.waiters_made += 1;
        let id = WaiterId(self.waiters_made);
        let waiter = Waiter {
            pages,
            missing,
            exact: false,
            sequential: self.sequential,
            near: self.old.is_near,
        };
        self.waiters.insert(id, waiter);
        self.asking.insert(id);
        id
    }

    /// A reader has come to pages that are not all here: what may it want next?
    pub fn follow(&mut self, pages: PageRange) {
        self.sequential = self.streams.follow(pages);
        self.old.follow(pages);
        self.touched = true;
        self.background = Some(pages.end);
        if let Some(learned) = &mut self.learned {
            learned.follow(pages);
        }
    }

    /// The last reader that met absent pages reads one after the other.
    pub fn is_read_in_order(&self) -> bool {
        self.sequential
    }

    /// The order of an earlier use is asked for.
    pub fn expect_order(&mut self) {
        self.learning = true;
    }

    /// Here it is, perhaps an empty one.
    pub fn learn(&mut self, order: &Order) {
        self.learning = false;
        self.learned = Some(Learned::new(order));
    }

    pub fn waiter_gone(&mut self, id: WaiterId) {
        self.waiters.remove(&id);
        self.asking.remove(&id);
        self.woken.retain(|&(woken, _)| woken != id);
    }

    pub fn want(&mut self, pages: PageRange) {
        self.wanted.insert(pages);
    }

    pub fn do_not_want(&mut self, pages: PageRange) {
        self.wanted.remove(pages);
    }

    pub fn set_background(&mut self, on: bool) {
        self.config.background = on;
    }

    /// These pages are here now, or are not to be had any more.
    pub fn arrived(&mut self, pages: PageRange) {
        self.wanted.remove(pages);
        self.old.leave(pages);
        let (asking, woken) = (&mut self.asking, &mut self.woken);
        self.waiters.retain(|&id, waiter| {
            waiter.missing.remove(pages);
            let waits = !waiter.missing.is_empty();
            if !waits {
                asking.remove(&id);
                woken.push_back((id, Ok(())));
            }
            waits
        });
    }

    pub fn is_under_way(&self, id: PullId) -> bool {
        self.under_way.contains_key(&id)
    }

    /// The oldest pull or comparison under way.
    pub fn oldest(&self) -> Option<PullId> {
        let pull = self.under_way.first_key_value().map(|(&id, _)| id);
        pull.into_iter().chain(self.old.oldest()).min()
    }

    /// What the next pull or comparison will be called.
    pub fn next_id(&self) -> PullId {
        PullId(self.pulls_made + 1)
    }

    pub fn under_way_bytes(&self) -> u64 {
        self.under_way.values().map(|pull| pull.bytes).sum()
    }

    /// All of a pull of a region of `size` bytes has landed; what `present` lacks of it was too old.
    pub fn landed(&mut self, id: PullId, present: &PageSet, size: u64) {
        if let Some(pull) = self.end(id) {
            self.ask_again(&pull, present, size);
        }
    }

    pub fn failed(&mut self, id: PullId, failure: Failure, present: &PageSet, size: u64) {
        let Some(pull) = self.end(id) else {
            return;
        };
        if failure == Failure::Link {
            return self.ask_again(&pull, present, size);
        }
        self.wanted.remove(pull.pages);
        self.streams.clear();
        match pull.source {
            Source::Background => self.background = None,
            Source::Learned => self.learned = None,
            Source::Demand | Source::Wanted => {}
        }
        let (asking, woken) = (&mut self.asking, &mut self.woken);
        self.waiters.retain(|&id, waiter| {
            let hit = waiter.missing.intersects(pull.pages);
            let fails = hit && waiter.pages.contains(pull.pages);
            if fails {
                asking.remove(&id);
                woken.push_back((id, Err(failure)));
            } else if hit {
                waiter.exact = true;
                asking.insert(id);
            }
            !fails
        });
    }

    /// The link broke.
    pub fn all_failed(&mut self, present: &PageSet, size: u64) {
        while let Some(id) = self.oldest() {
            self.failed(id, Failure::Link, present, size);
            self.compared(id, Compared::Link, size);
        }
    }

    /// The next comparison to make: of what is wanted, of what the background would pull, or of what is ahead of
    /// a sequential reader.
    pub fn compare(&mut self, pages_max: u64, runs_max: usize) -> Option<(PullId, Vec<PageRange>)> {
        if self.old.pages.len() == self.old.comparing.len() {
            return None;
        }
        let next = |scope| {
            let pages = self.old.next_in(scope, pages_max, runs_max);
            (!pages.is_empty()).then_some(pages)
        };
        let wanted = self.wanted.runs().find_map(next);
        let pages = wanted.or_else(|| {
            let end = match self.config.background {
                _ if self.old.last.is_empty() => return None,
                true => u64::MAX,
                false if self.old.is_near => self.old.last.end + AHEAD_PAGES,
                false => return None,
            };
            next(PageRange::new(self.old.last.start, end))
        })?;
        let id = self.next_id();
        self.pulls_made += 1;
        self.old.begin(id, &pages);
        Some((id, pages))
    }

    /// A comparison has ended. What was not confirmed is wanted: it would have been pulled but for that.
    pub fn compared(&mut self, id: PullId, outcome: Compared, size: u64) {
        let Some(left) = self.old.end(id) else {
            return;
        };
        for run in left.runs() {
            if outcome != Compared::Link {
                self.old.leave(run);
            }
            let refused = outcome == Compared::Refused && self.config.background;
            if outcome == Compared::Done || refused {
                self.wanted
                    .insert(run.intersect(PageRange::new(0, pages_for(size))));
            }
        }
        // Also of pages that have left it meanwhile.
        self.asking.extend(self.waiters.keys());
    }

    pub fn poll_woken(&mut self) -> Option<(WaiterId, Result<(), Failure>)> {
        self.woken.pop_front()
    }

    /// The next pull of a region of `size` bytes, which may reach up to `end`: only waiters go there. If
    /// `yielding`, one at a time of those that nobody waits for.
    pub fn poll(&mut self, present: &PageSet, size: u64, end: u64, yielding: bool) -> Option<Pull> {
        let region = PageRange::new(0, pages_for(size));
        let (pages, source) = match self.next_demand(present, region) {
            Some(pages) => (pages, Source::Demand),
            None if yielding && self.idle_bytes > 0 => return None,
            None => self.next_idle(present, region)?,
        };
        Some(self.begin(pages, source, end))
    }

    /// A pull that is under way without having been asked for, if it brings anything.
    pub fn offer(&mut self, pages: PageRange, present: &PageSet, size: u64) -> Option<Pull> {
        let absent = absent(&self.under_way, [present, &self.old.pages], pages)(pages)?;
        (absent.start == pages.start).then(|| self.begin(pages, Source::Demand, size))
    }

    fn begin(&mut self, pages: PageRange, source: Source, end: u64) -> Pull {
        let id = self.next_id();
        let range = pages.bytes_below(end);
        let demand = source == Source::Demand;
        self.pulls_made += 1;
        self.idle_bytes += if demand { 0 } else { range.len() };
        self.learned_count += usize::from(source == Source::Learned);
        let bytes = range.len();
        let pull = Pulling {
            pages,
            bytes,
            source,
        };
        self.under_way.insert(id, pull);
        Pull { id, range, demand }
    }

    fn next_demand(&mut self, present: &PageSet, region: PageRange) -> Option<PageRange> {
        let asked = self.next_asked(present, region);
        asked.or_else(|| {
            let pages_max = (self.config.pull_bytes_max / PAGE_BYTES).max(1);
            let absent = absent(&self.under_way, [present, &self.old.pages], region);
            self.streams.next(pages_max, absent)
        })
    }

    /// What a waiter asks for, and perhaps more.
    fn next_asked(&mut self, present: &PageSet, region: PageRange) -> Option<PageRange> {
        if self.asking.is_empty() {
            return None;
        }
        let soon = self.soon();
        while let Some(&id) = self.asking.first() {
            let missing = self.waiters.get(&id).and_then(|waiter| {
                let comes = |id, pull: &Pulling| {
                    waiter.sequential || pull.source == Source::Demand || id <= soon
                };
                let compared = match waiter.near {
                    true => &self.old.comparing,
                    false => &NONE,
                };
                let runs = waiter.missing.runs();
                let mut runs = runs.flat_map(|run| compared.gaps_in(run));
                let run = runs.find_map(|run| not_under_way(&self.under_way, run, comes));
                run.map(|run| (run, waiter.exact))
            });
            match missing {
                Some((run, true)) => return Some(self.clip(run)),
                Some((run, false)) => return Some(self.widen(self.clip(run), present, region)),
                None => self.asking.remove(&id),
            };
        }
        None
    }

    /// The last pull that nobody waits for and that comes about as soon as one made now: what nobody waits
    /// for before it is less than one pull may have.
    fn soon(&self) -> PullId {
        let mut before = 0;
        let mut soon = PullId(0);
        for (&id, pull) in &self.under_way {
            if pull.source != Source::Demand {
                if before >= self.config.pull_bytes_max {
                    break;
                }
                before += pull.bytes;
                soon = id;
            }
        }
        soon
    }

    /// Adds what is to be read ahead right behind `run`.
    fn widen(&mut self, run: PageRange, present: &PageSet, region: PageRange) -> PageRange {
        let end = self.clip(PageRange::new(run.start, u64::MAX)).end;
        let absent = absent(&self.under_way, [present, &self.old.pages], region);
        self.streams.widen(run, end, absent)
    }

    /// The next pull that nobody waits for.
    fn next_idle(&mut self, present: &PageSet, region: PageRange) -> Option<(PageRange, Source)> {
        let bytes_max = self.config.background_bytes_max;
        let each = self.config.pull_bytes_max.min(bytes_max);
        if self.idle_bytes > 0 && self.idle_bytes.saturating_add(each) > bytes_max {
            return None;
        }
        let absent = absent(&self.under_way, [present, &self.old.pages], region);
        if let Some(run) = self.wanted.runs_in(region).find_map(&absent) {
            return Some((clip(run, each), Source::Wanted));
        }
        if !self.config.background || !self.touched || self.learning {
            return None;
        }
        if let Some(learned) = &mut self.learned {
            if self.learned_count >= LEARNED_MAX {
                return None;
            }
            if let Some(run) = learned.next(&absent) {
                return Some((clip(run, each), Source::Learned));
            }
            self.learned = None;
        }
        let run = absent(PageRange::new(self.background?, u64::MAX));
        let run = run.map(|run| clip(run, each));
        self.background = run.map(|run| run.end);
        run.map(|run| (run, Source::Background))
    }

    /// As much of the start of `pages` as one pull may have.
    fn clip(&self, pages: PageRange) -> PageRange {
        clip(pages, self.config.pull_bytes_max)
    }

    fn end(&mut self, id: PullId) -> Option<Pulling> {
        let pull = self.under_way.remove(&id)?;
        if pull.source != Source::Demand {
            self.idle_bytes -= pull.bytes;
        }
        self.learned_count -= usize::from(pull.source == Source::Learned);
        Some(pull)
    }

    /// What a pull did not bring is asked for again by who wanted it.
    fn ask_again(&mut self, pull: &Pulling, present: &PageSet, size: u64) {
        for (&id, waiter) in &self.waiters {
            if waiter.missing.intersects(pull.pages) {
                self.asking.insert(id);
            }
        }
        if self.config.background {
            let pages = pull.pages.intersect(PageRange::new(0, pages_for(size)));
            let gaps = present.gaps_in(pages);
            gaps.for_each(|gap| self.wanted.insert(gap));
        }
    }

    #[cfg(test)]
    pub fn pages(&self, id: PullId) -> PageRange {
        self.under_way[&id].pages
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.oldest().is_none()
            && self.idle_bytes == 0
            && self.waiters.is_empty()
            && self.asking.is_empty()
            && self.woken.is_empty()
            && self.wanted.is_empty()
    }
}

/// The start of `pages`: at most `bytes_max`, at least a page.
fn clip(pages: PageRange, bytes_max: u64) -> PageRange {
    let pages_max = (bytes_max / PAGE_BYTES).max(1);
    PageRange::new(pages.start, pages.end.min(pages.start + pages_max))
}

/// Finds the first part of its argument that is in `region` and neither here nor old, nor under way.
fn absent(
    under_way: &BTreeMap<PullId, Pulling>,
    [here, old]: [&PageSet; 2],
    region: PageRange,
) -> impl Fn(PageRange) -> Option<PageRange> {
    move |pages| {
        let gaps = here.gaps_in(pages.intersect(region));
        let mut gaps = gaps.flat_map(|gap| old.gaps_in(gap));
        gaps.find_map(|gap| not_under_way(under_way, gap, |_, _| true))
    }
}

/// The first part of `pages` that no pull has under way of those that `counts`.
fn not_under_way(
    under_way: &BTreeMap<PullId, Pulling>,
    pages: PageRange,
    counts: impl Fn(PullId, &Pulling) -> bool,
) -> Option<PageRange> {
    let pulls = || under_way.iter().filter(|&(&id, pull)| counts(id, pull));
    let mut start = pages.start;
    let covering = |start| {
        let covers = |pages: PageRange| pages.start <= start && start < pages.end;
        pulls().find(|(_, pull)| covers(pull.pages))
    };
    while let Some((_, pull)) = covering(start) {
        start = pull.pages.end;
    }
    let next = pulls().map(|(_, pull)| pull.pages.start);
    let end = next.filter(|&next| next > start).min();
    let run = PageRange::new(start, pages.end.min(end.unwrap_or(u64::MAX)));
    (!run.is_empty()).then_some(run)
}
