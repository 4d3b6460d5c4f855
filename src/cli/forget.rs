//! `memfs forget`: drop the copies of files.

use super::control::{Request, each};
use std::path::PathBuf;
use std::process::ExitCode;

/// Drop the copies of files, here and in the kernel; what is dirty is pushed first
///
/// A file of a mount with --immutable that a program has open or mapped may be busy: then its copy stays.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories on a mount; of a directory, all files in it and below
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    each(&args.paths, |files| Request::Forget { files })
}
