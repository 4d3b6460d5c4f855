//! Random faults: one thread or several load bytes of a mapping, no page twice, and time each load.
//!
//! They are made by a process of their own (`memfs-bench fault`), so that one that hangs is given up on. The bare transfer
//! has exchanges of a page instead.

use super::{Effort, Extent, Measure};
use crate::peers::{How, Session, System};
use crate::process::run_within;
use crate::sys::Mapping;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// A process that was told when to end ends within so long after that, or hangs.
const GRACE: Duration = Duration::from_secs(60);

/// Load bytes of random pages of a mapping; prints p50 and p99 in µs, loads in a second and in all
#[derive(Debug, clap::Args)]
pub struct FaultArgs {
    file: PathBuf,
    /// At the same time
    #[arg(long)]
    threads: usize,
    /// For so long, or until every page was loaded
    #[arg(long)]
    millis: u64,
    /// For chance
    #[arg(long)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn fault(args: &FaultArgs) -> Result<(), String> {
    let file = File::open(&args.file).map_err(|e| e.to_string())?;
    let mapping = Mapping::random(&file).map_err(|e| e.to_string())?;
    let mut pages: Vec<usize> = (0..mapping.len() / PAGE_BYTES).collect();
    fastrand::Rng::with_seed(args.seed).shuffle(&mut pages);
    let longest = Duration::from_millis(args.millis);
    let share = pages.len().div_ceil(args.threads.max(1)).max(1);
    let ready = Barrier::new(pages.chunks(share).len() + 1);
    let (nanos, seconds) = thread::scope(|scope| {
        let threads: Vec<_> = pages
            .chunks(share)
            .map(|share| {
                scope.spawn(|| {
                    ready.wait();
                    load(&mapping, share, longest)
                })
            })
            .collect();
        ready.wait();
        let begin = Instant::now();
        // A thread that panicked has said so.
        let loads = threads.into_iter().filter_map(|thread| thread.join().ok());
        let loads: Vec<u64> = loads.flatten().collect();
        (loads, begin.elapsed())
    });
    let latencies = Latencies::new(nanos, seconds).ok_or("no page was loaded")?;
    println!("{latencies}");
    Ok(())
}

/// How long what was done again and again took.
pub struct Latencies {
    /// In µs.
    p50: f64,
    p99: f64,
    /// In a second.
    rate: f64,
    count: f64,
}

impl Latencies {
    /// Of so many nanoseconds each, in such a time in all. `None` of none.
    pub fn new(mut nanos: Vec<u64>, all: Duration) -> Option<Latencies> {
        nanos.sort_unstable();
        let last = nanos.len().checked_sub(1)?;
        let rank = |share: f64| nanos[(last as f64 * share).round() as usize] as f64 / 1000.0;
        Some(Latencies {
            p50: rank(0.5),
            p99: rank(0.99),
            rate: nanos.len() as f64 / all.as_secs_f64(),
            count: nanos.len() as f64,
        })
    }

    /// As another process has printed them.
    fn read(text: &str) -> Result<Latencies, String> {
        let values: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
        match values.as_deref() {
            Ok(&[p50, p99, rate, count]) => Ok(Latencies {
                p50,
                p99,
                rate,
                count,
            }),
            _ => Err(format!("no latencies: {text}")),
        }
    }

    fn measures(&self, threads: usize) -> Vec<Measure> {
        let names = match threads {
            1 => ["random-p50", "random-p99", "random-rate"],
            _ => ["random8-p50", "random8-p99", "random8-rate"],
        };
        let values = [self.p50, self.p99, self.rate];
        names.into_iter().zip(values).collect()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Latencies {
            p50,
            p99,
            rate,
            count,
        } = self;
        write!(f, "{p50} {p99} {rate} {count}")
    }
}

/// Nanoseconds that each load took.
fn load(mapping: &Mapping, pages: &[usize], longest: Duration) -> Vec<u64> {
    let begin = Instant::now();
    let mut nanos = Vec::with_capacity(pages.len());
    let mut now = begin;
    for page in pages {
        if now - begin >= longest {
            break;
        }
        std::hint::black_box(mapping.load(page * PAGE_BYTES));
        let then = std::mem::replace(&mut now, Instant::now());
        nanos.push((now - then).as_nanos() as u64);
    }
    nanos
}

/// What another process has printed, and what it took.
fn measured(
    session: &Session,
    effort: Effort,
    text: &str,
    threads: usize,
) -> Result<Vec<Measure>, String> {
    let latencies = Latencies::read(text)?;
    let mut measures = latencies.measures(threads);
    if threads == 1 && session.system != System::Local {
        let names = ["random-cpu-client", "random-cpu-server"];
        measures.extend(effort.end(session, latencies.count, 1e6, names));
    }
    Ok(measures)
}

/// Random reads through a mapping that was told so, by `threads` threads.
pub fn run(session: &Session, extent: &Extent, threads: usize) -> Result<Vec<Measure>, String> {
    if session.system == System::Raw {
        let effort = Effort::begin(session);
        let text = session.exchange(PAGE_BYTES as u64, extent.random, threads)?;
        return measured(session, effort, &text, threads);
    }
    let how = How {
        demand: true,
        ..How::default()
    };
    let mount = session.mount(how)?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = session.work.command(&[], &program);
    command.arg("fault").arg(&mount.file);
    command.arg(format!("--threads={threads}"));
    command.arg(format!("--millis={}", extent.random.as_millis()));
    command.arg(format!("--seed={}", extent.seed));
    let log = session.place.room.join("fault.log");
    let effort = Effort::begin(session);
    let text = run_within(&mut command, &log, extent.random + GRACE)?;
    let measures = measured(session, effort, &text, threads);
    mount.unmount()?;
    measures
}
