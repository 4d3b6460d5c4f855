//! Until when a replica may answer from its copies.

use std::time::{Duration, Instant};

/// A replica's side of a lease: it runs from when a renewal was *sent*, so it never outlives the
/// authority's side, which runs from when the renewal arrived (Gray and Cheriton, SOSP 1989).
#[derive(Debug)]
pub struct Lease {}

impl Lease {
    /// A lease granted by the connection's handshake, which the replica began at `sent`.
    pub fn new(_sent: Instant, _length: Duration) -> Lease {
        unimplemented!()
    }
    /// Whether copies may be used at `now`.
    pub fn is_valid(&self, _now: Instant) -> bool {
        unimplemented!()
    }
    /// When it runs out, unless renewed.
    pub fn ends(&self) -> Instant {
        unimplemented!()
    }
    /// When the next renewal is to be sent: a third of the length after the last.
    pub fn next_renewal(&self) -> Instant {
        unimplemented!()
    }
    /// A renewal goes out: its number.
    pub fn handle_sent(&mut self, _now: Instant) -> u64 {
        unimplemented!()
    }
    /// The authority has answered the renewal with this number; unknown and old ones change nothing.
    pub fn handle_renewed(&mut self, _number: u64) {
        unimplemented!()
    }
}
