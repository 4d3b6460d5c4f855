//! Random stores to pages that are present: one program maps the file, loads every page of a region, then
//! changes some of them and waits until all is with the server.

use super::{Extent, Measure};
use crate::peers::{How, Session};
use crate::process::run_within;
use crate::sys::Mapping;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// Nothing that is measured takes longer, with all pages loaded before.
const STORES_MAX: Duration = Duration::from_secs(180);

/// Load a region of a mapping, change random pages of it, msync; prints the seconds after the load
#[derive(Debug, clap::Args)]
pub struct StoresArgs {
    file: PathBuf,
    /// Of the file, from its beginning
    #[arg(long)]
    bytes: usize,
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
    for offset in (0..len).step_by(PAGE_BYTES) {
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

/// Random stores to what is present.
pub fn run(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let mount = session.mount(How::default())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = session.work.command(&[], &program);
    command.arg("stores").arg(&mount.file);
    command.arg(format!("--bytes={}", extent.region));
    command.arg(format!("--count={}", extent.stores));
    command.arg(format!("--seed={}", extent.seed));
    let log = session.place.room.join("stores.log");
    let text = run_within(&mut command, &log, STORES_MAX)?;
    mount.unmount()?;
    let seconds: f64 = text
        .trim()
        .parse()
        .map_err(|_| format!("stores printed {text}"))?;
    Ok(vec![("stores", extent.stores as f64 / seconds)])
}
