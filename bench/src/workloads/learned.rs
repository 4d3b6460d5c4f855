//! A program that touches scattered places of a large file, where others have done so before.
//!
//! Three mounts one after the other, each with nothing in its cache, as on machines of their own: one that does
//! without what is learned, one that tells what it touches, and one that is brought it in that order.
//!
//! Pages are touched by a process of its own (`memfs-bench scatter`), so that one that hangs is given up on.

use super::{Extent, Measure};
use crate::peers::{How, Session};
use crate::process::run_within;
use crate::sys::Mapping;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// The name of the file, beside the one that all workloads use.
const FILE: &str = "scattered";
/// Its bytes, in those of that one: 1 GiB over a slow link, half of it where it is quick.
const TIMES: u64 = 4;
const PLACES: usize = 2000;
/// Nothing that is measured takes longer.
const SCATTER_MAX: Duration = Duration::from_secs(300);

/// Load bytes of random pages of a mapping, one after the other; prints how many seconds that took
#[derive(Debug, clap::Args)]
pub struct ScatterArgs {
    file: PathBuf,
    /// How many
    #[arg(long)]
    places: usize,
    /// For chance
    #[arg(long)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn scatter(args: &ScatterArgs) -> Result<(), String> {
    let begin = Instant::now();
    let file = File::open(&args.file).map_err(|e| e.to_string())?;
    let mapping = Mapping::random(&file).map_err(|e| e.to_string())?;
    let pages = mapping.len() / PAGE_BYTES;
    let mut random = fastrand::Rng::with_seed(args.seed);
    for _ in 0..args.places {
        std::hint::black_box(mapping.load(random.usize(0..pages) * PAGE_BYTES));
    }
    println!("{}", begin.elapsed().as_secs_f64());
    Ok(())
}

pub fn run(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let served = session.place.served.join(FILE);
    let made = make(&session.place.served.join(crate::peers::FILE), &served);
    let measured = made.map_err(|e| format!("{}: {e}", served.display()));
    let measured = measured.and_then(|()| measure(session, extent));
    fs::remove_file(&served).map_err(|e| e.to_string())?;
    measured
}

/// The other file's bytes, several times: nobody looks for that.
fn make(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = File::create(to)?;
    for _ in 0..TIMES {
        io::copy(&mut File::open(from)?, &mut file)?;
    }
    Ok(())
}

fn measure(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let seconds = |learn: bool| -> Result<f64, String> {
        let how = How {
            cold: true,
            forgetful: !learn,
            ..How::default()
        };
        let mount = session.mount(how)?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = session.work.command(&[], &program);
        command.arg("scatter").arg(mount.file.with_file_name(FILE));
        command.arg(format!("--places={PLACES}"));
        command.arg(format!("--seed={}", extent.seed));
        let log = session.place.room.join("scatter.log");
        let text = run_within(&mut command, &log, SCATTER_MAX)?;
        mount.unmount()?;
        let seconds = text.trim().parse();
        seconds.map_err(|_| format!("scatter printed {text}"))
    };
    let without = seconds(false)?;
    let first = seconds(true)?;
    let learned = seconds(true)?;
    Ok(vec![
        ("learned-without", without),
        ("learned-first", first),
        ("learned", learned),
        ("learned-times", without / learned),
    ])
}
