//! What is pulled before somebody waits for it: streams of access, and a learned order.

use super::*;

#[test]
fn a_backward_reader_is_read_ahead_of() {
    let mut it = region(100, CONFIG);
    it.fault(50, 51);
    assert_eq!(it.pull_ranges(), [(50, 51, true)]);
    it.fault(49, 50);
    assert_eq!(it.pull_ranges(), [(49, 50, true), (48, 49, true)]);
    it.fault(47, 48);
    assert_eq!(it.pull_ranges(), [(47, 48, true), (45, 47, true)]);
    it.fault(44, 45);
    let pulls = it.pull_ranges();
    assert_eq!(pulls, [(44, 45, true), (40, 44, true)]);
    it.fault(39, 40);
    let pulls = it.pull_ranges();
    let nearest_first = [(39, 40, true), (35, 39, true), (31, 35, true)];
    assert_eq!(pulls, nearest_first);
    it.fault(2, 3);
    it.fault(1, 2);
    it.pulls();
    it.fault(0, 1);
    assert_eq!(
        it.pulls(),
        [],
        "is on its way, and before it there is nothing"
    );
}

#[test]
fn strides_are_read_ahead_of() {
    for step in [10i64, -10] {
        let mut it = region(1000, CONFIG);
        let at = |count: i64| (500 + count * step) as u64;
        let pulls = |it: &mut Tested, count| {
            it.fault(at(count), at(count) + 1);
            let mut starts = Vec::new();
            for (start, end, demand) in it.pull_ranges() {
                assert!(end == start + 1 && demand);
                starts.push((start as i64 - 500) / step);
            }
            starts
        };
        for count in 0..3 {
            assert_eq!(pulls(&mut it, count), [count]);
        }
        assert_eq!(pulls(&mut it, 3), [3, 4]);
        assert_eq!(pulls(&mut it, 5), [5, 6, 7]);
        assert_eq!(pulls(&mut it, 8), [8, 9, 10, 11, 12]);
        it.fault(at(7), at(7) + 1);
        assert_eq!(it.pulls(), [], "overtaken: is on its way");
        assert_eq!(pulls(&mut it, 13).len(), 9);
        assert_eq!(
            pulls(&mut it, 22).len(),
            9,
            "no more than may be read ahead"
        );
        it.fault(at(22) + 3, at(22) + 4);
        assert_eq!(it.pulls().len(), 1, "it is something else");
        assert_eq!(pulls(&mut it, 31), [31]);
    }
}

#[test]
fn several_streams_in_one_region_are_each_read_ahead_of() {
    let mut it = region(100_000, CONFIG);
    for round in 0..6 {
        for reader in 0..4 {
            // Forward, backward, by strides forward and backward.
            let far = [round, 1000 - round, 7 * round, 1000 - 9 * round][reader as usize];
            let start = 20_000 * reader + 1000 + far;
            if it.is_present(start, start + 1) {
                continue;
            }
            it.fault(start, start + 1);
        }
        it.pull_all(1);
    }
    // Of what comes next: four pages here, four there, and two strides of each.
    for (start, end) in [
        (1006, 1007),
        (21_994, 21_995),
        (41_042, 41_043),
        (61_946, 61_947),
    ] {
        assert!(it.is_present(start, end), "{start}..{end}");
    }
}

#[test]
fn random_faults_are_read_ahead_of_by_nothing() {
    const PAGES: u64 = 1 << 28;
    let mut it = region(PAGES, CONFIG);
    let mut random = 88_172_645_463_325_252u64;
    for _ in 0..20_000 {
        // Xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let page = random % PAGES;
        if it.is_present(page, page + 1) {
            continue;
        }
        it.fault(page, page + 1);
        assert_eq!(it.pull_ranges(), [(page, page + 1, true)]);
        it.pull_all_once(1);
    }
}

/// Background pulls on, and this order.
fn learning(pages: u64, runs: &[(u64, u64)]) -> Tested {
    let config = ReplicaConfig {
        background: true,
        ..CONFIG
    };
    let mut it = region(pages, config);
    it.replica.expect_order();
    let runs = runs.iter().map(|&(start, end)| PageRange::new(start, end));
    it.replica.handle_order(&runs.collect());
    it
}

#[test]
fn the_background_goes_along_a_learned_order() {
    let mut it = learning(100, &[(50, 51), (10, 12), (90, 96), (30, 31)]);
    assert!(it.pulls().is_empty(), "not before somebody touches it");
    it.fault(50, 51);
    let pulls = it.pulls();
    let ranges: Vec<_> = pulls.iter().map(|&(_, s, e, d)| (s, e, d)).collect();
    // At most 8 pages under way, unless nothing else is; 4 a pull.
    assert_eq!(ranges, [(50, 51, true), (10, 12, false), (90, 94, false)]);
    for (id, start, end, _) in pulls {
        it.land(id, 1, start, end);
        it.replica.handle_pulled(id);
    }
    assert_eq!(
        it.pull_ranges(),
        [(94, 96, false), (30, 31, false), (51, 55, false)]
    );
}

