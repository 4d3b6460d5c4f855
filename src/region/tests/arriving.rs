//! What arrives at a replica: bytes of pulls in pieces, and answers to comparisons.

use super::mount::Mount;
use super::world::{Cells, Landing, Request, World, bytes, cells, pages};
use crate::region::{Compared, ComparisonId, PullId, Tick};
use crate::units::{ByteRange, PAGE_BYTES, PageRange};

impl Mount {
    /// Begins the next comparison there is.
    pub fn begin_comparison(&mut self, world: &mut World) {
        let Some(core) = self.core.as_mut().filter(|_| self.comparisons.len() < 3) else {
            return;
        };
        let Some(comparison) = core.poll_comparison(4 * PAGE_BYTES, 2) else {
            return;
        };
        let pages = comparison.pages;
        assert!(pages.len() <= 2 && pages.windows(2).all(|two| two[0].end < two[1].start));
        assert!((1..=4).contains(&pages.iter().map(PageRange::len).sum::<u64>()));
        let (present, ..) = core.sets();
        assert!(pages.iter().all(|&run| !present.intersects(run)));
        self.comparisons.insert(comparison.id, self.copy.clone());
        let extents = pages.iter().map(|run| cells(run.bytes())).collect();
        let request = Request::Compare(comparison.id, extents);
        world.wire(self.client).requests.push(request);
    }

    /// What is as it was when the comparison began is confirmed, perhaps only a part of it, and then all is asked
    /// for again: so it is where large parts are compared first, then small ones.
    pub fn compare(
        &mut self,
        world: &mut World,
        comparison: ComparisonId,
        at: Tick,
        extents: Vec<(Cells, Vec<u64>)>,
        random: &mut super::Random,
    ) {
        let (Some(held), Some(core)) = (self.comparisons.get(&comparison), &mut self.core) else {
            return;
        };
        let again = random.percent(30);
        for (range, content) in &extents {
            for page in pages(range) {
                let cells = page * 2..(page * 2 + 2).min(range.end);
                let there =
                    &content[(cells.start - range.start) as usize..][..cells.clone().count()];
                let same = there == &held[cells.start as usize..cells.end as usize];
                if same && (!again || random.percent(50)) {
                    core.handle_confirmed(comparison, at, bytes(&cells));
                }
            }
        }
        if again {
            let whole = |range: Cells| range.start..range.end.next_multiple_of(2);
            let extents = extents.into_iter().map(|(range, _)| whole(range)).collect();
            let request = Request::Compare(comparison, extents);
            return world.wire(self.client).requests.push(request);
        }
        self.compared(comparison, Compared::Done);
    }

    pub fn compared(&mut self, comparison: ComparisonId, outcome: Compared) {
        self.comparisons.remove(&comparison);
        if let Some(core) = &mut self.core {
            core.handle_compared(comparison, outcome);
        }
    }

    /// Some of an answer arrives, perhaps twice; or the last of it.
    pub fn land_some(&mut self, random: &mut super::Random) {
        if self.landings.is_empty() {
            return;
        }
        let which = random.index(self.landings.len());
        let landing = self.landings[which].clone();
        let zeroes = random.percent(60);
        let from = landing.range.start;
        let until = (from / 2 * 2 + 2 * (1 + random.below(3))).min(landing.range.end);
        self.land(&landing, from..until, zeroes);
        if random.percent(10) {
            self.land(&landing, from..until, zeroes);
        }
        if until < landing.range.end {
            self.landings[which]
                .content
                .drain(..(until - from) as usize);
            self.landings[which].range.start = until;
            return;
        }
        self.landings.swap_remove(which);
        let beyond = until..landing.zero_until;
        if zeroes && !beyond.is_empty() && until.is_multiple_of(2) {
            self.land_zeroes(landing.pull, landing.at, &beyond);
        }
        if let Some(core) = &mut self.core {
            core.handle_pulled(landing.pull);
        }
    }

    pub fn land(&mut self, landing: &Landing, part: Cells, zeroes: bool) {
        let part = part.start.max(landing.range.start)..part.end.min(landing.range.end);
        let skip = landing.range.start;
        let at = |cell: u64| landing.content[(cell - skip) as usize];
        if zeroes && part.clone().all(|cell| at(cell) == 0) {
            return self.land_zeroes(landing.pull, landing.at, &part);
        }
        let Some(core) = &mut self.core else {
            return;
        };
        let mut wanted = Vec::new();
        core.handle_landing(landing.pull, landing.at, bytes(&part), &mut wanted);
        for range in wanted {
            self.write_landing(range, at);
        }
    }

    fn land_zeroes(&mut self, pull: PullId, at: Tick, range: &Cells) {
        let mut wanted = Vec::new();
        if let Some(core) = &mut self.core {
            core.handle_landing(pull, at, bytes(range), &mut wanted);
        }
        for range in wanted {
            self.write_landing(range, |_| 0);
        }
    }

    fn write_landing(&mut self, range: ByteRange, content: impl Fn(u64) -> u64) {
        let unpushed = self.stored.unpushed();
        for cell in cells(range) {
            assert!(!unpushed.contains(&(cell / 2)), "a store was overwritten");
            self.copy[cell as usize] = content(cell);
        }
    }
}
