//! Random stores to pages that are present: one program maps the file, loads every page of a region, then
//! changes some of them and waits until all is with the server. Then another does the same without loading
//! anything: for a system that lets go of its pages when a file is opened they are not present any more.

use super::{Extent, Measure};
use crate::peers::{How, Session};
use crate::process::run_within;
use crate::sys::Mapping;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// 4096 round trips of 40 ms and loading take less.
const STORES_MAX: Duration = Duration::from_secs(240);

/// Change random pages of a mapping, then msync; prints how many seconds that took
#[derive(Debug, clap::Args)]
pub struct StoresArgs {
    file: PathBuf,
    /// Of the file, from its beginning
    #[arg(long)]
    bytes: usize,
    /// First load all of that
    #[arg(long)]
    load: bool,
    /// Pages that are changed, all of each
    #[arg(long)]
    count: usize,
    /// For chance
    #[arg(long)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn stores(args: &StoresArgs) -> Result<(), String> {
    let file = OpenOptions::new().read(true).write(true).open(&args.file);
    let file = file.map_err(|e| e.to_string())?;
    let mapping = Mapping::writable(&file).map_err(|e| e.to_string())?;
    let len = args.bytes.min(mapping.len());
    for offset in (0..len).step_by(PAGE_BYTES).filter(|_| args.load) {
        std::hint::black_box(mapping.load(offset));
    }
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut pages: Vec<usize> = (0..len / PAGE_BYTES).collect();
    random.shuffle(&mut pages);
    let mut page = [0; PAGE_BYTES];
    random.fill(&mut page);
    let begin = Instant::now();
    for at in pages.iter().take(args.count) {
        mapping.store(at * PAGE_BYTES, &page);
    }
    mapping.sync().map_err(|e| e.to_string())?;
    println!("{}", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Random stores to what is present, then by a program that opens the file anew.
pub fn run(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let mount = session.mount(How::default())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut measures = Vec::new();
    for (name, load) in [("stores", true), ("stores-reopened", false)] {
        let mut command = session.work.command(&[], &program);
        command.arg("stores").arg(&mount.file);
        command.arg(format!("--bytes={}", extent.region));
        command.arg(format!("--count={}", extent.stores));
        // Other places than the ones that were just changed.
        command.arg(format!("--seed={}", 2 * extent.seed + u64::from(load)));
        if load {
            command.arg("--load");
        }
        let log = session.place.room.join("stores.log");
        let text = run_within(&mut command, &log, STORES_MAX)?;
        let seconds: Result<f64, _> = text.trim().parse();
        let seconds = seconds.map_err(|_| format!("stores printed {text}"))?;
        measures.push((name, extent.stores as f64 / seconds));
    }
    mount.unmount()?;
    Ok(measures)
}
