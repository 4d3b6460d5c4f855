//! `memfs-bench run`: links, one after the other; on each several rounds of all workloads, and of each
//! workload all systems right after each other, so that what else goes on in the machine falls on all.
//!
//! A run that fails is a result as well: it is recorded with its reason, and the rest goes on.

use crate::link::Link;
use crate::peers::{self, FILE, Place, Session, System};
use crate::process::{Elsewhere, First, catch_interrupts, interrupted, remove_groups};
use crate::report::{Line, Run, machine};
use crate::workloads::{self, Extent, Workload};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// In memory, so that no disk is measured.
const ROOM: &str = "/dev/shm";

/// Measure, then print tables, write JSON lines and draw charts
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which links: loopback, or a round-trip time, a rate, a loss, 'jumbo' (frames), joined by '-'
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "loopback,0.2ms,40ms-500mbit,40ms-200mbit-loss"
    )]
    links: Vec<String>,
    /// Which systems; without it all
    #[arg(long, value_delimiter = ',', value_enum)]
    systems: Vec<System>,
    /// Which workloads; without it all
    #[arg(long, value_delimiter = ',', value_enum)]
    workloads: Vec<Workload>,
    /// Smaller files, shorter runs, one round
    #[arg(long)]
    quick: bool,
    /// How often each is measured; without it 3 times
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Where results go
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
    /// The memfs program; without it the one beside this program
    #[arg(long)]
    memfs: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn run(args: &Args) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("run needs root: it makes network namespaces, mounts and drops caches".into());
    }
    catch_interrupts().map_err(|e| e.to_string())?;
    let _first = First::new();
    let memfs = program(args)?;
    let home = TempDir::with_prefix_in("memfs-bench-", ROOM).map_err(|e| format!("{ROOM}: {e}"))?;
    peers::prepare(home.path())?;

    fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let path = args.out.join("results.jsonl");
    let file = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut bench = Bench {
        systems: all_unless(&args.systems),
        workloads: all_unless(&args.workloads),
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 3 }),
        quick: args.quick,
        memfs,
        home,
        results: BufWriter::new(file),
        progress: ProgressBar::no_length(),
    };
    bench.record(&Line::Machine(machine(&bench.memfs)))?;
    let outcome = bench.run_all(&args.links);
    bench.progress.finish_and_clear();
    drop(bench);
    remove_groups();
    // What was measured until then is shown all the same.
    crate::report::show(&path)?;
    outcome
}

fn program(args: &Args) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let found = args
        .memfs
        .clone()
        .unwrap_or_else(|| own.with_file_name("memfs"));
    found
        .canonicalize()
        .map_err(|e| format!("{}: {e}", found.display()))
}

fn all_unless<T: clap::ValueEnum>(chosen: &[T]) -> Vec<T> {
    match chosen {
        [] => T::value_variants().to_vec(),
        chosen => chosen.to_vec(),
    }
}

struct Bench {
    systems: Vec<System>,
    workloads: Vec<Workload>,
    rounds: u32,
    quick: bool,
    memfs: PathBuf,
    home: TempDir,
    results: BufWriter<File>,
    progress: ProgressBar,
}

impl Bench {
    fn run_all(&mut self, links: &[String]) -> Result<(), String> {
        // A few of them may be left out.
        let pairs = self.workloads.len() * self.systems.len();
        let runs = (pairs * links.len()) as u64 * u64::from(self.rounds);
        self.progress = ProgressBar::new(runs);
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta} {msg}");
        self.progress.set_style(style.map_err(|e| e.to_string())?);
        for name in links {
            let link = Link::start(name)?;
            self.run_link(&link)?;
        }
        Ok(())
    }

    fn run_link(&mut self, link: &Link) -> Result<(), String> {
        let extent = self.extent(link);
        let served = self.home.path().join("served");
        serve_random_bytes(&served, extent.bytes)?;
        for round in 0..self.rounds {
            drop_caches()?;
            for workload in self.workloads.clone() {
                for system in self.systems.clone() {
                    if workload.leaves_out(system, link).is_some() {
                        self.progress.inc(1);
                        continue;
                    }
                    let name = format!("{} {workload:?} {}", link.name(), system.name());
                    self.progress.set_message(name);
                    let extent = Extent {
                        seed: u64::from(round) + 1,
                        ..extent
                    };
                    let outcome = self.run_one(link, &served, workload, system, &extent);
                    if interrupted() {
                        return Err("interrupted".into());
                    }
                    let run = Run::new(link, system, workload, round, &extent, outcome);
                    if let Some(error) = &run.error {
                        let text = format!("{} {} {}: {error}", run.link, run.workload, run.system);
                        self.progress.suspend(|| eprintln!("memfs-bench: {text}"));
                    }
                    self.record(&Line::Run(run))?;
                    self.progress.inc(1);
                }
            }
        }
        Ok(())
    }

    fn run_one(
        &self,
        link: &Link,
        served: &Path,
        workload: Workload,
        system: System,
        extent: &Extent,
    ) -> Result<Vec<workloads::Measure>, String> {
        let room = TempDir::with_prefix_in("room-", self.home.path()).map_err(|e| e.to_string())?;
        let place = Place {
            link,
            memfs: &self.memfs,
            served,
            home: self.home.path(),
            room: room.path(),
        };
        let elsewhere = Elsewhere::begin();
        let session = Session::start(system, &place)?;
        let mut measures = workloads::run(workload, &session, extent)?;
        let busy = elsewhere.and_then(|elsewhere| elsewhere.end());
        measures.extend(busy.map(|busy| ("busy-elsewhere", busy)));
        Ok(measures)
    }

    /// How much is done over a link: what takes seconds, not minutes.
    fn extent(&self, link: &Link) -> Extent {
        let slow = link.line().is_some();
        let mib = |count: u64| count << 20;
        let seconds = Duration::from_secs;
        let (bytes, region, sequential_max, random, stores) = match (slow, self.quick) {
            (false, false) => (mib(1024), mib(256), seconds(20), seconds(4), 4096),
            (false, true) => (mib(256), mib(64), seconds(5), seconds(2), 4096),
            (true, false) => (mib(256), mib(64), seconds(10), seconds(5), 4096),
            (true, true) => (mib(128), mib(32), seconds(5), seconds(3), 512),
        };
        Extent {
            bytes,
            region,
            sequential_max,
            random,
            stores,
            seed: 1,
        }
    }

    fn record(&mut self, line: &Line) -> Result<(), String> {
        let text = serde_json::to_string(line).map_err(|e| e.to_string())?;
        let written = writeln!(self.results, "{text}").and_then(|()| self.results.flush());
        written.map_err(|e| format!("results: {e}"))
    }
}

fn serve_random_bytes(folder: &Path, bytes: u64) -> Result<(), String> {
    let written = fs::create_dir_all(folder).and_then(|()| {
        let mut file = File::create(folder.join(FILE))?;
        let mut random = fastrand::Rng::with_seed(bytes);
        let mut chunk = vec![0; 1 << 20];
        for _ in 0..bytes >> 20 {
            random.fill(&mut chunk);
            file.write_all(&chunk)?;
        }
        Ok(())
    });
    written.map_err(|e| format!("{}: {e}", folder.display()))
}

/// Each run has its own mounts and files in memory, none of which is cached before; this is for the
/// programs and for what they look up.
fn drop_caches() -> Result<(), String> {
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("drop_caches: {e}"))
}
