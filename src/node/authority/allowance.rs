//! How many requests a connection may have under way.
//!
//! The transport keeps a place for every stream that may be opened, and never gives back what the busiest stream has
//! once taken there: with thousands of places, used in turn, that grows for hours. So a connection is allowed few
//! at first, and more as soon as it uses half of them.

use super::REQUESTS_RUNNING_MAX;
use crate::transport::STREAMS_AT_FIRST;
use quinn::{Connection, VarInt};

pub(super) struct Allowance {
    streams: usize,
}

impl Allowance {
    /// Of a connection that is new.
    pub fn new() -> Allowance {
        Allowance {
            streams: STREAMS_AT_FIRST as usize,
        }
    }

    /// So many requests are under way.
    pub fn adapt(&mut self, connection: &Connection, running: usize) {
        if self.changes(running) {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.streams as u32));
        }
    }

    fn changes(&mut self, running: usize) -> bool {
        let before = self.streams;
        if running >= self.streams / 2 {
            self.streams = (self.streams * 2).min(REQUESTS_RUNNING_MAX);
        } else if running < self.streams / 8 {
            self.streams = (self.streams / 2).max(STREAMS_AT_FIRST as usize);
        }
        self.streams != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_more_is_allowed_more_for_as_long() {
        let mut allowance = Allowance::new();
        let first = allowance.streams;
        assert!(!allowance.changes(0) && !allowance.changes(first / 2 - 1));
        assert!(allowance.changes(first / 2));
        assert_eq!(allowance.streams, 2 * first);
        for running in 0..=REQUESTS_RUNNING_MAX {
            allowance.changes(running);
            assert!(allowance.streams > running || running == REQUESTS_RUNNING_MAX);
        }
        assert_eq!(allowance.streams, REQUESTS_RUNNING_MAX);
        while allowance.changes(1) {}
        assert_eq!(allowance.streams, first);
    }
}
