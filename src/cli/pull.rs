//! `memfs pull`: bring files in whole.

use super::control::{Request, each};
use std::path::PathBuf;
use std::process::ExitCode;

/// Bring files in whole
///
/// Of a directory, all files in it and below. Without --wait they come in the background.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until they are here, with a progress bar
    #[arg(long)]
    wait: bool,
    /// Files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let wait = args.wait;
    each(&args.paths, |files| Request::Pull { files, wait })
}
