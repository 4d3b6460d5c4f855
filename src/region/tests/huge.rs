//! A region costs memory by what was touched, not by its size.

use super::Random;
use super::world::config;
use crate::region::{Epoch, Replica, Residency, Tick};
use crate::units::{ByteRange, PAGE_BYTES};
use std::time::Instant;

const TEBIBYTE: u64 = 1 << 40;
const TOUCHES: usize = 1000;

#[test]
fn a_tebibyte_costs_what_was_touched() {
    let now = Instant::now();
    let mut replica = Replica::new(TEBIBYTE, Tick(1), Epoch(0), config(true, 256));
    let mut random = Random(1);
    assert_eq!(replica.sets().0.run_count(), 0);
    for _ in 0..TOUCHES {
        let page = random.below(TEBIBYTE / PAGE_BYTES);
        let range = ByteRange::new(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        if random.percent(50) {
            replica.handle_stored(now, range);
            continue;
        }
        replica.set_background(false);
        assert!(matches!(
            replica.handle_fault(now, range),
            Residency::Wait(_)
        ));
        let pull = replica.poll_pull().unwrap();
        assert!(replica.poll_pull().is_none());
        replica.handle_landing(pull.id, Tick(1), range, &mut Vec::new());
        replica.handle_pulled(pull.id);
    }
    let (present, dirty, _) = replica.sets();
    assert!(present.run_count() <= TOUCHES && dirty.run_count() <= TOUCHES);
    let woken = std::iter::from_fn(|| replica.poll_woken()).count();
    assert!(woken > TOUCHES / 3);

    // All else is a hole: one answer says so.
    let range = ByteRange::new(0, PAGE_BYTES);
    assert!(matches!(
        replica.handle_fault(now, range),
        Residency::Wait(_)
    ));
    let pull = replica.poll_pull().unwrap();
    let mut wanted = Vec::new();
    let whole = ByteRange::new(0, TEBIBYTE);
    replica.handle_landing(pull.id, Tick(1), whole, &mut wanted);
    replica.handle_pulled(pull.id);
    assert!(wanted.len() <= TOUCHES + 1);
    assert_eq!(replica.sets().0.run_count(), 1);
    assert!(replica.is_present(whole));
    let flush = replica.handle_flush();
    assert!(flush.is_some());
    while let Some(push) = replica.poll_push(u64::MAX, 256) {
        replica.handle_pushed(push.id, Tick(2), &mut Vec::new(), &mut Vec::new());
    }
    assert!(
        replica
            .poll_flushed()
            .is_some_and(|(id, _)| Some(id) == flush)
    );
    assert_eq!(replica.dirty_pages(), 0);
    replica.set_background(true);
    assert!(replica.poll_pull().is_none(), "nothing is absent");
}
