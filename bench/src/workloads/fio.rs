//! fio: what it is told, and what it says.

use super::{Extent, mib};
use crate::peers::Session;
use crate::process::run_within;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// A run that was told when to end ends within so long after that, or hangs.
const GRACE: Duration = Duration::from_secs(60);

/// One run of fio.
pub struct Job {
    args: Vec<String>,
    mapped: bool,
    /// When it ends by itself at the latest.
    longest: Duration,
}

/// What came of it.
pub struct Outcome {
    /// MiB/s; of a write, until all is synced.
    pub speed: f64,
    /// Bytes done.
    pub bytes: f64,
}

impl Job {
    fn new(file: &Path, what: &str, block: &str, bytes: u64, extent: &Extent) -> Job {
        let args = [
            "--name=memfs-bench".into(),
            "--output-format=json".into(),
            format!("--filename={}", file.display()),
            format!("--rw={what}"),
            format!("--bs={block}"),
            format!("--size={bytes}"),
            format!("--randseed={}", extent.seed),
            "--thread".into(),
            // The mount is fresh; and what is read again is to be present.
            "--invalidate=0".into(),
            "--allow_file_create=0".into(),
            "--fallocate=none".into(),
        ];
        Job {
            args: args.into(),
            mapped: false,
            longest: Duration::ZERO,
        }
    }

    fn at_most(mut self, longest: Duration) -> Job {
        self.args
            .push(format!("--runtime={}ms", longest.as_millis()));
        self.longest = longest;
        self
    }

    /// read(2) from end to end.
    pub fn read(file: &Path, extent: &Extent) -> Job {
        Job::new(file, "read", "1M", extent.bytes, extent).at_most(extent.sequential_max)
    }

    /// write(2) from end to end, then fsync.
    pub fn write(file: &Path, extent: &Extent) -> Job {
        let mut job = Job::new(file, "write", "1M", extent.bytes, extent);
        job.args.push("--end_fsync=1".into());
        job.at_most(extent.sequential_max)
    }

    /// The same through a mapping, 64 KiB at a time.
    pub fn mapped(mut self) -> Job {
        self.mapped = true;
        self.args.push("--bs=64k".into());
        self
    }

    /// Runs it, counted with neither side.
    ///
    /// # Errors
    /// One line.
    pub fn run(mut self, session: &Session) -> Result<Outcome, String> {
        let engine = if self.mapped { "mmap" } else { "sync" };
        self.args.push(format!("--ioengine={engine}"));
        let mut command = session.work.command(&[], Path::new("fio"));
        command.args(&self.args).current_dir(session.place.room);
        let log = session.place.room.join("fio.log");
        let text = run_within(&mut command, &log, self.longest + GRACE)?;
        // Warnings may come first.
        let json = text.find('{').map(|at| &text[at..]).unwrap_or_default();
        let value: Value = serde_json::from_str(json).map_err(|e| format!("fio: {e}"))?;
        outcome(&value)
    }
}

fn outcome(value: &Value) -> Result<Outcome, String> {
    let job = &value["jobs"][0];
    let error = job["error"].as_i64().unwrap_or(-1);
    if error != 0 {
        return Err(format!("fio: error {error}"));
    }
    let side = match job["read"]["io_bytes"].as_f64() {
        Some(bytes) if bytes > 0.0 => &job["read"],
        _ => &job["write"],
    };
    let number = |name: &str| {
        let number = side[name].as_f64().filter(|number| *number > 0.0);
        number.ok_or_else(|| format!("fio tells no {name}"))
    };
    let (bytes, seconds) = (number("io_bytes")?, number("runtime")? / 1000.0);
    Ok(Outcome {
        speed: mib(bytes) / seconds,
        bytes,
    })
}
