//! One replica, step by step. Ranges are in pages unless they say otherwise.

use super::*;
use proptest::prelude::*;

mod ahead;
mod compare;

const CONFIG: ReplicaConfig = ReplicaConfig {
    background: false,
    background_bytes_max: 8 * PAGE_BYTES,
    pull_bytes_max: 4 * PAGE_BYTES,
    read_ahead_bytes_max: 8 * PAGE_BYTES,
};

fn bytes(start: u64, end: u64) -> ByteRange {
    PageRange::new(start, end).bytes()
}

/// A replica and what a caller keeps beside it.
struct Tested {
    replica: Replica,
    now: Instant,
}

fn region(pages: u64, config: ReplicaConfig) -> Tested {
    Tested {
        replica: Replica::new(pages * PAGE_BYTES, Tick(1), Epoch(0), config),
        now: Instant::now(),
    }
}

impl Tested {
    fn fault(&mut self, start: u64, end: u64) -> WaiterId {
        match self.replica.handle_fault(self.now, bytes(start, end)) {
            Residency::Wait(waiter) => waiter,
            Residency::Present => panic!("pages {start}..{end} are all here"),
        }
    }
    fn store(&mut self, range: ByteRange) {
        assert!(self.replica.is_storable(range), "{range:?}");
        self.replica.handle_stored(self.now, range);
    }
    /// The pulls to be made now: first page, end, demand.
    fn pulls(&mut self) -> Vec<(PullId, u64, u64, bool)> {
        std::iter::from_fn(|| self.replica.poll_pull())
            .map(|pull| {
                let pages = pull.range.pages_touched();
                (pull.id, pages.start, pages.end, pull.demand)
            })
            .collect()
    }
    fn pull_ranges(&mut self) -> Vec<(u64, u64, bool)> {
        let pulls = self.pulls();
        pulls.into_iter().map(|(_, s, e, d)| (s, e, d)).collect()
    }
    fn land(&mut self, pull: PullId, at: u64, start: u64, end: u64) -> Vec<ByteRange> {
        let mut wanted = Vec::new();
        let range = bytes(start, end);
        self.replica
            .handle_landing(pull, Tick(at), range, &mut wanted);
        wanted
    }
    /// All pulls to be made now are made and answered at `at`.
    fn pull_all(&mut self, at: u64) {
        loop {
            let pulls = self.pulls();
            if pulls.is_empty() {
                return;
            }
            for (id, start, end, _) in pulls {
                self.land(id, at, start, end);
                self.replica.handle_pulled(id);
            }
        }
    }
    /// Those under way are answered.
    fn pull_all_once(&mut self, at: u64) {
        while let Some(pull) = self.replica.pulls.oldest() {
            let pages = self.replica.pulls.pages(pull);
            self.land(pull, at, pages.start, pages.end);
            self.replica.handle_pulled(pull);
        }
    }
    fn push(&mut self) -> Push {
        self.replica.poll_push(u64::MAX, usize::MAX).unwrap()
    }
    fn pushed(&mut self, push: PushId, at: u64) -> (Vec<PageRange>, Vec<ByteRange>) {
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        self.replica
            .handle_pushed(push, Tick(at), &mut dropped, &mut zeroed);
        (dropped, zeroed)
    }
    fn invalidate(&mut self, at: u64, range: ByteRange) -> Vec<PageRange> {
        let mut dropped = Vec::new();
        self.replica
            .handle_invalidate(Tick(at), range, &mut dropped);
        dropped
    }
    fn woken(&mut self) -> Vec<(WaiterId, Result<(), Failure>)> {
        std::iter::from_fn(|| self.replica.poll_woken()).collect()
    }
    fn is_present(&self, start: u64, end: u64) -> bool {
        self.replica.is_present(bytes(start, end))
    }
    fn assert_idle(&self) {
        assert!(self.replica.pulls.is_idle(), "{:?}", self.replica.pulls);
        assert!(self.replica.pushes.is_idle(), "{:?}", self.replica.pushes);
        assert_eq!(self.replica.stale.len(), 0);
    }
}

