//! Until when a replica may answer from its copies.
//!
//! ```text
//! replica    sent ├──────── length ────────┤ ends
//! authority           arrived ├──────── length ────────┤ waits for this replica until here
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Renewals under way that are remembered; the oldest is given up for a new one.
const RENEWALS_MAX: usize = 8;

/// A replica's side of a lease: it runs from when a renewal was *sent*, so it never outlives the
/// authority's side, which runs from when the renewal arrived (Gray and Cheriton, SOSP 1989).
#[derive(Clone, Debug)]
pub struct Lease {
    length: Duration,
    /// When the newest renewal that was answered had been sent.
    granted: Instant,
    /// When the newest renewal was sent.
    sent: Instant,
    /// Number of the newest renewal.
    number: u64,
    /// Renewals not answered yet, oldest first: number, and when it was sent.
    under_way: VecDeque<(u64, Instant)>,
}

impl Lease {
    /// A lease granted by the connection's handshake, which the replica began at `sent`.
    pub fn new(sent: Instant, length: Duration) -> Lease {
        Lease {
            length,
            granted: sent,
            sent,
            number: 0,
            under_way: VecDeque::new(),
        }
    }

    /// Whether copies may be used at `now`.
    pub fn is_valid(&self, now: Instant) -> bool {
        now < self.ends()
    }

    /// When it runs out, unless renewed.
    pub fn ends(&self) -> Instant {
        self.granted + self.length
    }

    /// When the next renewal is to be sent: a third of the length after the last.
    pub fn next_renewal(&self) -> Instant {
        self.sent + self.length / 3
    }

    /// A renewal goes out: its number.
    pub fn handle_sent(&mut self, now: Instant) -> u64 {
        if self.under_way.len() == RENEWALS_MAX {
            self.under_way.pop_front();
        }
        self.number += 1;
        self.sent = now;
        self.under_way.push_back((self.number, now));
        self.number
    }

    /// The authority has answered the renewal with this number; unknown and old ones change nothing.
    pub fn handle_renewed(&mut self, number: u64) {
        if !self.under_way.iter().any(|&(sent, _)| sent == number) {
            return;
        }
        while let Some(&(sent, at)) = self.under_way.front() {
            if sent > number {
                break;
            }
            self.granted = at;
            self.under_way.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn runs_from_when_the_renewal_was_sent() {
        let start = Instant::now();
        let mut lease = Lease::new(start, 9 * SECOND);
        assert!(lease.is_valid(start + 8 * SECOND) && !lease.is_valid(start + 9 * SECOND));
        assert_eq!(lease.next_renewal(), start + 3 * SECOND);
        let first = lease.handle_sent(start + 3 * SECOND);
        let second = lease.handle_sent(start + 6 * SECOND);
        assert_eq!(lease.next_renewal(), start + 9 * SECOND);
        assert_eq!(lease.ends(), start + 9 * SECOND, "sent is not granted");
        lease.handle_renewed(second);
        assert_eq!(lease.ends(), start + 15 * SECOND);
        lease.handle_renewed(first);
        assert_eq!(lease.ends(), start + 15 * SECOND, "an old answer");
        lease.handle_renewed(99);
        assert_eq!(lease.ends(), start + 15 * SECOND, "an answer to nothing");
    }

    #[test]
    fn an_authority_that_never_answers_costs_no_memory() {
        let start = Instant::now();
        let mut lease = Lease::new(start, 9 * SECOND);
        let numbers: Vec<u64> = (0..100).map(|_| lease.handle_sent(start)).collect();
        assert_eq!(lease.under_way.len(), RENEWALS_MAX);
        lease.handle_renewed(numbers[0]);
        assert_eq!(lease.under_way.len(), RENEWALS_MAX, "given up long ago");
    }
}
