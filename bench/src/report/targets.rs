//! What memfs is to reach on each link, and whether it does.

use super::table::{aligned, shown};
use super::{METRICS, Results};

/// A bound for a metric of memfs.
#[derive(Clone, Copy)]
enum Floor {
    /// At least this share of raw.
    Raw(f64),
    /// At least this share of what the link lets through.
    Line(f64),
    /// At least so many times another system's value of a metric.
    Times(f64, &'static str, &'static str),
    /// So many times as fast as another system: its time divided by that is the limit.
    Faster(f64, &'static str),
    /// At most so many times another system's time.
    Slower(f64, &'static str),
    /// At most so many round trips and so much more, in ms.
    RoundTrips(f64, f64),
    /// At least so many in a round trip.
    PerRoundTrip(f64),
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

type Target = (&'static str, Floor);

use Floor::{AtLeast, AtMost, Faster, Line, PerRoundTrip, Raw, RoundTrips, Slower, Times};

/// Each in the terms of the metric. Stores are those that open the file anew: what was measured when the
/// targets were set.
const LOOPBACK: &[Target] = &[
    ("read", Raw(0.75)),
    ("map", Raw(0.75)),
    ("random-p50", Faster(1.0, "sshfs-tuned")),
    ("random8-rate", Times(1.0, "sshfs-tuned", "random8-rate")),
    ("write", Raw(0.7)),
    ("map-write", Raw(0.7)),
    ("stores-reopened", Times(1.0, "nbdfuse", "stores-reopened")),
    ("mount", AtMost(50.0)),
    ("first-page", AtMost(3.0)),
    ("middle-page", AtMost(3.0)),
];
const NEAR: &[Target] = &[
    ("read", Raw(0.8)),
    ("map", Raw(0.8)),
    ("random-p50", Faster(1.0, "sshfs-tuned")),
    ("random8-rate", Times(1.0, "sshfs-tuned", "random8-rate")),
    ("write", Raw(0.75)),
    ("map-write", Raw(0.75)),
    ("stores-reopened", Times(3.0, "nbdfuse", "stores-reopened")),
    ("list", Slower(3.0, "local")),
];
const FAR: &[Target] = &[
    ("read", Line(0.9)),
    ("map", Line(0.9)),
    ("random-p50", RoundTrips(1.0, 1.0)),
    ("random8-rate", PerRoundTrip(7.0)),
    ("write", Line(0.9)),
    ("map-write", Line(0.9)),
    ("stores-reopened", Times(20.0, "sshfs", "stores-reopened")),
    ("mount", RoundTrips(2.0, 50.0)),
    ("first-page", RoundTrips(1.0, 20.0)),
    ("middle-page", RoundTrips(1.0, 20.0)),
    ("demand-pull", Line(0.8)),
    ("demand-p50", RoundTrips(1.0, 5.0)),
    ("demand-p99", RoundTrips(1.0, 25.0)),
    ("learned-times", AtLeast(10.0)),
];
const LOSSY: &[Target] = &[
    ("read", Line(0.8)),
    ("map", Line(0.8)),
    ("write", Line(0.8)),
];
/// On every link.
const EVERYWHERE: &[Target] = &[
    ("again", Times(0.9, "local", "again")),
    // Nothing that changed is nothing to bring; what is asked whether it changed costs a little.
    ("remount-share", AtMost(1.0)),
    ("remount-ro", Times(0.9, "local", "map")),
    // What has changed is a half of it.
    ("delta-share", AtMost(2.0)),
];

const LINKS: &[(&str, &[Target])] = &[
    ("loopback", LOOPBACK),
    ("0.2ms", NEAR),
    ("0.2ms-jumbo", NEAR),
    ("40ms-500mbit", FAR),
    ("40ms-200mbit-loss", LOSSY),
];

/// The bound in the metric's unit, in words, and whether more is better.
fn bound(results: &Results, link: &str, metric: &str, floor: Floor) -> (Option<f64>, String, bool) {
    let round_trip = results.round_trip(link);
    match floor {
        Raw(share) => {
            let raw = results.raw(link, metric);
            (raw.map(|raw| share * raw), format!("{share} raw"), true)
        }
        Line(share) => {
            let line = results.line(link);
            (line.map(|line| share * line), format!("{share} line"), true)
        }
        Times(times, system, other) => {
            let its = results.median(link, other, system);
            (
                its.map(|its| times * its),
                format!("{times} × {system}"),
                true,
            )
        }
        Faster(times, system) => {
            let its = results.median(link, metric, system);
            let words = format!("{times} × as fast as {system}");
            (its.map(|its| its / times), words, false)
        }
        Slower(times, system) => {
            let its = results.median(link, metric, system);
            let words = format!("{times} × the time of {system}");
            (its.map(|its| its * times), words, false)
        }
        RoundTrips(count, more) => {
            let unit = if metric.starts_with("random") {
                1000.0
            } else {
                1.0
            };
            let words = format!("{count} RTT + {more} ms");
            (Some(unit * (count * round_trip + more)), words, false)
        }
        PerRoundTrip(count) => {
            let words = format!("{count} a round trip");
            (Some(count * 1000.0 / round_trip), words, true)
        }
        AtMost(most) => (Some(most), "at most".into(), false),
        AtLeast(least) => (Some(least), "at least".into(), true),
    }
}

/// All of them, as text: what is 1 or more in the column `ratio` is reached.
pub fn table(results: &Results) -> String {
    let head = [
        "target", "link", "floor", "", "measured", "unit", "ratio", "",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let (mut reached, mut known) = (0, 0);
    for link in &results.links {
        let own = LINKS.iter().find(|(name, _)| name == link);
        let own = own.map_or(&[][..], |(_, targets)| targets);
        for (name, floor) in own.iter().chain(EVERYWHERE) {
            let Some(metric) = METRICS.iter().find(|metric| metric.name == *name) else {
                continue;
            };
            let (bound, words, more) = bound(results, link, name, *floor);
            let measured = results.median(link, name, "memfs");
            let ratio = bound.zip(measured).map(|(bound, measured)| match more {
                true => measured / bound,
                // Nothing at all is below every limit.
                false => bound / measured.max(1e-9),
            });
            let verdict = match ratio {
                Some(1.0..) => "pass",
                Some(_) => "FAIL",
                None => "not measured",
            };
            known += u32::from(ratio.is_some());
            reached += u32::from(verdict == "pass");
            let number = |value: Option<f64>| value.map_or("–".into(), shown);
            let sign = if more { "≥" } else { "≤" };
            rows.push(vec![
                metric.title.into(),
                link.clone(),
                words,
                format!("{sign} {}", number(bound)),
                number(measured),
                metric.unit.into(),
                ratio.map_or("–".into(), |ratio| format!("{:.2}", ratio.min(99.0))),
                verdict.into(),
            ]);
        }
    }
    format!(
        "\n## Targets: {reached} of {known} reached\n\n{}\n",
        aligned(&rows)
    )
}