#[test]
fn a_fault_is_pulled_and_woken_once() {
    let mut it = region(100, CONFIG);
    let waiter = it.fault(10, 13);
    let pulls = it.pulls();
    assert_eq!(pulls.len(), 1);
    let (pull, start, end, demand) = pulls[0];
    assert_eq!((start, end, demand), (10, 13, true));
    assert_eq!(it.land(pull, 1, 10, 12), [bytes(10, 12)]);
    assert!(it.woken().is_empty());
    assert_eq!(it.land(pull, 1, 11, 13), [bytes(12, 13)]);
    assert_eq!(it.woken(), [(waiter, Ok(()))]);
    it.replica.handle_pulled(pull);
    assert!(it.is_present(10, 13) && it.woken().is_empty() && it.pulls().is_empty());
    it.assert_idle();
}

#[test]
fn faults_join_what_is_under_way() {
    let mut it = region(100, CONFIG);
    it.fault(10, 12);
    it.fault(8, 14);
    let pulls = it.pull_ranges();
    assert_eq!(pulls, [(10, 12, true), (8, 10, true), (12, 14, true)]);
    it.fault(9, 11);
    assert!(it.pulls().is_empty());
}

#[test]
fn a_sequential_reader_is_read_ahead_of() {
    let mut it = region(100, CONFIG);
    it.fault(10, 11);
    assert_eq!(it.pull_ranges(), [(10, 11, true)]);
    it.fault(11, 12);
    assert_eq!(it.pull_ranges(), [(11, 13, true)]);
    it.fault(13, 14);
    assert_eq!(it.pull_ranges(), [(13, 16, true)]);
    it.fault(16, 17);
    let pulls = it.pull_ranges();
    assert_eq!(
        pulls,
        [(16, 20, true), (20, 21, true)],
        "at most a pull each"
    );
    it.fault(50, 51);
    assert_eq!(it.pull_ranges(), [(50, 51, true)], "elsewhere: no more");
}

#[test]
fn background_goes_to_the_end_and_is_bounded() {
    let background = ReplicaConfig {
        background: true,
        ..CONFIG
    };
    let mut it = region(30, background);
    assert!(it.pulls().is_empty(), "not before somebody touches it");
    it.fault(10, 11);
    let pulls = it.pulls();
    let ranges: Vec<_> = pulls.iter().map(|&(_, s, e, d)| (s, e, d)).collect();
    assert_eq!(ranges, [(10, 11, true), (11, 15, false), (15, 19, false)]);
    // The oldest comes next anyhow; the other would come too late.
    it.fault(12, 13);
    assert!(it.pulls().is_empty());
    it.fault(16, 17);
    assert_eq!(it.pull_ranges(), [(16, 17, true)]);
    it.land(pulls[1].0, 1, 11, 15);
    it.replica.handle_pulled(pulls[1].0);
    assert_eq!(it.pull_ranges(), [(19, 23, false)]);
    it.replica.set_background(false);
    it.replica
        .handle_pull_failed(pulls[2].0, Failure::Refused(5));
    assert!(it.pulls().is_empty());
    it.replica.handle_want(bytes(28, 99));
    assert_eq!(it.pull_ranges(), [(28, 30, false)]);
}

#[test]
fn the_background_goes_on_by_one_pull_at_a_time_while_a_flush_waits() {
    let background = ReplicaConfig {
        background: true,
        ..CONFIG
    };
    let mut it = region(30, background);
    it.fault(0, 1);
    it.store(bytes(29, 30));
    let flush = it.replica.handle_flush();
    assert_eq!(it.pull_ranges(), [(0, 1, true), (1, 5, false)]);
    let push = it.push();
    it.pushed(push.id, 5);
    assert_eq!(it.replica.poll_flushed(), flush.map(|id| (id, Ok(()))));
    assert_eq!(it.pull_ranges(), [(5, 9, false)]);
}

