//! Taking back what the kernel has when the lease is lost.
//!
//! Dropping a page waits for a READ of it that is under way, and that READ for the authority, which cannot be reached:
//! it may take for ever, while other pages are still read from the kernel's cache. So a thread that gets stuck is
//! left behind, and others go on, also with what it may not have come to: nobody knows at which page it is. Those that
//! were left behind end when their READs are answered.
//!
//! A file is one part, however far it may reach. A part at which a thread is stuck is divided ([`divide`]): at the edges
//! of the READs that wait there, as far as they are known, or else into a few parts, down to single pages. What READs
//! wait for comes last: there is nothing to be seen of a page that is still to come.
//!
//! All of it has to be done before the authority counts the lease as run out, and lets others change what is still to
//! be seen here: our side of the lease ends earlier by [`MARGIN`] of its length. It takes one [`STUCK`] to find out where
//! somebody waits, and where that is not known one for each division by [`FEW`].

use super::Shared;
use super::kernel::Job;
use super::nodes::Node;
use crate::units::{ByteRange, PAGE_BYTES};
use crate::wire::Kind;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What part of a lease is for taking back what it was for: 2 s of 10 s, as a busy machine may take its time.
pub(super) const MARGIN: u32 = 5;
/// Threads that end no call for so long are stuck.
const STUCK: Duration = Duration::from_millis(10);
/// Threads that may be stuck: there are no more READs under way than programs make.
const THREADS_MAX: usize = 512;
/// Threads that are started at once, at most: it begins with one, and doubles whenever all are stuck.
const TEAM_MAX: usize = 64;
/// Into so many parts one is divided where nobody knows better.
const FEW: u64 = 16;
/// The first part of a file whose end is not known; each one behind it reaches [`FEW`] times as far.
const FIRST_BYTES: u64 = 1 << 20;

/// All of a file.
const WHOLE: ByteRange = ByteRange {
    start: 0,
    end: u64::MAX,
};

/// What is to be dropped yet.
struct Parts<N> {
    left: VecDeque<(N, ByteRange)>,
    /// Nothing but what READs wait for.
    awaited: VecDeque<(N, ByteRange)>,
}

impl<N: Clone> Parts<N> {
    fn new(files: impl IntoIterator<Item = N>) -> Parts<N> {
        Parts {
            left: files.into_iter().map(|file| (file, WHOLE)).collect(),
            awaited: VecDeque::new(),
        }
    }

    fn len(&self) -> usize {
        self.left.len() + self.awaited.len()
    }

    fn next(&mut self) -> Option<(N, ByteRange)> {
        let next = self.left.pop_front();
        next.or_else(|| self.awaited.pop_front())
    }

    /// A thread is stuck at a part, in which `reads` wait. In how many parts the others go on there.
    fn stuck(&mut self, (file, range): &(N, ByteRange), reads: &[ByteRange]) -> usize {
        let parts = divide(*range, reads);
        for &part in &parts {
            match is_awaited(part, reads) {
                true => self.awaited.push_back((file.clone(), part)),
                false => self.left.push_back((file.clone(), part)),
            }
        }
        parts.len()
    }
}

/// Whether all of it is what a READ waits for.
fn is_awaited(part: ByteRange, reads: &[ByteRange]) -> bool {
    (reads.iter()).any(|read| read.start <= part.start && part.end <= read.end)
}

/// What a part is divided into at which a thread is stuck; nothing where that is of no use: it is a single page, or what a
/// READ waits for. `reads` are whole pages.
fn divide(part: ByteRange, reads: &[ByteRange]) -> Vec<ByteRange> {
    let edges = reads.iter().flat_map(|read| [read.start, read.end]);
    let mut cuts: BTreeSet<u64> = edges.collect();
    if !cuts.iter().any(|&cut| part.start < cut && cut < part.end) {
        if is_awaited(part, reads) || part.len() <= PAGE_BYTES {
            return Vec::new();
        }
        cuts = match part.end {
            u64::MAX => {
                let lengths = std::iter::successors(Some(FIRST_BYTES), |len| len.checked_mul(FEW));
                let cuts = lengths.map_while(|len| part.start.checked_add(len));
                cuts.collect()
            }
            _ => {
                let len = part.len().div_ceil(FEW).next_multiple_of(PAGE_BYTES);
                (1..FEW).map(|n| part.start + n * len).collect()
            }
        };
    }
    let mut parts = Vec::with_capacity(cuts.len() + 1);
    let mut start = part.start;
    let within = |cut: &u64| part.start < *cut && *cut < part.end;
    for end in cuts.into_iter().filter(within).chain([part.end]) {
        parts.push(ByteRange::new(start, end));
        start = end;
    }
    parts
}

