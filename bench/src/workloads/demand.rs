//! What fio cannot do: single pages, timed one by one.
//!
//! Pages are touched by a process of their own (`memfs-bench touch`), so that one that hangs is given up
//! on. For `demand` it reads pages of the second half of a file whose first page was read just before,
//! so that a background pull has begun to bring the file from its beginning; it stops when half of the
//! time that the file needs at the link's rate is over, before the pull gets there.

use super::{Extent, Measure, mib};
use crate::peers::{How, Session};
use crate::process::run_within;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE_BYTES: u64 = 4096;
/// Nothing that is measured takes longer.
const TOUCH_MAX: Duration = Duration::from_secs(120);
/// Read single pages of a file and print how many milliseconds each took
#[derive(Debug, clap::Args)]
pub struct TouchArgs {
    file: PathBuf,
    /// The place of the first
    offset: u64,
    /// Then random ones in its second half for so many milliseconds
    #[arg(long, default_value = "0")]
    random: u64,
    /// Then all of it
    #[arg(long)]
    all: bool,
    /// For chance
    #[arg(long, default_value = "1")]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn touch(args: &TouchArgs) -> Result<(), String> {
    let begin = Instant::now();
    let file = File::open(&args.file).map_err(|e| e.to_string())?;
    let mut page = [0; PAGE_BYTES as usize];
    let read =
        |page: &mut [u8], offset| file.read_exact_at(page, offset).map_err(|e| e.to_string());
    read(&mut page, args.offset)?;
    let millis = |since: Instant| since.elapsed().as_secs_f64() * 1000.0;
    println!("{}", millis(begin));

    let pages = file.metadata().map_err(|e| e.to_string())?.len() / PAGE_BYTES;
    // So that a read of one page asks for no more than that page.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).map_err(|e| e.to_string())?;
    let mut random = fastrand::Rng::with_seed(args.seed);
    while begin.elapsed() < Duration::from_millis(args.random) {
        let at = Instant::now();
        read(&mut page, random.u64(pages / 2..pages) * PAGE_BYTES)?;
        println!("{}", millis(at));
    }
    if args.all {
        let mut chunk = vec![0; 1 << 20];
        for offset in (0..pages * PAGE_BYTES).step_by(chunk.len()) {
            let len = chunk.len().min((pages * PAGE_BYTES - offset) as usize);
            read(&mut chunk[..len], offset)?;
        }
        println!("{}", millis(begin));
    }
    Ok(())
}

fn millis(session: &Session, file: &Path, args: &[String]) -> Result<Vec<f64>, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = session.work.command(&[], &program);
    command.arg("touch").arg(file).args(args);
    let text = run_within(
        &mut command,
        &session.place.room.join("touch.log"),
        TOUCH_MAX,
    )?;
    let millis: Result<Vec<f64>, _> = text.lines().map(str::parse).collect();
    millis.map_err(|_| format!("touch printed {text}"))
}

/// Milliseconds until a page at an offset is read, opening the file included.
pub fn page(session: &Session, file: &Path, offset: u64) -> Result<f64, String> {
    let millis = millis(session, file, &[offset.to_string()])?;
    let first = millis.first().ok_or("touch printed nothing")?;
    Ok(*first)
}

/// Faults beside a background pull.
pub fn run(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let mount = session.mount(How::default())?;
    let line = session.place.link.line().ok_or("the link has no rate")?;
    let half = extent.bytes as f64 / line / 2.0;
    let args = [
        "0".into(),
        format!("--random={}", (half * 1000.0) as u64),
        "--all".into(),
        format!("--seed={}", extent.seed),
    ];
    let mut millis = millis(session, &mount.file, &args)?;
    mount.unmount()?;
    let all = millis.pop().ok_or("touch printed nothing")?;
    let mut faults = millis.split_off(1);
    if faults.is_empty() {
        return Err("no fault within the time".into());
    }
    faults.sort_by(f64::total_cmp);
    let rank = |share: f64| faults[((faults.len() - 1) as f64 * share).round() as usize];
    Ok(vec![
        ("demand-p50", rank(0.5)),
        ("demand-p99", rank(0.99)),
        ("demand-pull", mib(extent.bytes as f64) / (all / 1000.0)),
    ])
}
