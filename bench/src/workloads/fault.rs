//! Random faults: one thread or several load bytes of a mapping, no page twice, and time each load.
//!
//! They are made by a process of their own (`memfs-bench fault`), so that one that hangs is given up on.

use super::{Extent, Measure};
use crate::peers::{How, Session};
use crate::process::run_within;
use crate::sys::Mapping;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// A process that was told when to end ends within so long after that, or hangs.
const GRACE: Duration = Duration::from_secs(60);

/// Load bytes of random pages of a mapping; prints p50 and p99 in µs, and loads in a second
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
    let (mut nanos, seconds) = thread::scope(|scope| {
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
        (loads, begin.elapsed().as_secs_f64())
    });
    nanos.sort_unstable();
    let last = nanos.len().saturating_sub(1);
    let rank = |share: f64| nanos.get((last as f64 * share).round() as usize);
    let (Some(p50), Some(p99)) = (rank(0.5), rank(0.99)) else {
        return Err("no page was loaded".into());
    };
    let micros = |nanos: &u64| *nanos as f64 / 1000.0;
    println!(
        "{} {} {}",
        micros(p50),
        micros(p99),
        nanos.len() as f64 / seconds
    );
    Ok(())
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

/// Random reads through a mapping that was told so, by `threads` threads.
pub fn run(session: &Session, extent: &Extent, threads: usize) -> Result<Vec<Measure>, String> {
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
    let text = run_within(&mut command, &log, extent.random + GRACE)?;
    mount.unmount()?;
    let values: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    let Ok([p50, p99, rate]) = values.as_deref() else {
        return Err(format!("fault printed {text}"));
    };
    let names = match threads {
        1 => ["random-p50", "random-p99", "random-rate"],
        _ => ["random8-p50", "random8-p99", "random8-rate"],
    };
    Ok(names.into_iter().zip([*p50, *p99, *rate]).collect())
}
