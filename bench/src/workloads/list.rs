//! A directory of very many files: each name with its attributes, as `find -ls` has them, twice.
//!
//! It is listed by a process of its own (`memfs-bench list`), so that one that hangs is given up on.

use super::Measure;
use crate::peers::{How, Session};
use crate::process::run_within;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The directory, beside the file that all workloads use.
const DIRECTORY: &str = "many";
const FILES: usize = 100_000;
/// Nothing that is measured takes longer.
const LIST_MAX: Duration = Duration::from_secs(240);

/// List a directory with the attributes of all that is in it; prints how many seconds that took
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    directory: PathBuf,
    /// It has so many entries
    #[arg(long)]
    expect: usize,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn list(args: &ListArgs) -> Result<(), String> {
    let begin = Instant::now();
    let count = count(&args.directory).map_err(|e| e.to_string())?;
    let seconds = begin.elapsed().as_secs_f64();
    match count == args.expect {
        true => println!("{seconds}"),
        false => return Err(format!("{count} entries, not {}", args.expect)),
    }
    Ok(())
}

fn count(directory: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        std::hint::black_box(entry?.metadata()?);
        count += 1;
    }
    Ok(count)
}

pub fn run(session: &Session) -> Result<Vec<Measure>, String> {
    let served = session.place.served.join(DIRECTORY);
    let made = make(&served).map_err(|e| format!("{}: {e}", served.display()));
    let measured = made.and_then(|()| measure(session));
    fs::remove_dir_all(&served).map_err(|e| e.to_string())?;
    measured
}

fn make(served: &Path) -> io::Result<()> {
    fs::create_dir(served)?;
    (0..FILES)
        .try_for_each(|number| File::create(served.join(format!("file-{number:06}"))).map(drop))
}

fn measure(session: &Session) -> Result<Vec<Measure>, String> {
    let how = How {
        keep_names: true,
        ..How::default()
    };
    let mount = session.mount(how)?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let seconds = || -> Result<f64, String> {
        let mut command = session.work.command(&[], &program);
        command
            .arg("list")
            .arg(mount.file.with_file_name(DIRECTORY));
        command.arg(format!("--expect={FILES}"));
        let log = session.place.room.join("list.log");
        let text = run_within(&mut command, &log, LIST_MAX)?;
        let seconds = text.trim().parse();
        seconds.map_err(|_| format!("list printed {text}"))
    };
    let measures = vec![("list", seconds()?), ("list-again", seconds()?)];
    mount.unmount()?;
    Ok(measures)
}