#[test]
fn a_sequential_reader_waits_for_the_background_and_another_does_not() {
    let background = ReplicaConfig {
        background: true,
        ..CONFIG
    };
    let mut it = region(64, background);
    it.fault(0, 1);
    it.pulls();
    it.fault(1, 2);
    it.pulls();
    // In the third and the second pull of the background.
    let behind = [it.fault(2, 3), it.fault(3, 8)];
    assert!(it.pull_ranges().into_iter().all(|(start, ..)| start >= 8));
    it.fault(40, 41);
    assert_eq!(it.pull_ranges()[0], (40, 41, true));
    for waiter in behind {
        it.replica.handle_waiter_gone(waiter);
    }
}

#[test]
fn a_late_pull_never_overwrites_a_store() {
    let mut it = region(100, CONFIG);
    let waiter = it.fault(10, 13);
    let (pull, ..) = it.pulls()[0];
    it.store(bytes(11, 12));
    assert_eq!(it.land(pull, 1, 10, 13), [bytes(10, 11), bytes(12, 13)]);
    assert_eq!(it.woken(), [(waiter, Ok(()))]);
    // Pushed, then dropped: what was read before the push does not land either.
    let push = it.push().id;
    it.pushed(push, 5);
    it.replica.handle_forget(bytes(0, 100), &mut Vec::new());
    assert!(it.land(pull, 4, 10, 13).is_empty());
    assert_eq!(it.land(pull, 5, 10, 13), [bytes(10, 13)]);
    it.replica.handle_pulled(pull);
    it.assert_idle();
}

#[test]
fn a_page_stored_while_pushed_ends_dirty() {
    let mut it = region(100, CONFIG);
    it.store(bytes(1, 3));
    let first = it.push();
    assert_eq!(first.extents, [bytes(1, 3)]);
    it.store(bytes(2, 4));
    let second = it.push();
    assert_eq!(
        second.extents,
        [bytes(3, 4)],
        "2 is being pushed: one at a time"
    );
    assert_eq!(it.replica.dirty_pages(), 3);
    it.pushed(first.id, 2);
    assert_eq!(it.push().extents, [bytes(2, 3)]);
    it.pushed(second.id, 3);
    assert_eq!(it.replica.dirty_pages(), 1);
}

#[test]
fn a_flush_ends_when_its_content_has_been_taken() {
    let mut it = region(100, CONFIG);
    assert_eq!(it.replica.handle_flush(), None);
    it.store(bytes(1, 2));
    let first = it.push().id;
    it.store(bytes(1, 2));
    let flush = it.replica.handle_flush().unwrap();
    it.pushed(first, 2);
    assert_eq!(it.replica.poll_flushed(), None, "stored after that push");
    let second = it.push().id;
    it.store(bytes(1, 2));
    it.replica.handle_push_failed(second, Failure::Link);
    assert_eq!(it.replica.poll_flushed(), None);
    let third = it.push().id;
    it.store(bytes(1, 2));
    it.pushed(third, 3);
    assert_eq!(it.replica.poll_flushed(), Some((flush, Ok(()))));
    let flush = it.replica.handle_flush().unwrap();
    let fourth = it.push().id;
    it.replica.handle_push_failed(fourth, Failure::Refused(28));
    let refused = Err(Failure::Refused(28));
    assert_eq!(it.replica.poll_flushed(), Some((flush, refused)));
    assert_eq!(it.replica.dirty_pages(), 1, "and is still to be pushed");
}

#[test]
fn an_invalidation_drops_what_is_clean_and_what_is_late() {
    let mut it = region(100, CONFIG);
    it.fault(10, 14);
    let (pull, ..) = it.pulls()[0];
    it.land(pull, 3, 10, 12);
    it.store(bytes(11, 12));
    assert_eq!(
        it.invalidate(4, bytes(0, 13)),
        [PageRange::new(10, 11)],
        "not what is dirty"
    );
    assert_eq!(
        it.land(pull, 3, 10, 14),
        [bytes(13, 14)],
        "12 was read before the change"
    );
    it.replica.handle_pulled(pull);
    assert_eq!(
        it.pull_ranges(),
        [(12, 13, true)],
        "10 has arrived once: woken, not waited for"
    );
    it.pull_all(4);
}

