//! Old pages: what is compared, and what a comparison may make present.

use super::*;

/// All pages of a region are old.
fn old_region(pages: u64, config: ReplicaConfig) -> Tested {
    let mut it = region(pages, config);
    it.old(0, pages);
    it
}

impl Tested {
    fn old(&mut self, start: u64, end: u64) {
        let pages = [PageRange::new(start, end)].into_iter().collect();
        self.replica.handle_old(&pages);
    }
    /// The next comparison, of up to 8 pages in 3 runs.
    fn compare(&mut self) -> (ComparisonId, Vec<(u64, u64)>) {
        let comparison = self.replica.poll_comparison(8 * PAGE_BYTES, 3).unwrap();
        let pages = comparison.pages.iter().map(|run| (run.start, run.end));
        (comparison.id, pages.collect())
    }
    fn compares_nothing(&mut self) -> bool {
        self.replica.poll_comparison(u64::MAX, 9).is_none()
    }
    fn confirm(&mut self, id: ComparisonId, at: u64, start: u64, end: u64) -> u64 {
        let range = bytes(start, end);
        self.replica.handle_confirmed(id, Tick(at), range)
    }
    fn compared(&mut self, id: ComparisonId) {
        self.replica.handle_compared(id, Compared::Done);
    }
}

const BACKGROUND: ReplicaConfig = ReplicaConfig {
    background: true,
    ..CONFIG
};

#[test]
fn a_fault_pulls_and_the_rest_is_compared() {
    let mut it = old_region(20, BACKGROUND);
    assert!(it.compares_nothing(), "nobody has touched it");
    let waiter = it.fault(5, 6);
    let (first, pages) = it.compare();
    assert_eq!(pages, [(5, 13)]);
    assert_eq!(it.pulls().len(), 1, "only what is waited for");
    assert_eq!(it.confirm(first, 1, 5, 10), 5);
    assert_eq!(it.woken(), [(waiter, Ok(()))], "whichever comes first");
    let (second, pages) = it.compare();
    assert_eq!(pages, [(13, 20)]);
    assert!(it.compares_nothing() && it.pulls().is_empty());
    it.compared(first);
    let pulls = it.pull_ranges();
    assert_eq!(pulls, [(10, 13, false)], "what is another one");
    it.replica.handle_compared(second, Compared::Refused);
    assert_eq!(it.pull_ranges(), [(13, 17, false)]);
    assert!(it.is_present(5, 10) && !it.is_present(4, 5));
    assert_eq!(
        it.replica.old().runs().collect::<Vec<_>>(),
        [PageRange::new(0, 5)]
    );
}

#[test]
fn one_who_reads_on_waits_for_what_is_compared() {
    let mut it = old_region(1000, CONFIG);
    it.fault(0, 1);
    assert_eq!(it.pull_ranges(), [(0, 1, true)]);
    assert!(it.compares_nothing(), "no background");
    let waiter = it.fault(1, 2);
    let (id, pages) = it.compare();
    assert_eq!(pages, [(1, 9)]);
    assert!(
        it.pulls().is_empty(),
        "neither the page nor any ahead of it"
    );
    assert_eq!(it.confirm(id, 1, 2, 9), 7);
    assert!(it.pulls().is_empty() && it.woken().is_empty());
    it.compared(id);
    assert_eq!(it.pull_ranges(), [(1, 2, true)]);
    let other = it.fault(900, 901);
    assert!(other != waiter && it.compares_nothing(), "far away");
    assert_eq!(it.pull_ranges(), [(900, 901, true)]);
}

