//! Two replicas and an authority, joined by a network that delays, reorders, repeats and breaks, on
//! virtual time, driven by a random schedule and held against what is obvious.
//!
//! ```text
//!   schedule: the next of: read, store, flush, truncate, deliver a message, let time pass, cut, …
//!       │
//!       ├─ Mount 0 ── Replica, Lease, local copy   ┐  requests, replies: any order
//!       │     against: what it stored, what is     ├──────────────────────────── World ── Authority
//!       │     dirty, what it has been told         │  control: in order             against: who wrote
//!       └─ Mount 1 ── the same                     ┘                                what, in one order
//! ```
//!
//! Content is counted in cells of half a page, so that stores cover pages in part and sizes end in the
//! midst of pages; what a cell holds is the number of the store that filled it, 0 for zeroes.
//!
//! `MEMFS_SEED=n` runs one schedule again and tells its steps; `MEMFS_CASES=n` says how many to
//! run, `MEMFS_FIRST=n` from which seed on.

mod arriving;
mod huge;
mod mount;
mod reads;
mod schedule;
mod stored;
mod world;

/// Splitmix64: a schedule is its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end`, without `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }
}

/// Tells how to see a schedule again that did not come to its end.
struct Told {
    seed: u64,
    done: bool,
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.done {
            eprintln!("to see it again: MEMFS_SEED={}", self.seed);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

#[test]
fn replicas_stay_coherent_whatever_happens() {
    if let Some(seed) = number("MEMFS_SEED") {
        return schedule::run(seed, true);
    }
    let first = number("MEMFS_FIRST").unwrap_or(0);
    for seed in first..first + number("MEMFS_CASES").unwrap_or(1500) {
        let mut told = Told { seed, done: false };
        schedule::run(seed, false);
        told.done = true;
    }
}
