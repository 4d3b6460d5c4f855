//! `memfs man`: the manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

/// Write the manual pages into a directory
///
/// One for memfs and one for each command. For example: memfs man /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to; made if it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let written = std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(super::command(), &args.directory));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(format!("{}: {error}", args.directory.display())),
    }
}