#[test]
fn an_invalidation_during_a_push_is_settled_by_their_order() {
    for (taken_at, stays) in [(6, true), (4, false)] {
        let mut it = region(100, CONFIG);
        it.store(bytes(1, 4));
        let push = it.push().id;
        it.store(bytes(3, 4));
        assert!(it.invalidate(5, bytes(2, u64::MAX / PAGE_BYTES)).is_empty());
        let (dropped, zeroed) = it.pushed(push, taken_at);
        assert_eq!(dropped.is_empty(), stays);
        assert!(zeroed.is_empty() && it.is_present(1, 2) && it.is_present(3, 4));
        assert_eq!(it.is_present(2, 3), stays);
    }
}

#[test]
fn partial_stores_wait_for_their_edges() {
    let mut it = region(100, CONFIG);
    let range = ByteRange::new(PAGE_BYTES + 1, 4 * PAGE_BYTES + 1);
    assert!(!it.replica.is_storable(range));
    let waiter = it.replica.handle_store_fault(it.now, range);
    assert_eq!(it.pull_ranges(), [(1, 2, true), (4, 5, true)]);
    it.replica.handle_pull_failed(PullId(1), Failure::Link);
    assert_eq!(it.pulls()[0].1, 1, "asked for again");
    it.land(PullId(2), 1, 4, 5);
    it.replica
        .handle_pull_failed(PullId(3), Failure::Refused(5));
    let woken = it.woken();
    assert_eq!(
        (Residency::Wait(woken[0].0), woken[0].1),
        (waiter, Err(Failure::Refused(5)))
    );
    assert!(it.replica.is_storable(bytes(1, 4)), "whole pages only");
    assert!(
        it.replica.is_storable(bytes(100, 101)),
        "past the end all is zero"
    );
}

#[test]
fn a_refused_read_ahead_fails_nobody() {
    let mut it = region(100, CONFIG);
    it.fault(10, 11);
    it.pull_all(1);
    it.woken();
    let waiter = it.fault(11, 12);
    let (pull, start, end, _) = it.pulls()[0];
    assert_eq!((start, end), (11, 13));
    it.replica.handle_pull_failed(pull, Failure::Refused(5));
    assert!(it.woken().is_empty());
    let (pull, start, end, _) = it.pulls()[0];
    assert_eq!((start, end), (11, 12));
    it.replica.handle_pull_failed(pull, Failure::Refused(5));
    assert_eq!(it.woken(), [(waiter, Err(Failure::Refused(5)))]);
    it.replica.handle_pulled(pull);
    it.assert_idle();
}

#[test]
fn stores_move_the_end_until_they_are_pushed() {
    let mut it = region(1, CONFIG);
    it.store(ByteRange::new(3 * PAGE_BYTES, 3 * PAGE_BYTES + 7));
    assert_eq!(it.replica.size(), 3 * PAGE_BYTES + 7);
    assert!(it.is_present(1, 4) && !it.is_present(0, 4));
    let push = it.push();
    assert_eq!(
        push.extents,
        [ByteRange::new(3 * PAGE_BYTES, 3 * PAGE_BYTES + 7)]
    );
    it.pushed(push.id, 2);
    assert_eq!(it.replica.size(), 3 * PAGE_BYTES + 7);
    assert!(
        !it.is_present(1, 2) && it.is_present(3, 4),
        "somebody may have written there"
    );
    let mut zeroed = Vec::new();
    it.replica.handle_size(Tick(1), 5, &mut zeroed);
    assert_eq!(it.replica.size(), 3 * PAGE_BYTES + 7, "an older answer");
    it.replica.handle_size(Tick(3), 5, &mut zeroed);
    assert_eq!(it.replica.size(), 5);
    assert_eq!(zeroed, [ByteRange::new(5, 3 * PAGE_BYTES + 7)]);
    assert_eq!(it.replica.present_pages(), 0);
}

