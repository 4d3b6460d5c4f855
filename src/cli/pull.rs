//! `memfs pull`: bring files in, whole or a part of each.

use super::control::{Part, Request, each};
use super::{EXIT_USAGE, complain};
use crate::units::{format_size, parse_size};
use std::path::PathBuf;
use std::process::ExitCode;

/// Bring files in
///
/// Whole, unless --from or --to say otherwise. Of a directory, all files in it and below. Without --wait they come in the background.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until they are here, with a progress bar
    #[arg(long)]
    wait: bool,
    /// Not what lies before this place in a file
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0", hide_default_value = true)]
    from: u64,
    /// Not what lies from this place on
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    to: Option<u64>,
    /// Files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let wait = args.wait;
    let (from, to) = (args.from, args.to.unwrap_or(u64::MAX));
    if from >= to {
        let (from, to) = (format_size(from), format_size(to));
        complain(format!(
            "--from {from} --to {to} is nothing: give a --to that comes after --from"
        ));
        return ExitCode::from(EXIT_USAGE);
    }
    let part = Part { from, to };
    each(&args.paths, |files| Request::Pull { files, part, wait })
}
