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
//!
//! CUBIC also fills whatever queue there is, and what somebody waits for then stands in it behind what nobody
//! waits for. So the window is bounded by delay as well ([`Bound`]), as in TCP Vegas (Brakmo and Peterson 1995):
//!
//! ```text
//!             a queue stands: window × lowest / measured round trip
//!   free ───────────────────────────────────────────▶ bounded ─┐ none: a little more each round trip
//!    ▲ ▲            the bound is no bound any more       │  ▲  │
//!    │ └─────────────────────────────────────────────────┤  └──┘
//!    └── the queue stays: it is that of others, with whom CUBIC has to compete ──┘
//! ```

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
/// Below this lowest round-trip time delays tell of processors rather than of queues.
const BOUND_ROUND_TRIP_MIN: Duration = Duration::from_millis(4);
/// The queue that may stand is this part of the lowest round-trip time.
const STANDING: u32 = 8;
/// The bound is at least this part of what CUBIC would have.
const BOUND_PART: u64 = 4;
/// After so many round trips without an effect the queue is taken for that of others.
const BOUND_ROUNDS_MAX: u32 = 8;
/// CUBIC then competes for so long.
const COMPETE: Duration = Duration::from_secs(5);

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
            bound: Bound::new(now),
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
    bound: Bound,
}

/// A bound of the window in bytes, by delay.
#[derive(Clone, Debug)]
struct Bound {
    bytes: Option<u64>,
    /// When it is looked at next.
    next: Instant,
    /// Round trips in which it had no effect.
    rounds: u32,
}

impl Bound {
    fn new(now: Instant) -> Bound {
        Bound {
            bytes: None,
            next: now,
            rounds: 0,
        }
    }

    /// Once a round trip: looks at the queue there is. `window` is CUBIC's.
    fn look(
        &mut self,
        now: Instant,
        round_trip: Duration,
        lowest: Duration,
        window: u64,
        mtu: u64,
    ) {
        if lowest < BOUND_ROUND_TRIP_MIN || now < self.next {
            return;
        }
        self.next = now + round_trip;
        let allowed = lowest / STANDING;
        let bytes = self.bytes.unwrap_or(window).min(window);
        if round_trip.saturating_sub(lowest) <= allowed {
            let more = bytes + (bytes / 16).max(mtu);
            self.bytes = self.bytes.map(|_| more).filter(|&more| more < window);
            self.rounds = 0;
            return;
        }
        let part = (lowest + allowed * 3 / 4).div_duration_f64(round_trip);
        let least = window / BOUND_PART;
        let less = (bytes as f64 * part) as u64;
        self.bytes = Some(less.max(least));
        self.rounds += u32::from(less < least);
        if self.rounds > BOUND_ROUNDS_MAX {
            (self.bytes, self.rounds) = (None, 0);
            self.next = now + COMPETE;
        }
    }
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
        let window = self.cubic.window();
        self.bound.look(now, rtt.get(), rtt.min(), window, self.mtu);
        // CUBIC does not grow by what it is kept from.
        let limited = app_limited || self.bound.bytes.is_some();
        self.cubic.on_ack(now, sent, bytes, limited, rtt);
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
        let window = self.cubic.window();
        self.bound.bytes.map_or(window, |bytes| bytes.min(window))
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
            bound: Bound::new(now),
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

    /// A connection alone on a link of 60 bytes a microsecond and 40 ms, whose queue takes everything. The window and
    /// the queue it makes, in each of so many round trips.
    fn alone(rounds: usize) -> Vec<(u64, Duration)> {
        let lowest = Duration::from_millis(40);
        let (mut now, mut window) = (Instant::now(), 46_000);
        let mut bound = Bound::new(now);
        let mut seen = Vec::new();
        for _ in 0..rounds {
            let bounded = bound.bytes.unwrap_or(window).min(window);
            let round_trip = lowest.max(Duration::from_micros(bounded / 60));
            now += round_trip;
            bound.look(now, round_trip, lowest, window, PACKET);
            if bound.bytes.is_none() {
                window *= 2; // slow start
            }
            seen.push((bounded, round_trip - lowest));
        }
        seen
    }

    #[test]
    fn a_queue_of_our_own_is_kept_short_and_the_link_full() {
        let seen = alone(200);
        let settled = &seen[20..];
        let most = settled.iter().map(|(_, queue)| *queue).max();
        assert!(most.unwrap() < Duration::from_millis(8), "{settled:?}");
        let least = settled.iter().map(|(window, _)| *window).min();
        assert!(least.unwrap() >= 60 * 40_000, "{settled:?}");
    }

    #[test]
    fn a_queue_of_others_is_competed_with() {
        let (mut now, lowest) = (Instant::now(), Duration::from_millis(40));
        let mut bound = Bound::new(now);
        let mut bounded = 0;
        for _ in 0..200 {
            now += 2 * lowest;
            bound.look(now, 2 * lowest, lowest, 1 << 20, PACKET);
            assert!(bound.bytes.is_none_or(|bytes| bytes >= 1 << 18));
            bounded += u32::from(bound.bytes.is_some());
        }
        assert!((10..50).contains(&bounded), "{bounded}");
    }

    #[test]
    fn short_paths_are_not_bounded() {
        let now = Instant::now();
        let mut bound = Bound::new(now);
        let lowest = Duration::from_micros(200);
        bound.look(now, 50 * lowest, lowest, 1 << 20, PACKET);
        assert_eq!(bound.bytes, None);
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