/// The promise that matters most: whatever happens between the question and the answer.
#[test]
fn a_late_confirmation_never_revives_what_is_stale() {
    type Meanwhile = fn(&mut Tested);
    let cases: [(&str, Meanwhile, u64); 8] = [
        ("nothing", |_| (), 4),
        (
            "changed by others",
            |it| drop(it.invalidate(7, bytes(1, 2))),
            3,
        ),
        (
            "changed by others, all",
            |it| drop(it.invalidate(7, ByteRange::new(0, u64::MAX))),
            0,
        ),
        ("stored", |it| it.store(bytes(2, 3)), 3),
        (
            "stored, pushed, dropped, and old again",
            |it| {
                it.store(bytes(2, 3));
                let push = it.push().id;
                it.pushed(push, 3);
                assert_eq!(it.invalidate(4, ByteRange::new(0, u64::MAX)).len(), 1);
                assert!(it.replica.old().contains_all(PageRange::new(2, 3)));
            },
            3,
        ),
        (
            "forgotten",
            |it| {
                let mut dropped = Vec::new();
                it.replica.handle_forget(bytes(0, 2), &mut dropped);
                assert_eq!(dropped, [PageRange::new(0, 2)], "it is to be punched");
            },
            2,
        ),
        (
            "cut off and grown again",
            |it| {
                let mut zeroed = Vec::new();
                it.replica
                    .handle_size(Tick(3), PAGE_BYTES + 10, &mut zeroed);
                it.replica.handle_size(Tick(4), 4 * PAGE_BYTES, &mut zeroed);
            },
            1,
        ),
        (
            "a new session",
            |it| {
                let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
                let (at, size) = (Tick(1), 4 * PAGE_BYTES);
                it.replica
                    .handle_reattached(at, Epoch(0), size, true, &mut dropped, &mut zeroed);
            },
            0,
        ),
    ];
    for (what, meanwhile, confirmed) in cases {
        let mut it = old_region(4, CONFIG);
        it.replica.handle_compare(bytes(0, 4));
        let (id, pages) = it.compare();
        assert_eq!(pages, [(0, 4)]);
        meanwhile(&mut it);
        assert_eq!(it.confirm(id, 5, 0, 4), confirmed, "{what}");
        it.compared(id);
        assert_eq!(it.confirm(id, 9, 0, 4), 0, "{what}: it is over");
    }
}

#[test]
fn an_answer_that_is_new_enough_confirms_what_was_changed_before_it() {
    let mut it = old_region(4, CONFIG);
    it.replica.handle_compare(bytes(0, 4));
    let (id, _) = it.compare();
    it.invalidate(7, bytes(0, 4));
    assert_eq!(it.confirm(id, 6, 0, 4), 0);
    assert_eq!(it.confirm(id, 7, 0, 4), 4);
    it.compared(id);
    it.assert_idle();
}

#[test]
fn the_last_page_counts_up_to_the_end_that_came_with_the_answer() {
    let mut it = old_region(4, CONFIG);
    let mut zeroed = Vec::new();
    it.replica
        .handle_size(Tick(2), 3 * PAGE_BYTES + 7, &mut zeroed);
    assert!(
        !it.replica.old().contains_all(PageRange::new(3, 4)),
        "its end is zero now"
    );
    it.old(3, 4);
    it.replica.handle_compare(bytes(0, 4));
    let (id, _) = it.compare();
    let until = |end| ByteRange::new(2 * PAGE_BYTES, end);
    let mut confirm = |end| it.replica.handle_confirmed(id, Tick(2), until(end));
    assert_eq!(confirm(3 * PAGE_BYTES + 6), 1, "the page before");
    assert_eq!(confirm(3 * PAGE_BYTES + 7), 1);
}

#[test]
fn a_link_that_breaks_has_it_compared_again() {
    let mut it = old_region(4, CONFIG);
    it.replica.handle_compare(bytes(0, 4));
    let (id, pages) = it.compare();
    it.replica.handle_compared(id, Compared::Link);
    assert!(it.pulls().is_empty());
    let (again, same) = it.compare();
    assert!(again != id && same == pages);
    it.compared(again);
    assert_eq!(
        it.pull_ranges(),
        [(0, 4, false)],
        "wanted, and not the same"
    );
}

#[test]
fn runs_are_bounded_in_number_and_size() {
    let mut it = region(100, CONFIG);
    for start in [0, 10, 20, 30] {
        it.old(start, start + 2);
    }
    it.old(90, 100);
    it.replica.handle_compare(bytes(0, 100));
    let (_, pages) = it.compare();
    assert_eq!(pages, [(0, 2)], "a run that is wanted at a time");
    let mut it = old_region(100, BACKGROUND);
    it.store(bytes(1, 2));
    it.store(bytes(3, 4));
    it.store(bytes(5, 6));
    it.fault(0, 1);
    assert_eq!(it.compare().1, [(0, 1), (2, 3), (4, 5)]);
    assert_eq!(it.compare().1, [(6, 14)]);
}