#[test]
fn the_background_waits_for_an_order_and_faults_do_not() {
    let mut it = learning(100, &[]);
    it.replica.expect_order();
    it.fault(5, 6);
    assert_eq!(it.pull_ranges(), [(5, 6, true)]);
    it.replica.handle_order(&Order::default());
    assert_eq!(it.pull_ranges()[0], (6, 10, false), "there is none");
}

#[test]
fn who_touches_a_learned_place_gets_what_comes_after_it() {
    let steps: Vec<_> = (0..60).map(|i| (999 - 10 * i, 1000 - 10 * i)).collect();
    let mut it = learning(1000, &steps);
    it.fault(999, 1000);
    let first = it.pull_ranges();
    assert_eq!(
        first[..3],
        [(999, 1000, true), (989, 990, false), (979, 980, false)]
    );
    // In the midst of it, while all that may be is under way.
    it.fault(599, 600);
    assert_eq!(it.pull_ranges(), [(599, 600, true)]);
    it.pull_all_once(1);
    assert_eq!(
        it.pull_ranges()[..2],
        [(589, 590, false), (579, 580, false)]
    );
    // To the end, and then what was passed over.
    while it.replica.in_flight_bytes() > 0 {
        it.pull_all_once(1);
        it.pulls();
    }
    let absent = steps
        .iter()
        .filter(|&&(start, end)| !it.is_present(start, end));
    assert_eq!(absent.collect::<Vec<_>>(), [] as [&(u64, u64); 0]);
}

#[test]
fn what_comes_soon_of_a_learned_order_is_waited_for() {
    let steps: Vec<_> = (0..20).map(|i| (10 * i, 10 * i + 1)).collect();
    let mut it = learning(1000, &steps);
    it.fault(0, 1);
    assert_eq!(
        it.pull_ranges().len(),
        1 + 5,
        "while there is room for a whole pull more"
    );
    it.fault(40, 41);
    assert!(it.pulls().is_empty(), "less than a pull before it");
    it.fault(50, 51);
    assert_eq!(it.pull_ranges(), [(50, 51, true)], "a pull is before it");
}

/// A fault somewhere, or several in a row as streams make them.
fn walk() -> impl Strategy<Value = Vec<(u64, u64)>> {
    (0..200u64, -9..9i64, 1..9i64, 1..4u64).prop_map(|(start, step, count, len)| {
        let at = |count| start as i64 + count * step;
        let places = (0..count).map(at).filter(|&at| at >= 0);
        places.map(|at| (at as u64, at as u64 + len)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever streams there are and whatever order was learned: who waits is woken once, what has
    /// arrived by then is what is there, no page lands twice, and nothing is asked for past the end.
    #[test]
    fn what_is_read_is_what_is_there_however_it_is_predicted(
        walks in prop::collection::vec(walk(), 1..12),
        learned in prop::collection::vec((0..250u64, 0..20u64), 0..20),
        background in any::<bool>(),
        patience in 0..12usize,
    ) {
        const PAGES: u64 = 180;
        let mut it = region(PAGES, ReplicaConfig { background, ..CONFIG });
        let mut copy = [None; PAGES as usize];
        let mut waiting: Vec<(WaiterId, u64, u64)> = Vec::new();
        let mut under_way = Vec::new();
        let order = learned.iter().map(|&(start, len)| PageRange::new(start, start + len));
        it.replica.expect_order();
        for (number, (start, end)) in walks.into_iter().flatten().enumerate() {
            if number == patience {
                it.replica.handle_order(&order.clone().collect());
            }
            let fault = it.replica.handle_fault(it.now, bytes(start, end));
            match fault {
                Residency::Wait(waiter) => waiting.push((waiter, start, end.min(PAGES))),
                Residency::Present => (start..end.min(PAGES)).for_each(|page| {
                    assert_eq!(copy[page as usize], Some(page));
                }),
            }
            under_way.extend(it.pulls());
            // Some of them are answered, any first.
            while under_way.len() > patience {
                let (id, start, end, _) = under_way.swap_remove(number % under_way.len());
                prop_assert!(start < end && end <= PAGES);
                for wanted in it.land(id, 1, start, end) {
                    let pages = wanted.pages_touched();
                    for page in pages.start..pages.end {
                        prop_assert_eq!(copy[page as usize].replace(page), None);
                    }
                }
                it.replica.handle_pulled(id);
                under_way.extend(it.pulls());
            }
            for (waiter, outcome) in it.woken() {
                prop_assert_eq!(outcome, Ok(()));
                let known = waiting.iter().position(|&(id, ..)| id == waiter).unwrap();
                let (_, start, end) = waiting.swap_remove(known);
                prop_assert!((start..end).all(|page| copy[page as usize] == Some(page)));
            }
            if under_way.is_empty() {
                prop_assert!(waiting.is_empty());
            }
        }
    }
}
