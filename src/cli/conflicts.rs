//! `memfs conflicts`: what is kept beside files that others have changed.

use super::control::{Client, Event, Request, Settle, find};
use super::{fail, print};
use crate::node::replica::Conflict;
use crate::units::format_size;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// List, or settle, what was not pushed of files that others have changed meanwhile
///
/// Where the process of a mount ends before it could push everything, the next mount of the source pushes the rest.
/// If others have changed a file in between, their version stays the file, and what was stored here is kept
/// beside it until it is pushed over theirs, or dropped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: an array of objects
    #[arg(long)]
    json: bool,
    /// Push what is kept of this file over what is there now; PATH as it is listed
    #[arg(long, value_name = "PATH", conflicts_with = "drop")]
    keep_mine: Option<String>,
    /// Drop what is kept of this file; PATH as it is listed
    #[arg(long, value_name = "PATH")]
    drop: Option<String>,
    /// Where it is mounted, or anything below
    mountpoint: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let settle = match (&args.keep_mine, &args.drop) {
        (Some(path), _) => Some((path, Settle::KeepMine(path.clone()))),
        (None, Some(path)) => Some((path, Settle::Drop(path.clone()))),
        (None, None) => None,
    };
    let path = settle.as_ref().map(|(path, _)| path.to_string());
    match ask(args, settle.map(|(_, settle)| settle)) {
        Ok(Ok(_)) if path.is_some() => ExitCode::SUCCESS,
        Ok(Ok(conflicts)) => show(args, &conflicts),
        Ok(Err(errno)) => {
            let why = std::io::Error::from_raw_os_error(errno);
            fail(format!("{}: {why}", path.unwrap_or_default()))
        }
        Err(error) => fail(error),
    }
}

/// What there is afterwards, or why it could not be settled.
fn ask(args: &Args, settle: Option<Settle>) -> Result<Result<Vec<Conflict>, i32>, String> {
    let mount = find(&args.mountpoint)?;
    let mut client = Client::connect(&mount)?;
    client.ask(&Request::Conflicts { settle })?;
    match client.next()? {
        Some(Event::Conflicts(conflicts)) => Ok(Ok(conflicts)),
        Some(Event::Failed { errno, .. }) => Ok(Err(errno)),
        _ => Err("the process of the mount says nothing".into()),
    }
}

fn show(args: &Args, conflicts: &[Conflict]) -> ExitCode {
    if args.json {
        return match serde_json::to_string(conflicts) {
            Ok(json) => print(json),
            Err(error) => fail(error),
        };
    }
    let mut text = String::new();
    for conflict in conflicts {
        let bytes = format_size(conflict.dirty_bytes);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{bytes:>10}  {}", conflict.path);
    }
    match text.is_empty() {
        true => ExitCode::SUCCESS,
        false => print(text.trim_end()),
    }
}
