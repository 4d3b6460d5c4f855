//! What came of it: JSON lines, and from them tables, targets and charts.
//!
//! `memfs-bench report FILE` shows again what was measured earlier.

mod chart;
mod record;
mod table;
mod targets;

pub use record::{Line, Run, machine};

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Show what was measured: tables on stdout, charts beside the file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JSON lines that 'run' wrote
    file: PathBuf,
    /// Only the targets
    #[arg(long)]
    targets: bool,
}

/// Something that is measured.
pub struct Metric {
    /// In JSON.
    pub name: &'static str,
    /// In tables and charts.
    pub title: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// Whether raw is its limit: it is shown as a share of that.
    pub of_raw: bool,
}

const fn metric(name: &'static str, title: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        title,
        unit,
        of_raw: false,
    }
}

const fn of_raw(name: &'static str, title: &'static str) -> Metric {
    Metric {
        of_raw: true,
        ..metric(name, title, "MiB/s")
    }
}

/// All there are, in the order they are shown.
pub const METRICS: &[Metric] = &[
    of_raw("read", "sequential read(2)"),
    of_raw("map", "sequential mapped read"),
    of_raw("write", "sequential write(2) + fsync"),
    of_raw("map-write", "sequential mapped write + msync"),
    metric("again", "read(2) again", "MiB/s"),
    metric("random-p50", "random mapped 4 KiB, p50", "µs"),
    metric("random-p99", "random mapped 4 KiB, p99", "µs"),
    metric("random-rate", "random mapped 4 KiB", "faults/s"),
    metric("random8-p50", "random mapped 4 KiB, 8 threads, p50", "µs"),
    metric("random8-p99", "random mapped 4 KiB, 8 threads, p99", "µs"),
    metric("random8-rate", "random mapped 4 KiB, 8 threads", "faults/s"),
    metric("stores", "random mapped stores + msync", "stores/s"),
    metric(
        "stores-reopened",
        "random mapped stores, opened anew",
        "stores/s",
    ),
    metric("mount", "mount", "ms"),
    metric("first-page", "first page of a known path", "ms"),
    metric("middle-page", "page of the middle of a known path", "ms"),
    metric("remount", "second mount, mapped read", "MiB/s"),
    metric(
        "remount-ro",
        "second mount, read-only, mapped read",
        "MiB/s",
    ),
    metric(
        "remount-share",
        "second mount: came again over the link",
        "%",
    ),
    metric("delta", "second mount, 1 % changed, read(2)", "MiB/s"),
    metric(
        "delta-share",
        "second mount, 1 % changed: came over the link",
        "%",
    ),
    metric("list", "100,000 files with attributes", "s"),
    metric("list-again", "100,000 files with attributes, again", "s"),
    metric("small-unpack", "500 small files, unpacked", "s"),
    metric("small-read", "500 small files, read over a cold mount", "s"),
    metric("small-remove", "500 small files, removed", "s"),
    metric(
        "small-cpu-client",
        "unpacking: processor, mounting side",
        "ms/file",
    ),
    metric(
        "small-cpu-server",
        "unpacking: processor, serving side",
        "ms/file",
    ),
    metric("demand-p50", "fault beside a background pull, p50", "ms"),
    metric("demand-p99", "fault beside a background pull, p99", "ms"),
    metric("demand-pull", "background pull beside faults", "MiB/s"),
    metric("learned", "2000 scattered places, touched before", "s"),
    metric(
        "learned-first",
        "2000 scattered places, the first time",
        "s",
    ),
    metric(
        "learned-without",
        "2000 scattered places, nothing learned",
        "s",
    ),
    metric(
        "learned-times",
        "2000 scattered places: so many times sooner",
        "×",
    ),
    metric(
        "random-cpu-client",
        "random fault: processor, mounting side",
        "µs/fault",
    ),
    metric(
        "random-cpu-server",
        "random fault: processor, serving side",
        "µs/fault",
    ),
    metric(
        "read-cpu-client",
        "read(2): processor, mounting side",
        "s/GiB",
    ),
    metric(
        "read-cpu-server",
        "read(2): processor, serving side",
        "s/GiB",
    ),
    metric(
        "write-cpu-client",
        "write(2): processor, mounting side",
        "s/GiB",
    ),
    metric(
        "write-cpu-server",
        "write(2): processor, serving side",
        "s/GiB",
    ),
    metric(
        "read-memory",
        "read(2): memory of the mounting side, at the end",
        "MiB",
    ),
    metric("busy-elsewhere", "busy elsewhere, all runs", "%"),
];