struct State {
    parts: Parts<Arc<Node>>,
    /// What the threads that were started last are at.
    current: Vec<(Arc<Node>, ByteRange)>,
    /// How often threads were started.
    round: usize,
    /// Calls that have ended.
    done: u64,
}

/// What is being taken back.
struct Revocation {
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// The kernel must not answer from its cache any more: every access comes here, and waits.
    pub(super) fn revoke_kernel(self: &Arc<Self>) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let is_file = |node: &Arc<Node>| node.kind == Kind::File;
        let (files, others): (Vec<_>, Vec<_>) = self.nodes.all().into_iter().partition(is_file);
        files.iter().for_each(|node| node.begin_drop());
        let revocation = Arc::new(Revocation {
            shared: self.clone(),
            state: Mutex::new(State {
                parts: Parts::new(files),
                current: Vec::new(),
                round: 0,
                done: 0,
            }),
            changed: Condvar::new(),
        });
        let cache = kernel.cache.clone();
        let revoke = revocation.clone();
        let started = std::thread::Builder::new()
            .name("memfs-revoke".into())
            .spawn(move || {
                cache.drop_names();
                others.iter().for_each(|it| cache.drop_attributes(it.no));
                revoke.watch();
            });
        if let Err(error) = started {
            tracing::error!("what the kernel has is taken back one by one: {error}");
            while let Some((node, range)) = revocation.state.lock().parts.next() {
                self.queue(Job::DropPages(node, range));
            }
        }
    }
}

impl Revocation {
    /// Has threads do it until nothing is left but what they are stuck at.
    fn watch(self: &Arc<Self>) {
        let (mut team, mut threads) = (1, 0);
        while threads < THREADS_MAX {
            let mut state = self.state.lock();
            for stuck in std::mem::take(&mut state.current) {
                let region = stuck.0.region.lock().clone();
                let reads = region.map(|region| region.reads_waiting());
                let parts = state.parts.stuck(&stuck, &reads.unwrap_or_default());
                (0..parts).for_each(|_| stuck.0.begin_drop());
            }
            if state.parts.len() == 0 {
                return;
            }
            state.round += 1;
            let round = state.round;
            for _ in 0..team.min(state.parts.len()).min(THREADS_MAX - threads) {
                threads += 1;
                let revocation = self.clone();
                let worker = std::thread::Builder::new().name("memfs-revoke".into());
                if let Err(error) = worker.spawn(move || revocation.work(round)) {
                    drop(state);
                    tracing::error!("few threads take back what the kernel has: {error}");
                    return self.work(round);
                }
            }
            if self.is_done(state) {
                return;
            }
            team = (team * 2).min(TEAM_MAX);
        }
    }

    /// Waits until all is done, or those who are at work are stuck: then false.
    fn is_done(&self, mut state: MutexGuard<'_, State>) -> bool {
        let mut done = state.done;
        loop {
            let waited = self.changed.wait_for(&mut state, STUCK);
            if state.parts.len() == 0 && state.current.is_empty() {
                return true;
            }
            if waited.timed_out() && state.done == done && !state.current.is_empty() {
                return false;
            }
            done = state.done;
        }
    }