#[test]
fn a_remote_truncation_leaves_what_is_dirty() {
    let mut it = region(10, CONFIG);
    it.store(bytes(2, 3));
    it.store(bytes(5, 6));
    let mut zeroed = Vec::new();
    it.replica.handle_size(Tick(2), 7, &mut zeroed);
    assert_eq!(it.replica.size(), 6 * PAGE_BYTES);
    let rest_of_first = ByteRange::new(7, 2 * PAGE_BYTES);
    assert_eq!(zeroed, [rest_of_first, bytes(3, 5), bytes(6, 10)]);
    let push = it.push();
    // Truncated again, after the push was taken: gone when the answer comes.
    zeroed.clear();
    it.replica.handle_size(Tick(9), 7, &mut zeroed);
    let (dropped, zeroed) = it.pushed(push.id, 8);
    assert_eq!(it.replica.size(), 7);
    assert!(dropped.is_empty());
    assert_eq!(zeroed, [bytes(2, 3), bytes(5, 6)]);
    it.assert_idle();
}

#[test]
fn our_own_truncation_forgets_what_is_dirty() {
    let mut it = region(10, CONFIG);
    it.store(bytes(2, 3));
    it.store(bytes(12, 13));
    let flush = it.replica.handle_flush().unwrap();
    let waiter = it.fault(4, 5);
    let mut zeroed = Vec::new();
    let mut dropped = Vec::new();
    it.replica
        .handle_resized(Tick(2), 100, &mut dropped, &mut zeroed);
    assert_eq!(zeroed, [ByteRange::new(100, 13 * PAGE_BYTES)]);
    assert_eq!(it.replica.size(), 100);
    assert_eq!(it.replica.poll_flushed(), Some((flush, Ok(()))));
    assert_eq!(it.woken(), [(waiter, Ok(()))]);
    it.replica
        .handle_resized(Tick(3), 5000, &mut dropped, &mut zeroed);
    assert!(dropped.is_empty());
    assert!(!it.is_present(1, 2));
    assert_eq!(it.replica.present_pages(), 0);
    it.assert_idle();
}

#[test]
fn a_new_session_drops_what_is_clean_unless_nothing_changed() {
    for same in [true, false] {
        let mut it = region(10, CONFIG);
        it.fault(0, 2);
        it.pull_all(7);
        it.woken();
        it.store(bytes(1, 2));
        it.store(bytes(4, 5));
        let push = it.push();
        let waiter = it.fault(3, 4);
        let (pull, ..) = it.pulls()[0];
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        let size = 10 * PAGE_BYTES;
        it.replica
            .handle_reattached(Tick(1), Epoch(1), size, same, &mut dropped, &mut zeroed);
        assert_eq!(it.replica.epoch(), Epoch(1));
        assert_eq!(dropped.is_empty(), same);
        assert_eq!((it.is_present(0, 1), it.is_present(1, 2)), (same, true));
        assert!(zeroed.is_empty());
        assert!(it.land(pull, 7, 3, 4).is_empty(), "from the old connection");
        it.pushed(push.id, 7);
        assert_eq!(it.replica.dirty_pages(), 2);
        assert_eq!(it.push().extents, [bytes(1, 2), bytes(4, 5)]);
        it.pull_all(1);
        assert_eq!(it.woken(), [(waiter, Ok(()))]);
    }
}

#[test]
fn what_the_authority_has_lost_reaches_as_far_as_it_did() {
    // It had taken all of this, and after its restart the region ends in the midst of the page, before it, or not.
    let size = 3 * PAGE_BYTES + 3000;
    for size_now in [
        0,
        3 * PAGE_BYTES,
        3 * PAGE_BYTES + 1000,
        size,
        size + 10_000,
    ] {
        let mut it = region(1, CONFIG);
        it.store(ByteRange::new(2 * PAGE_BYTES, size));
        let push = it.push();
        it.pushed(push.id, 2);
        let mut zeroed = Vec::new();
        it.replica.handle_size(Tick(2), size, &mut zeroed);
        assert_eq!(it.replica.dirty_pages(), 0);
        it.replica.handle_lost(it.now, PageRange::new(2, 4));
        assert_eq!(it.replica.size(), size);
        let mut dropped = Vec::new();
        let (now, epoch) = (Tick(1), Epoch(0));
        it.replica
            .handle_reattached(now, epoch, size_now, false, &mut dropped, &mut zeroed);
        assert_eq!(it.replica.size(), size.max(size_now));
        let stored = ByteRange::new(2 * PAGE_BYTES, size);
        assert!(
            zeroed
                .iter()
                .all(|zeroes| zeroes.intersect(stored).is_empty()),
            "{zeroed:?}"
        );
        let end = (size.max(size_now)).min(4 * PAGE_BYTES);
        let push = it.push();
        assert_eq!(push.extents, [ByteRange::new(2 * PAGE_BYTES, end)]);
        it.pushed(push.id, 3);
        it.replica
            .handle_size(Tick(3), size.max(size_now), &mut zeroed);
        assert_eq!(it.replica.size(), size.max(size_now));
        it.assert_idle();
    }
}

