//! What a link does to packets in one direction, sans-IO.
//!
//! ```text
//! enqueue ─ lost by chance? ─ queue ─ serializer (rate) ─ wire (delay) ─ poll
//!                              full: dropped
//! ```
//!
//! The queue is not kept as such: each packet that is taken in gets its time of arrival at once, from
//! the time at which the serializer will be done with all before it. Packets never overtake each other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Of what is on its way no more than this is kept, whatever rate and delay say: a bound on memory.
const UNDER_WAY_BYTES_MAX: u64 = 256 << 20;

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// From the end of the serializer to the other side.
    pub delay: Duration,
    /// Bits in a second; `None` is as fast as it goes.
    pub rate: Option<u64>,
    /// Bytes that may wait for the serializer.
    pub queue_bytes: u64,
    /// How probably a packet is lost, 0 to 1.
    pub loss: f64,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It will arrive.
    Kept,
    /// Chance took it.
    Lost,
    /// The queue was full.
    Dropped,
}

/// The state of one direction. `P` is whatever the caller knows a packet by.
pub struct Shaper<P> {
    shape: Shape,
    random: fastrand::Rng,
    /// When the serializer is done with all that was taken in.
    free_at: Option<Instant>,
    under_way: VecDeque<(Instant, u64, P)>,
    under_way_bytes: u64,
}

impl<P> Shaper<P> {
    /// With `seed` for what is left to chance: the same packets are lost each time.
    pub fn new(shape: Shape, seed: u64) -> Shaper<P> {
        Shaper {
            shape,
            random: fastrand::Rng::with_seed(seed),
            free_at: None,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
        }
    }

    /// A packet of `bytes` enters. It is given back where it will not arrive.
    pub fn enqueue(&mut self, packet: P, bytes: u64, now: Instant) -> (Fate, Option<P>) {
        if self.shape.loss > 0.0 && self.random.f64() < self.shape.loss {
            return (Fate::Lost, Some(packet));
        }
        let begin = self.free_at.map_or(now, |free| free.max(now));
        let waiting = self.bytes_sent_in(begin - now);
        let full = self.shape.rate.is_some() && waiting + bytes > self.shape.queue_bytes;
        if full || self.under_way_bytes + bytes > UNDER_WAY_BYTES_MAX {
            return (Fate::Dropped, Some(packet));
        }
        let sent = begin + self.time_to_send(bytes);
        self.free_at = Some(sent);
        let arrives = sent + self.shape.delay;
        self.under_way.push_back((arrives, bytes, packet));
        self.under_way_bytes += bytes;
        (Fate::Kept, None)
    }

    /// The next packet that has arrived by `now`.
    pub fn poll(&mut self, now: Instant) -> Option<P> {
        self.under_way.front().filter(|(due, _, _)| *due <= now)?;
        let (_, bytes, packet) = self.under_way.pop_front()?;
        self.under_way_bytes -= bytes;
        Some(packet)
    }

    /// When the next packet arrives; `None` where none is on its way.
    pub fn next_due(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _, _)| *due)
    }

    fn time_to_send(&self, bytes: u64) -> Duration {
        match self.shape.rate {
            Some(rate) => {
                let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            None => Duration::ZERO,
        }
    }

    fn bytes_sent_in(&self, time: Duration) -> u64 {
        match self.shape.rate {
            Some(rate) => {
                let bytes = u128::from(rate) * time.as_nanos() / 8 / 1_000_000_000;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Shape = Shape {
        delay: Duration::from_millis(20),
        rate: None,
        queue_bytes: 15_000,
        loss: 0.0,
    };
    /// A packet of 1500 bytes takes 1 ms.
    const RATE: Option<u64> = Some(12_000_000);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_packet_arrives_after_the_delay_and_not_before() {
        let now = Instant::now();
        let mut shaper = Shaper::new(PLAIN, 1);
        assert_eq!(shaper.next_due(), None);
        assert_eq!(shaper.enqueue('a', 1500, now), (Fate::Kept, None));
        assert_eq!(shaper.next_due(), Some(now + ms(20)));
        assert_eq!(shaper.poll(now + ms(20) - Duration::from_nanos(1)), None);
        assert_eq!(shaper.poll(now + ms(20)), Some('a'));
        assert_eq!(shaper.poll(now + ms(20)), None);
    }

    #[test]
    fn the_rate_spaces_packets_and_an_idle_link_saves_nothing_up() {
        let now = Instant::now();
        let mut shaper = Shaper::new(
            Shape {
                rate: RATE,
                ..PLAIN
            },
            1,
        );
        for packet in 0..3 {
            shaper.enqueue(packet, 1500, now);
        }
        shaper.enqueue(3, 1500, now + ms(10));
        shaper.enqueue(4, 1500, now + ms(10));
        for (packet, due) in [(0, 21), (1, 22), (2, 23), (3, 31), (4, 32)] {
            assert_eq!(shaper.next_due(), Some(now + ms(due)));
            assert_eq!(shaper.poll(now + ms(due)), Some(packet));
        }
    }

    #[test]
    fn a_full_queue_drops_what_comes_and_keeps_what_it_has() {
        let now = Instant::now();
        let mut shaper = Shaper::new(
            Shape {
                rate: RATE,
                ..PLAIN
            },
            1,
        );
        for packet in 0..10 {
            assert_eq!(shaper.enqueue(packet, 1500, now).0, Fate::Kept, "{packet}");
        }
        assert_eq!(shaper.enqueue(10, 1500, now), (Fate::Dropped, Some(10)));
        // Half a packet has gone after half a millisecond: there is room for half a packet.
        let later = now + Duration::from_micros(500);
        assert_eq!(shaper.enqueue(11, 1500, later).0, Fate::Dropped);
        assert_eq!(shaper.enqueue(12, 750, later).0, Fate::Kept);
        let end = now + ms(1000);
        let arrived: Vec<_> = std::iter::from_fn(|| shaper.poll(end)).collect();
        assert_eq!(arrived, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]);
    }

    #[test]
    fn a_saturated_link_carries_its_rate() {
        let now = Instant::now();
        let mut shaper = Shaper::new(
            Shape {
                rate: RATE,
                ..PLAIN
            },
            1,
        );
        // Twice what it can carry, for a second.
        for step in 0..2000 {
            shaper.enqueue((), 1500, now + Duration::from_micros(500 * step));
        }
        let mut arrived = 0;
        while shaper.poll(now + ms(1020)).is_some() {
            arrived += 1;
        }
        assert_eq!(arrived, 1000);
    }

    #[test]
    fn loss_is_as_often_as_asked_and_the_same_for_the_same_seed() {
        let lost = |seed| {
            let now = Instant::now();
            let mut shaper = Shaper::new(
                Shape {
                    loss: 0.01,
                    ..PLAIN
                },
                seed,
            );
            let fates = (0..100_000).map(|packet| shaper.enqueue(packet, 10, now).0);
            fates.map(|fate| fate == Fate::Lost).collect::<Vec<_>>()
        };
        let count = lost(7).iter().filter(|lost| **lost).count();
        assert!((900..1100).contains(&count), "{count} of 100000 at 1 %");
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
    }

    #[test]
    fn memory_is_bounded_where_the_rate_is_not() {
        let now = Instant::now();
        let mut shaper = Shaper::new(PLAIN, 1);
        let packets = (0..).take_while(|_| shaper.enqueue((), 1 << 20, now).0 == Fate::Kept);
        assert_eq!(packets.count() as u64, UNDER_WAY_BYTES_MAX >> 20);
    }
}