    /// Drops what is left, unless other threads have taken over.
    fn work(&self, round: usize) {
        let mut state = self.state.lock();
        while state.round == round
            && let Some((node, range)) = state.parts.next()
        {
            state.current.push((node.clone(), range));
            drop(state);
            self.shared.drop_now(&node, range);
            state = self.state.lock();
            state.done += 1;
            let is_this = |at: &(Arc<Node>, ByteRange)| at.0.no == node.no && at.1 == range;
            // Not where others have taken over: nobody is at it any more.
            if let Some(this) = (state.current.iter()).position(is_this) {
                state.current.swap_remove(this);
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PageRange;

    fn pages(start: u64, end: u64) -> ByteRange {
        PageRange::new(start, end).bytes()
    }

    /// What becomes of a file in which pages are locked, where every call of a round that meets one gets stuck: how many
    /// rounds there were, how many threads were left behind, and what was not dropped.
    fn taken_back(locked: &[ByteRange], reads: &[ByteRange]) -> (usize, usize, Vec<ByteRange>) {
        let meets = |part: ByteRange| locked.iter().any(|it| !part.intersect(*it).is_empty());
        let mut parts = Parts::new([()]);
        let (mut rounds, mut threads, mut kept, mut dropped) = (0, 0, Vec::new(), Vec::new());
        while parts.len() > 0 {
            rounds += 1;
            let all: Vec<_> = std::iter::from_fn(|| parts.next()).collect();
            let (stuck, free): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| meets(it.1));
            dropped.extend(free.into_iter().map(|it| it.1));
            threads += stuck.len();
            for part in stuck {
                if parts.stuck(&part, reads) == 0 {
                    kept.push(part.1);
                }
            }
        }
        // Each page once, and none left out.
        let mut all: Vec<_> = dropped.iter().chain(&kept).copied().collect();
        all.sort();
        assert_eq!((all[0].start, all[all.len() - 1].end), (0, u64::MAX));
        assert!(all.windows(2).all(|two| two[0].end == two[1].start));
        kept.sort();
        (rounds, threads, kept)
    }

    #[test]
    fn what_nobody_waits_for_takes_one_call_however_far_it_reaches() {
        assert_eq!(taken_back(&[], &[]), (1, 0, vec![]));
    }

    #[test]
    fn where_reads_wait_one_call_finds_out() {
        let reads = [pages(0, 32), pages(700, 956), pages(1 << 40, (1 << 40) + 1)];
        assert_eq!(taken_back(&reads, &reads), (2, 4, reads.to_vec()));
        // A read that locks nothing is dropped with the others, also around one that does.
        let reads = [pages(100, 356), pages(200, 201)];
        let (rounds, threads, kept) = taken_back(&reads[1..], &reads);
        assert_eq!((rounds, threads, kept), (2, 2, reads[1..].to_vec()));
    }

    #[test]
    fn what_is_locked_unseen_is_found_in_few_steps() {
        for page in [0, 1, 255, 256, 123_456_789, 1 << 40, (1 << 47) - 1] {
            let locked = [pages(page, page + 1)];
            let (rounds, threads, kept) = taken_back(&locked, &[]);
            assert_eq!(kept, locked);
            assert!(rounds <= 16 && threads <= 16, "{page}: {rounds} {threads}");
        }
        // A file of a gibibyte, and as much as one READ asks for.
        let locked = [pages(200_001, 200_257)];
        let (rounds, threads, kept) = taken_back(&locked, &[]);
        assert_eq!((kept.len(), kept[0].start), (256, locked[0].start));
        assert!(rounds <= 7 && threads <= 300, "{rounds} {threads}");
        // Beside one that is known.
        let known = [pages(200_256, 200_300)];
        let both = [locked[0], known[0]];
        let (rounds, _, kept) = taken_back(&both, &known);
        assert_eq!(kept.last(), Some(&known[0]));
        assert!(rounds <= 8, "{rounds}");
    }

    #[test]
    fn parts_are_few_and_divided_down_to_pages() {
        assert_eq!(divide(WHOLE, &[]).len(), 12);
        assert_eq!(divide(pages(7, 8), &[]), []);
        assert_eq!(divide(pages(7, 9), &[]), [pages(7, 8), pages(8, 9)]);
        assert_eq!(divide(pages(0, 1 << 30), &[]).len(), FEW as usize);
        let last = ByteRange::new(u64::MAX - PAGE_BYTES + 1, u64::MAX);
        assert_eq!(divide(last, &[]), []);
        assert_eq!(divide(ByteRange::new(1 << 63, u64::MAX), &[]).len(), 12);
    }
}