#[test]
fn zeroes_may_reach_far() {
    let mut it = region(1 << 28, CONFIG);
    it.fault(10, 11);
    let (pull, ..) = it.pulls()[0];
    it.store(bytes(1000, 1001));
    let mut wanted = Vec::new();
    it.replica
        .handle_landing(pull, Tick(1), bytes(10, 1 << 28), &mut wanted);
    assert_eq!(wanted, [bytes(10, 1000), bytes(1001, 1 << 28)]);
    it.replica.handle_pulled(pull);
    assert_eq!(it.replica.present.run_count(), 1);
    assert!(it.is_present(10, 1 << 28));
}

#[test]
fn who_has_gone_is_not_woken() {
    let mut it = region(10, CONFIG);
    let waiter = it.fault(1, 2);
    it.replica.handle_waiter_gone(waiter);
    assert!(it.pulls().is_empty());
    let waiter = it.fault(1, 2);
    it.pull_all(1);
    it.replica.handle_waiter_gone(waiter);
    assert!(it.woken().is_empty());
    it.assert_idle();
}

/// A number at the edge of something.
fn edge() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        PAGE_BYTES - 1,
        PAGE_BYTES,
        PAGE_BYTES + 1,
        1 << 40,
        REGION_BYTES_MAX - 1,
        REGION_BYTES_MAX,
        REGION_BYTES_MAX + 1,
        u64::MAX - PAGE_BYTES,
        u64::MAX,
    ];
    prop::sample::select(edges.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever numbers come from a program or a peer: no panic, no overflow, no loop.
    #[test]
    fn any_numbers_are_survived(
        size in edge(),
        calls in prop::collection::vec((0..12u8, edge(), edge(), edge()), 1..40),
    ) {
        let mut replica = Replica::new(size, Tick(1), Epoch(0), CONFIG);
        let (now, mut pull, mut push) = (Instant::now(), PullId(1), PushId(1));
        let (mut dropped, mut zeroed, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (call, start, end, at) in calls {
            let (range, at) = (ByteRange::new(start, end), Tick(at));
            match call {
                0 => drop(replica.handle_fault(now, range)),
                1 => drop(replica.handle_store_fault(now, range)),
                2 if replica.is_storable(range) => replica.handle_stored(now, range),
                3 => replica.handle_want(range),
                4 | 5 => replica.handle_landing(pull, at, range, &mut wanted),
                6 => replica.handle_pulled(pull),
                7 => replica.handle_invalidate(at, range, &mut dropped),
                8 => replica.handle_size(at, start, &mut zeroed),
                9 => replica.handle_resized(at, start, &mut dropped, &mut zeroed),
                10 => replica.handle_pushed(push, at, &mut dropped, &mut zeroed),
                _ => replica.handle_forget(range, &mut dropped),
            }
            pull = replica.poll_pull().map_or(pull, |pull| pull.id);
            push = replica.poll_push(end, start as usize).map_or(push, |push| push.id);
            prop_assert!(replica.size() <= REGION_BYTES_MAX);
            prop_assert!(replica.reach() <= REGION_BYTES_MAX);
            prop_assert!(replica.dirty_pages() <= pages_for(REGION_BYTES_MAX));
            replica.is_present(range);
        }
        let told = zeroed.iter().chain(&wanted).all(|range| range.end <= REGION_BYTES_MAX);
        prop_assert!(told);
    }
}
