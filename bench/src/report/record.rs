//! The lines of a results file: one about the machine, one for each run, one for each cell of the table.

use super::{METRICS, Results};
use crate::link::Link;
use crate::peers::System;
use crate::process::run;
use crate::workloads::{Extent, Measure, Workload};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// Where it was measured, and of what.
    Machine(BTreeMap<String, String>),
    /// One run.
    Run(Run),
    /// What all runs of one thing gave.
    Cell(Cell),
}

/// One run.
#[derive(Serialize, Deserialize)]
pub struct Run {
    /// By name.
    pub link: String,
    /// By name.
    pub system: String,
    /// How it was run.
    pub settings: String,
    /// By name.
    pub workload: String,
    /// From 0.
    pub round: u32,
    /// Of the file.
    pub bytes: u64,
    /// Of the link.
    pub rtt_ms: f64,
    /// Bytes in a second that the link lets through.
    pub line_bytes: Option<f64>,
    /// By the names of metrics.
    pub measures: BTreeMap<String, f64>,
    /// Why there are none.
    pub error: Option<String>,
}

impl Run {
    /// From what a workload gave.
    pub fn new(
        link: &Link,
        system: System,
        workload: Workload,
        round: u32,
        extent: &Extent,
        outcome: Result<Vec<Measure>, String>,
    ) -> Run {
        let (measures, error) = match outcome {
            Ok(measures) => (measures, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Run {
            link: link.name().into(),
            system: system.name().into(),
            settings: system.settings(),
            workload: format!("{workload:?}").to_lowercase(),
            round,
            bytes: extent.bytes,
            rtt_ms: link.rtt().as_secs_f64() * 1000.0,
            line_bytes: link.line(),
            measures: measures
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
            error,
        }
    }
}

/// What all runs of one thing gave.
#[derive(Serialize, Deserialize)]
pub struct Cell {
    link: String,
    metric: String,
    unit: String,
    system: String,
    median: f64,
    values: Vec<f64>,
    /// Of the median to that of raw.
    ratio_to_raw: Option<f64>,
}

/// The machine, the kernel, and the versions of all programs.
pub fn machine(memfs: &Path) -> BTreeMap<String, String> {
    let mut about = BTreeMap::new();
    let mut add = |name: &str, value: String| about.insert(name.to_owned(), value);
    let said = |program: &Path, args: &[&str]| {
        // Some say their version on stderr, which is no matter here.
        let output = Command::new(program).args(args).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| {
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                text += &String::from_utf8_lossy(&output.stderr);
                text.lines().next().unwrap_or_default().to_owned()
            },
        )
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown");
    add("processor", model.to_owned());
    add(
        "processors",
        cpuinfo.matches("processor\t").count().to_string(),
    );
    add("kernel", said(Path::new("uname"), &["-srm"]));
    add(
        "load",
        fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
            .to_owned(),
    );
    add("date", said(Path::new("date"), &["-u", "+%F %H:%M"]));
    add("memfs", said(memfs, &["--version"]));
    let commit = run(Command::new("git").args(["describe", "--always", "--dirty"]));
    add("commit", commit.unwrap_or_default().trim().to_owned());
    for program in ["fio", "nbdkit", "nbdfuse", "rclone"] {
        add(program, said(Path::new(program), &["--version"]));
    }
    let sshfs = run(Command::new("sshfs").arg("--version")).unwrap_or_default();
    add(
        "sshfs",
        sshfs
            .lines()
            .find(|line| line.contains("SSHFS"))
            .unwrap_or_default()
            .into(),
    );
    add("ssh", said(Path::new("ssh"), &["-V"]));
    about
}

/// Adds a line for each cell, in place of those that were there.
pub fn write_cells(path: &Path, results: &Results) -> Result<(), String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let old = fs::read_to_string(path).map_err(|e| wrong(&e))?;
    let mut text = String::new();
    for line in old
        .lines()
        .filter(|line| !line.starts_with("{\"kind\":\"cell\""))
    {
        text += line;
        text.push('\n');
    }
    for link in &results.links {
        for metric in METRICS {
            for system in &results.systems {
                let Some(median) = results.median(link, metric.name, system) else {
                    continue;
                };
                let raw = results.raw(link, metric.name).filter(|_| metric.of_raw);
                let cell = Line::Cell(Cell {
                    link: link.clone(),
                    metric: metric.name.into(),
                    unit: metric.unit.into(),
                    system: system.clone(),
                    median,
                    values: results.values(link, metric.name, system).to_vec(),
                    ratio_to_raw: raw.map(|raw| median / raw),
                });
                let json = serde_json::to_string(&cell).map_err(|e| wrong(&e))?;
                writeln!(text, "{json}").map_err(|e| wrong(&e))?;
            }
        }
    }
    fs::write(path, text).map_err(|e| wrong(&e))
}
