//! Congestion control: CUBIC (RFC 9438) that tells loss by chance from loss by congestion.
//!
//! CUBIC takes every loss for a full queue. On a path that loses one packet in a thousand for no such reason,
//! as radio links do, it never gets far: at 40 ms it holds a few Mbit/s. A loss counts as chance here, and CUBIC
//! is not told of it, if both hold:
//!
//! - **No queue has built up**: the round-trip time is near the lowest seen. (TCP Veno, Fu and Liew 2003, tells
//!   the two apart like this.)
//! - **Few packets are lost**: 2 % of the recent ones at most (the threshold of BBR version 2). It bounds what is
//!   done to others where queues are so short that they show no delay.
//!
//! Marks of routers (ECN) and persistent congestion always count.

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that may be in flight before anything is acknowledged: 32 packets of an Ethernet.
const INITIAL_WINDOW_BYTES: u64 = 32 * 1452;
/// At most one byte in so many is lost by chance.
const CHANCE: u64 = 50;
/// No queue has built up while the round-trip time is below the lowest by this factor and this time.
const NO_QUEUE_FACTOR: f64 = 1.25;
const NO_QUEUE_REST: Duration = Duration::from_millis(1);

/// Makes the controllers of connections.
pub(super) fn factory() -> Arc<dyn ControllerFactory + Send + Sync> {
    Arc::new(Factory)
}

struct Factory;

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mut config = CubicConfig::default();
        config.initial_window(INITIAL_WINDOW_BYTES);
        Box::new(Tolerant {
            cubic: Cubic::new(Arc::new(config), now, current_mtu),
            recent: Recent::new(now),
            mtu: u64::from(current_mtu),
            queue: false,
        })
    }
}

#[derive(Clone, Debug)]
struct Tolerant {
    cubic: Cubic,
    recent: Recent,
    mtu: u64,
    /// By the last acknowledgement a queue has built up.
    queue: bool,
}

/// Bytes acknowledged and lost, those before the last round trip by half, and so on.
#[derive(Clone, Debug)]
struct Recent {
    acked: u64,
    lost: u64,
    halved: Instant,
}

impl Recent {
    fn new(now: Instant) -> Recent {
        Recent {
            acked: 0,
            lost: 0,
            halved: now,
        }
    }

    fn halve_if_due(&mut self, now: Instant, round_trip: Duration) {
        if now.saturating_duration_since(self.halved) >= round_trip {
            (self.acked, self.lost) = (self.acked / 2, self.lost / 2);
            self.halved = now;
        }
    }

    /// Whether so few bytes are lost that it may be by chance. One packet always may.
    fn may_be_chance(&self, mtu: u64) -> bool {
        self.lost <= mtu || self.lost * CHANCE <= self.acked + self.lost
    }
}

impl Controller for Tolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.recent.halve_if_due(now, rtt.get());
        self.recent.acked += bytes;
        self.queue = rtt.get() > rtt.min().mul_f64(NO_QUEUE_FACTOR) + NO_QUEUE_REST;
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.recent.lost += lost_bytes;
        let by_chance = lost_bytes > 0 // 0 is a mark of a router
            && !is_persistent_congestion
            && !self.queue
            && self.recent.may_be_chance(self.mtu);
        if !by_chance {
            self.cubic
                .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1452;

    fn tolerant(acked: u64, queue: bool) -> Tolerant {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        recent.acked = acked;
        Tolerant {
            cubic: Cubic::new(Arc::new(CubicConfig::default()), now, PACKET as u16),
            recent,
            mtu: PACKET,
            queue,
        }
    }

    /// Whether CUBIC reduces its window when `packets` are lost.
    fn reduces(mut controller: Tolerant, packets: u64, persistent: bool) -> bool {
        let (before, now) = (controller.window(), Instant::now());
        controller.on_congestion_event(now, now, persistent, packets * PACKET);
        controller.window() < before
    }

    #[test]
    fn few_losses_without_a_queue_are_chance() {
        assert!(!reduces(tolerant(0, false), 1, false));
        assert!(!reduces(tolerant(1000 * PACKET, false), 1, false));
        assert!(!reduces(tolerant(1000 * PACKET, false), 20, false));
    }

    #[test]
    fn losses_with_a_queue_and_many_losses_are_congestion() {
        assert!(reduces(tolerant(1000 * PACKET, true), 1, false));
        assert!(reduces(tolerant(1000 * PACKET, false), 21, false));
        assert!(reduces(tolerant(10 * PACKET, false), 2, false));
    }

    #[test]
    fn marks_and_persistent_congestion_always_count() {
        assert!(reduces(tolerant(1000 * PACKET, false), 0, false));
        assert!(reduces(tolerant(1000 * PACKET, false), 1, true));
    }

    #[test]
    fn what_is_long_past_counts_less() {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        (recent.acked, recent.lost) = (1000, 100);
        recent.halve_if_due(now + Duration::from_millis(39), Duration::from_millis(40));
        assert_eq!((recent.acked, recent.lost), (1000, 100));
        recent.halve_if_due(now + Duration::from_millis(40), Duration::from_millis(40));
        assert_eq!((recent.acked, recent.lost), (500, 50));
    }
}
