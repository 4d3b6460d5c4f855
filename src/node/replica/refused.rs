//! Pushes that the authority refuses: its disk is full, a quota is used up, its disk fails.
//!
//! What is refused stays dirty and is tried again: at once where somebody waits for it (`fsync`, `close`, a writer for
//! whom there is no room), otherwise after pauses that grow. So whoever asks is told how it is now, and what has been
//! settled since is not held against anybody.

use super::Shared;
use super::region::Region;
use crate::store::{Errno, Result};
use crate::units::PAGE_BYTES;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pauses before a region is pushed again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Why the newest push of a region failed, and when the next may be made that nobody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub errno: Errno,
    pause: Duration,
    until: Instant,
}

impl Refusal {
    /// One more push was refused, after `before` if the one before it was as well.
    pub fn new(errno: Errno, before: Option<Refusal>, now: Instant) -> Refusal {
        let pause = match before {
            None => PAUSES.0,
            // Several are under way at a time.
            Some(before) if now < before.until => before.pause,
            Some(before) => (before.pause * 2).min(PAUSES.1),
        };
        let until = now + pause;
        Refusal {
            errno,
            pause,
            until,
        }
    }

    /// Whether nothing is to be pushed yet.
    pub fn rests(&self, now: Instant) -> bool {
        now < self.until
    }
}

impl Shared {
    /// Waits until a writer of this region may go on.
    ///
    /// # Errors
    /// Why what is dirty is refused, where it does not become less for that.
    pub(super) async fn wait_for_room(&self, region: &Arc<Region>) -> Result<()> {
        let mut dirty = self.dirty_bytes.subscribe();
        let mut refusals = self.refusals.subscribe();
        for region in self.regions() {
            if region.look(|inner| inner.refusal.is_some()) {
                region.push_again();
            }
        }
        loop {
            if *dirty.borrow_and_update() < self.dirty_bytes_max() {
                return Ok(());
            }
            // Both senders live in `self`: there is nothing to fail.
            tokio::select! {
                _ = dirty.changed() => {}
                _ = refusals.changed() => match self.why_no_room(region) {
                    Some(errno) => return Err(errno),
                    None => continue,
                },
            }
        }
    }

    fn why_no_room(&self, region: &Arc<Region>) -> Option<Errno> {
        let refused = |region: &Arc<Region>| {
            region.look(|inner| Some((inner.refusal?.errno, inner.core.dirty_pages())))
        };
        if let Some((errno, _)) = refused(region) {
            return Some(errno);
        }
        let regions = self.regions();
        let all: Vec<_> = regions.iter().filter_map(refused).collect();
        let pages: u64 = all.iter().map(|(_, pages)| pages).sum();
        let (errno, _) = all.first()?;
        (pages * PAGE_BYTES >= self.dirty_bytes_max()).then_some(*errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let start = Instant::now();
        let first = Refusal::new(Errno::NOSPC, None, start);
        assert!(first.rests(start) && !first.rests(start + PAUSES.0));
        let of_the_same_time = Refusal::new(Errno::NOSPC, Some(first), start);
        assert_eq!(of_the_same_time.pause, PAUSES.0);
        let mut last = of_the_same_time;
        for _ in 0..10 {
            last = Refusal::new(Errno::IO, Some(last), last.until);
        }
        assert_eq!((last.errno, last.pause), (Errno::IO, PAUSES.1));
    }
}
