//! `memfs key`: show this user's public key, let another one in.

use super::{EXIT_USAGE, complain, print};
use crate::transport::{Authorized, Grant, Identity, KeyError, PublicKey};
use crate::wire::RelPath;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show this user's public key, or let another user's key in
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the public key, and its fingerprint to stderr; make a key if there is none
    Show {
        /// Use this private key
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Print an object with both instead
        #[arg(long)]
        json: bool,
    },
    /// Let a key mount what this user serves
    ///
    /// It counts from the next connection on. With options it stands in the file as 'read-only,subtree="DIR"
    /// memfs-ed25519 BASE64 comment'; a line with any other option lets nobody in. The server's own key is always
    /// let in for everything.
    Authorize {
        /// A public key as 'memfs key' prints it: memfs-ed25519 BASE64, and a comment if you like
        #[arg(required = true, num_args = 1.., value_name = "KEY")]
        key: Vec<String>,
        /// Add it to this file instead of ~/.config/memfs/authorized_keys
        #[arg(long, value_name = "FILE")]
        authorized: Option<PathBuf>,
        /// Refuse this key's changes
        #[arg(long)]
        read_only: bool,
        /// Let it see this directory and what is below, and nothing else: its path below what is served
        #[arg(long, value_name = "DIR", value_parser = Grant::parse_subtree)]
        subtree: Option<RelPath>,
    },
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let show = Command::Show {
        identity: None,
        json: false,
    };
    let done = match args.command.unwrap_or(show) {
        Command::Show { identity, json } => run_show(identity, json),
        Command::Authorize {
            key,
            authorized,
            read_only,
            subtree,
        } => {
            let subtree = subtree.unwrap_or_default();
            run_authorize(&key.join(" "), authorized, &Grant { read_only, subtree })
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            match error {
                KeyError::Public(_) => ExitCode::from(EXIT_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run_show(identity: Option<PathBuf>, json: bool) -> Result<ExitCode, KeyError> {
    let key = match identity {
        Some(path) => Identity::load_or_create(&path)?,
        None => Identity::load_default()?,
    }
    .public();
    let fingerprint = key.fingerprint();
    if json {
        let key = key.to_string();
        return Ok(print(
            serde_json::json!({ "key": key, "fingerprint": fingerprint }),
        ));
    }
    let code = print(key);
    // For people: whoever does not want it, closes stderr.
    let _ = writeln!(std::io::stderr(), "{fingerprint}");
    Ok(code)
}

fn run_authorize(
    typed: &str,
    authorized: Option<PathBuf>,
    grant: &Grant,
) -> Result<ExitCode, KeyError> {
    // The comment begins after the second word.
    let mut words = typed.split_ascii_whitespace();
    let two: Vec<&str> = words.by_ref().take(2).collect();
    let key: PublicKey = two.join(" ").parse()?;
    let comment = words.collect::<Vec<_>>().join(" ");
    let path = match authorized {
        Some(path) => path,
        None => Authorized::default_path()?,
    };
    let added = Authorized::authorize(&path, &key, grant, &comment)?;
    let (path, fingerprint) = (path.display(), key.fingerprint());
    match added {
        true => complain(format!("{fingerprint} is now let in ({path})")),
        false => complain(format!("{fingerprint} was let in already ({path})")),
    }
    Ok(ExitCode::SUCCESS)
}
