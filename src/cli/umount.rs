//! `memfs umount`: push what is dirty, then unmount.

use super::control::{Client, Event, Left, Request, find_at, remove_socket};
use super::progress::{Progress, Unit};
use super::{complain, fail};
use crate::frontend::fuse::mounts::Mount;
use crate::frontend::fuse::unmount;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// So long the process of the mount may take to end once it has said everything.
const END_SECONDS_MAX: i64 = 10;
/// So long it may say nothing while it pushes; it tells several times a second how far it is.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Push what is dirty, then unmount
///
/// What cannot be pushed is named, and the mount stays, unless with --force.
/// A plain 'umount' or 'fusermount3 -u' works as well; the rest is then pushed in the background.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Unmount although it is in use, or although not everything can be pushed
    #[arg(long)]
    force: bool,
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let outcome = find_at(&args.mountpoint).and_then(|mount| {
        let left = match Client::connect(&mount) {
            Ok(client) => push_and_unmount(client, &mount, args.force)?,
            Err(error) if args.force => take_from_nobody(&mount, error)?,
            Err(error) => return Err(format!("{error}; --force unmounts all the same")),
        };
        Ok(left)
    });
    match outcome {
        Ok(left) if left.is_empty() => ExitCode::SUCCESS,
        Ok(left) => {
            for Left { path, why } in left {
                complain(format!("not pushed: {path}: {why}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => fail(error),
    }
}

/// Returns what was not pushed although it is unmounted.
fn push_and_unmount(mut client: Client, mount: &Mount, force: bool) -> Result<Vec<Left>, String> {
    let place = mount.mountpoint.display();
    client.answer_within(Some(SILENCE_MAX))?;
    let asked = client.ask(&Request::Umount { force });
    let left = match asked.and_then(|()| pushed(&mut client)) {
        // It was about to end.
        Err(error) if force => return take_from_nobody(mount, error),
        Err(error) => return Err(format!("{place}: {error}; --force unmounts all the same")),
        Ok(left) => left,
    };
    client.answer_within(None)?;
    if !left.is_empty() && !force {
        for Left { path, why } in left {
            complain(format!("not pushed: {path}: {why}"));
        }
        return Err(format!(
            "{place} stays mounted; --force unmounts all the same"
        ));
    }
    if take_away(mount, force)? == Gone::FromSight {
        client.insist()?;
    }
    let mut left = Vec::new();
    while let Some(event) = client.next()? {
        if let Event::Left(file) = event {
            left.push(file);
        }
    }
    client.wait_for_end(END_SECONDS_MAX);
    Ok(left)
}

/// Unmounts what no process answers for.
fn take_from_nobody(mount: &Mount, error: String) -> Result<Vec<Left>, String> {
    complain(error);
    take_away(mount, true)?;
    remove_socket(mount);
    Ok(Vec::new())
}

/// Waits until everything is pushed that can be; returns what is not.
fn pushed(client: &mut Client) -> Result<Vec<Left>, String> {
    let mut progress = Progress::new("pushing", Unit::Bytes);
    let mut left = Vec::new();
    loop {
        match client.next()? {
            Some(Event::Progress { done, total }) => progress.at(done, total),
            Some(Event::Left(file)) => left.push(file),
            Some(Event::Pushed) => break,
            Some(_) => {}
            None => return Err("the process of the mount has ended meanwhile".into()),
        }
    }
    progress.finish();
    Ok(left)
}

/// How an unmounted mount is gone.
#[derive(PartialEq, Eq)]
enum Gone {
    Altogether,
    /// Somebody still uses it.
    FromSight,
}

fn take_away(mount: &Mount, force: bool) -> Result<Gone, String> {
    let place = mount.mountpoint.display();
    match unmount(&mount.mountpoint, false) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            if !force {
                return Err(format!(
                    "{place} is busy: close what uses it ('fuser -vm {place}' tells), or use --force"
                ));
            }
            unmount(&mount.mountpoint, true).map_err(|e| format!("{place}: {e}"))?;
            Ok(Gone::FromSight)
        }
        result => result
            .map(|()| Gone::Altogether)
            .map_err(|e| format!("{place}: {e}")),
    }
}
