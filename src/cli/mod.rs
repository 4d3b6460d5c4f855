//! The commands: one file each. They read what was typed, wire the parts together, and say what came
//! of it: results on stdout, progress and complaints on stderr, one line each.
//!
//! Exit codes: 0 it went well, 1 it did not, 2 what was typed is wrong; as `mount.memfs` those of
//! `mount(8)`.

mod completions;
mod conflicts;
mod control;
mod flush;
mod forget;
pub mod key;
mod log;
mod man;
mod mount;
mod progress;
mod pull;
pub mod serve;
mod status;
mod umount;

use crate::frontend::fuse::{HELPER_NAME, help};
use clap::{CommandFactory as _, Parser};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// What was typed is wrong.
const EXIT_USAGE: u8 = 2;

/// What `mount(8)` calls us as: for a new mount, and for one whose type is in `/proc/mounts`.
const MOUNT_HELPER_NAMES: [&str; 2] = ["mount.memfs", "mount.fuse.memfs"];

const EXAMPLES: &str = "\
Examples:
  memfs mount host:/srv/data /mnt            a directory of another machine, over your own ssh
  memfs mount memfs://host/ /mnt             what 'memfs serve' serves there
  memfs mount ./data /mnt                    a directory of this machine
  memfs status /mnt                          what is here, what is on its way
  memfs umount /mnt                          send the rest, then unmount
  memfs serve --listen 0.0.0.0:4433 /srv/data

Log messages go to stderr: -v for more of them, or MEMFS_LOG=memfs=debug and the like.";

/// Files of another machine as files of this one, to be read, written and mapped while they are still
/// on their way
#[derive(Debug, Parser)]
#[command(name = "memfs", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Mount(Box<mount::Args>),
    Serve(serve::Args),
    Umount(umount::Args),
    Status(status::Args),
    Pull(pull::Args),
    Flush(flush::Args),
    Forget(forget::Args),
    Conflicts(conflicts::Args),
    Key(key::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|name| MOUNT_HELPER_NAMES.iter().any(|helper| name == *helper)) {
        return mount::run_as_helper(args.split_off(1));
    }
    if called == Some(OsStr::new(HELPER_NAME)) {
        return match help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error),
        };
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Command::Mount(args) = cli.command {
        return mount::run(*args, cli.verbose);
    }
    if let Err(error) = log::start(cli.verbose, None) {
        return fail(error);
    }
    match cli.command {
        // It has log options of its own.
        Command::Mount(_) => ExitCode::FAILURE,
        Command::Serve(args) => serve::run(args),
        Command::Key(args) => key::run(args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Flush(args) => flush::run(&args),
        Command::Forget(args) => forget::run(&args),
        Command::Conflicts(args) => conflicts::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// The whole command line, for what is generated from it.
fn command() -> clap::Command {
    Cli::command()
}

/// Complains, in one line.
fn fail(error: impl Display) -> ExitCode {
    complain(error);
    ExitCode::FAILURE
}

/// Writes a line on stderr. A reader that went away is no error.
fn complain(error: impl Display) {
    use std::io::Write as _;
    let line = without_numbers(&error.to_string());
    let _ = writeln!(io::stderr(), "memfs: {line}");
}

/// An errno's number tells people nothing that its text does not.
fn without_numbers(text: &str) -> String {
    let mut line = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        let digits = after.trim_start_matches(|c: char| c.is_ascii_digit());
        line.push_str(before);
        rest = match digits.strip_prefix(')') {
            Some(after) => after,
            None => {
                line.push_str(" (os error ");
                after
            }
        };
    }
    line.push_str(rest);
    line
}

/// What clap has to say: help and version as they are, a complaint as one line.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    if let DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand = error.kind() {
        let code = printed(error.print());
        return match error.use_stderr() {
            true => ExitCode::from(EXIT_USAGE),
            false => code,
        };
    }
    complain(one_line(error));
    ExitCode::from(EXIT_USAGE)
}

/// clap's complaint without its decoration and what follows it, but for what may have been meant.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let told = text.lines().take_while(|line| !line.is_empty());
    let line = told.map(str::trim).collect::<Vec<_>>().join(" ");
    let mut line = line.strip_prefix("error: ").unwrap_or(&line).to_owned();
    let tips = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    for tip in tips.filter(|tip| tip.contains("similar")) {
        line.push_str("; ");
        line.push_str(tip);
    }
    line
}

/// Prints a result, and tells how that went.
fn print(text: impl Display) -> ExitCode {
    printed(try_print(text))
}

/// Prints a result.
fn try_print(text: impl Display) -> io::Result<()> {
    use std::io::Write as _;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// The exit code of a print. A reader that has read enough is no error, and nobody is told of it.
fn printed(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(format!("standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Lets this process have as many files open as it may, not only as many as it usually has.
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn numbers_of_errors_are_left_out() {
        let error = format!("a: {}; b", std::io::Error::from_raw_os_error(2));
        assert_eq!(without_numbers(&error), "a: No such file or directory; b");
        assert_eq!(without_numbers("x (os error y"), "x (os error y");
    }

    #[test]
    fn complaints_are_one_line() {
        let bad = [
            "memfs mount --push-interval x a b",
            "memfs mount a",
            "memfs nothing",
            "memfs status --jsno",
            "memfs mount --idmap x a b",
        ];
        for line in bad {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            let told = one_line(&error);
            assert!(!told.contains('\n') && !told.starts_with("error"), "{told}");
            assert!(told.len() > 20, "{told}");
        }
    }
}
