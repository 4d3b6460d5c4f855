//! `memfs completions`: what a shell needs to complete our command line.

use std::process::ExitCode;

/// Print the completions for a shell
///
/// For example: memfs completions bash > ~/.local/share/bash-completion/completions/memfs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "memfs", &mut script);
    super::print(String::from_utf8_lossy(&script).trim_end())
}
