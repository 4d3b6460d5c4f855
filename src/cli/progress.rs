//! How far it is: a bar on a terminal; elsewhere a line now and then, so that a log shows that it goes on.

use crate::units::format_size;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Files.
    Files,
}

/// How far something is, shown on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    unit: Unit,
    last: Instant,
}

impl Progress {
    /// Shows nothing yet. `what`: `pushing`, `pulling`.
    pub fn new(what: &'static str, unit: Unit) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length().with_prefix(what);
            let template = match unit {
                Unit::Bytes => {
                    "{prefix} [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"
                }
                Unit::Files => "{prefix} [{wide_bar}] {pos}/{len} files",
            };
            // Were the template wrong, indicatif's own would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Progress {
            bar,
            what,
            unit,
            last: Instant::now(),
        }
    }

    /// So many bytes of so many.
    pub fn at(&mut self, done: u64, total: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            None if self.last.elapsed() >= LINE_EVERY && total > 0 => {
                self.last = Instant::now();
                let told = match self.unit {
                    Unit::Bytes => format!("{} of {}", format_size(done), format_size(total)),
                    Unit::Files => format!("{done} of {total} files"),
                };
                super::complain(format!("{}: {told}", self.what));
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
