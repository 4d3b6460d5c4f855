//! Measures memfs and its peers over links of every kind.
//!
//! ```text
//! run ── link (namespaces, a relay) ── for each round, workload and system:
//!          peers: start the server on one side, mount on the other
//!          workloads: fio and our own on the mounted file
//!        report: JSON lines, table, targets, charts
//! ```
//!
//! | folder | owns |
//! |---|---|
//! | `sys` | all `unsafe` |
//! | `process` | other programs: their groups, ends, processor time |
//! | `link` | two network namespaces and what lies between them |
//! | `raw` | a bare transfer, the limit |
//! | `peers` | how each system serves and mounts |
//! | `workloads` | what is measured |
//! | `report` | what came of it |
//! | `runner` | goes through all of it |

mod link;
mod peers;
mod process;
mod raw;
mod report;
mod runner;
mod sys;
mod workloads;

use clap::Parser;
use std::process::ExitCode;

/// Measure memfs beside its peers
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
enum Command {
    Link(link::Args),
    Run(runner::Args),
    Report(report::Args),
    #[command(hide = true)]
    RawServe(raw::ServeArgs),
    #[command(hide = true)]
    Raw(raw::Args),
    #[command(hide = true)]
    Touch(workloads::TouchArgs),
    #[command(hide = true)]
    Fault(workloads::FaultArgs),
    #[command(hide = true)]
    Stores(workloads::StoresArgs),
    #[command(hide = true)]
    Scatter(workloads::ScatterArgs),
    #[command(hide = true)]
    List(workloads::ListArgs),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Link(args) => link::run(&args),
        Command::Run(args) => runner::run(&args),
        Command::Report(args) => report::run(&args),
        Command::RawServe(args) => raw::serve(&args),
        Command::Raw(args) => raw::transfer(&args),
        Command::Touch(args) => workloads::touch(&args),
        Command::Fault(args) => workloads::fault(&args),
        Command::Stores(args) => workloads::stores(&args),
        Command::Scatter(args) => workloads::scatter(&args),
        Command::List(args) => workloads::list(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memfs-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