/// Everything that was measured, by link, metric and system.
pub struct Results {
    /// Links in the order they were measured.
    pub links: Vec<String>,
    /// Systems in the order they were measured.
    pub systems: Vec<String>,
    values: BTreeMap<(String, String, String), Vec<f64>>,
    /// Bytes in a second that a link lets through.
    lines: BTreeMap<String, f64>,
    /// Round-trip times in ms.
    round_trips: BTreeMap<String, f64>,
    /// What failed, and why.
    pub failures: Vec<String>,
}

impl Results {
    /// Reads JSON lines.
    ///
    /// # Errors
    /// One line.
    pub fn read(path: &Path) -> Result<Results, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut results = Results {
            links: Vec::new(),
            systems: Vec::new(),
            values: BTreeMap::new(),
            lines: BTreeMap::new(),
            round_trips: BTreeMap::new(),
            failures: Vec::new(),
        };
        for line in text.lines() {
            match serde_json::from_str(line).map_err(|e| format!("{}: {e}", path.display()))? {
                Line::Run(run) => results.add(run),
                Line::Machine(_) | Line::Cell(_) => {}
            }
        }
        Ok(results)
    }

    fn add(&mut self, run: Run) {
        for (list, name) in [
            (&mut self.links, &run.link),
            (&mut self.systems, &run.system),
        ] {
            if !list.contains(name) {
                list.push(name.clone());
            }
        }
        if let Some(line) = run.line_bytes {
            self.lines.insert(run.link.clone(), line);
        }
        self.round_trips.insert(run.link.clone(), run.rtt_ms);
        if let Some(error) = &run.error {
            let Run {
                link,
                workload,
                system,
                ..
            } = &run;
            self.failures
                .push(format!("{link}: {workload}: {system}: {error}"));
        }
        for (name, value) in run.measures {
            let key = (run.link.clone(), name, run.system.clone());
            self.values.entry(key).or_default().push(value);
        }
    }

    /// All values of a cell, in the order they were measured.
    pub fn values(&self, link: &str, metric: &str, system: &str) -> &[f64] {
        let key = (link.to_owned(), metric.to_owned(), system.to_owned());
        self.values.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The median of a cell.
    pub fn median(&self, link: &str, metric: &str, system: &str) -> Option<f64> {
        let mut values = self.values(link, metric, system).to_vec();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            _ if values.is_empty() => None,
            1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }

    /// What raw reaches: the limit for reads, or for writes.
    pub fn raw(&self, link: &str, metric: &str) -> Option<f64> {
        let direction = if metric.contains("write") {
            "write"
        } else {
            "read"
        };
        self.median(link, direction, "raw")
    }

    /// What a link lets through, MiB/s.
    pub fn line(&self, link: &str) -> Option<f64> {
        Some(self.lines.get(link)? / f64::from(1 << 20))
    }

    /// The round-trip time of a link, ms.
    pub fn round_trip(&self, link: &str) -> f64 {
        self.round_trips.get(link).copied().unwrap_or_default()
    }
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn run(args: &Args) -> Result<(), String> {
    if args.targets {
        print!("{}", targets::table(&Results::read(&args.file)?));
        return Ok(());
    }
    show(&args.file)
}

/// Prints tables, adds the medians to the file, draws charts beside it.
///
/// # Errors
/// One line.
pub fn show(path: &Path) -> Result<(), String> {
    let results = Results::read(path)?;
    print!("{}", table::tables(&results));
    print!("{}", targets::table(&results));
    for failure in &results.failures {
        println!("failed: {failure}");
    }
    record::write_cells(path, &results)?;
    chart::draw_all(&results, path.parent().unwrap_or(Path::new(".")))
}
