//! What a link is like, as options and as a name: `40ms-500mbit`, `40ms-200mbit-loss`.

use super::shaper::Shape;
use memfs::units::{parse_duration, parse_size};
use serde::Serialize;
use std::time::Duration;

/// What an Ethernet carries.
const ETHERNET: u16 = 1500;
/// What `jumbo` in a name stands for: what an Ethernet can be told to carry.
const JUMBO: u16 = 9000;
/// What `loss` in a name stands for.
const LOSS: f64 = 0.001;
/// Where nothing else is said, what comes within so long may wait for the serializer.
const QUEUE: Duration = Duration::from_millis(40);
/// The least queue: a burst of datagrams.
const QUEUE_BYTES_MIN: u64 = 256 << 10;

/// What a link is like.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args, Serialize)]
pub struct Options {
    /// Round-trip time, half of it each way
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time)]
    pub rtt: Duration,
    /// Bits in a second each way: 500mbit, 1gbit; without it as fast as it goes
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<u64>,
    /// Bytes that may wait where there is a rate; without it what comes within 40 ms
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub queue: Option<u64>,
    /// How many packets are lost: 0.1%
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub loss: f64,
    /// The longest packet, in bytes
    #[arg(long, value_name = "BYTES", default_value = "1500", value_parser = clap::value_parser!(u16).range(576..))]
    pub mtu: u16,
    /// Which packets are lost: the same for the same number
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub seed: u64,
}

impl Options {
    /// Reads a name: times, rates, losses and `jumbo` frames, joined by `-`.
    ///
    /// # Errors
    /// One line that names the value and what is allowed.
    pub fn from_name(name: &str) -> Result<Options, String> {
        let mut options = Options {
            rtt: Duration::ZERO,
            rate: None,
            queue: None,
            loss: 0.0,
            mtu: ETHERNET,
            seed: 1,
        };
        for part in name.split('-') {
            if part == "loss" {
                options.loss = LOSS;
            } else if part == "jumbo" {
                options.mtu = JUMBO;
            } else if part.ends_with('%') {
                options.loss = share(part)?;
            } else if part.ends_with("bit") {
                options.rate = Some(rate(part)?);
            } else {
                let wrong = |_| {
                    format!(
                        "'{name}' is no link: loopback, or such as 0.2ms, 40ms-500mbit, 40ms-200mbit-loss"
                    )
                };
                options.rtt = time(part).map_err(wrong)?;
            }
        }
        Ok(options)
    }

    /// The same as arguments.
    pub fn args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--rtt={}ms", self.rtt.as_secs_f64() * 1000.0),
            format!("--loss={}", self.loss),
            format!("--mtu={}", self.mtu),
            format!("--seed={}", self.seed),
        ];
        args.extend(self.rate.map(|rate| format!("--rate={}kbit", rate / 1000)));
        args.extend(self.queue.map(|queue| format!("--queue={queue}")));
        args
    }

    /// Whether segments of many packets pass whole.
    pub fn super_packets(&self) -> bool {
        self.rate.is_none() && self.loss == 0.0
    }

    /// Of either direction.
    pub fn shape(&self) -> Shape {
        let rate = self.rate.unwrap_or_default();
        let queued = u128::from(rate) * QUEUE.as_micros() / 8 / 1_000_000;
        let queued = u64::try_from(queued).unwrap_or(u64::MAX);
        Shape {
            delay: self.rtt / 2,
            rate: self.rate,
            queue_bytes: self.queue.unwrap_or(queued.max(QUEUE_BYTES_MIN)),
            loss: self.loss,
        }
    }
}

/// A time that may have a fraction: a link within one room is shorter than a millisecond.
fn time(text: &str) -> Result<Duration, String> {
    let millis = text
        .strip_suffix("ms")
        .and_then(|number| number.parse().ok());
    match millis {
        Some(millis) if (0.0..=60_000.0).contains(&millis) => {
            Ok(Duration::from_secs_f64(millis / 1000.0))
        }
        _ => parse_duration(text),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let number = |suffix| text.strip_suffix(suffix)?.parse::<u32>().ok();
    let units = [
        ("kbit", 1_000),
        ("mbit", 1_000_000),
        ("gbit", 1_000_000_000),
    ];
    let found = units
        .iter()
        .find_map(|(suffix, unit)| Some(u64::from(number(suffix)?) * unit));
    found
        .filter(|rate| *rate > 0)
        .ok_or_else(|| format!("'{text}' is no rate: such as 500mbit or 1gbit"))
}

fn share(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    let share = parsed.ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("'{text}' is no share: such as 0.1%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let link = Options::from_name("40ms-200mbit-loss").unwrap();
        assert_eq!(
            (link.rtt, link.rate),
            (Duration::from_millis(40), Some(200_000_000))
        );
        assert_eq!(link.loss, 0.001);
        assert!(!link.super_packets());
        let link = Options::from_name("0.2ms").unwrap();
        assert_eq!(link.shape().delay, Duration::from_micros(100));
        assert!(link.super_packets());
        assert_eq!(Options::from_name("5ms-1%").unwrap().loss, 0.01);
        assert_eq!(Options::from_name("0.2ms-jumbo").unwrap().mtu, 9000);
        assert_eq!(
            Options::from_name("40ms-500mbit")
                .unwrap()
                .shape()
                .queue_bytes,
            2_500_000
        );
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for name in ["", "fast", "40ms-0mbit", "200%", "40ms--1ms", "-5ms"] {
            assert!(Options::from_name(name).is_err(), "{name}");
        }
    }
}
