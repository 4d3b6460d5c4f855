//! `memfs flush`: push what is dirty of files.

use super::control::{Request, each};
use std::path::PathBuf;
use std::process::ExitCode;

/// Push what is dirty of files now, and wait until the other side has it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories on a mount; of a directory, all files in it and below
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    each(&args.paths, |files| Request::Flush { files })
}
