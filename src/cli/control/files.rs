//! What the commands have in common that are about files: finding them, asking about them, telling how far
//! it is.

use super::client::{Client, find};
use super::{Event, Request};
use crate::cli::progress::{Progress, Unit};
use crate::cli::{complain, fail};
use crate::frontend::fuse::mounts::{Device, Mount};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Files that are asked about, and whose inodes are held, at a time.
const FILES_AT_ONCE: usize = 256;

/// Asks about the files at and below each path, whatever became of the one before. `make` makes a request of
/// inode numbers and sizes.
pub fn each(paths: &[PathBuf], make: impl Fn(Vec<(u64, u64)>) -> Request) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        match below(path, &make) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(error) => code = fail(error),
        }
    }
    code
}

/// Whether all went well.
fn below(path: &Path, make: impl Fn(Vec<(u64, u64)>) -> Request) -> Result<bool, String> {
    let mount = find(path)?;
    let (files, mut well) = list(path, mount.device);
    let (what, total) = match make(Vec::new()) {
        Request::Pull { part, .. } => (
            "pulling",
            files.iter().map(|file| part.of(file.size).len()).sum(),
        ),
        Request::Forget { .. } => ("forgetting", files.len() as u64),
        _ => ("pushing", files.len() as u64),
    };
    let unit = if what == "pulling" {
        Unit::Bytes
    } else {
        Unit::Files
    };
    let weight = |file: &Listed| match make(Vec::new()) {
        Request::Pull { part, .. } => part.of(file.size).len(),
        _ => 1,
    };
    let mut progress = Progress::new(what, unit);
    let mut before = 0;
    for some in files.chunks(FILES_AT_ONCE) {
        well &= ask(&mount, some, &make, &mut |done| {
            progress.at(before + done, total)
        })?;
        before += some.iter().map(weight).sum::<u64>();
    }
    progress.finish();
    Ok(well)
}

/// A file on a mount.
struct Listed {
    /// As given, or found below what was given.
    path: PathBuf,
    /// Bytes.
    size: u64,
}

/// The regular files at or below a path of the mount `device`, and whether everything could be looked at.
fn list(path: &Path, device: Device) -> (Vec<Listed>, bool) {
    let (mut files, mut well) = (Vec::new(), true);
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let looked = std::fs::symlink_metadata(&path).and_then(|metadata| {
            if device_of(&metadata) != device {
                return Ok(()); // Something else is mounted there.
            }
            if metadata.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
            } else if metadata.is_file() {
                let (path, size) = (path.clone(), metadata.size());
                files.push(Listed { path, size });
            }
            Ok(())
        });
        if let Err(error) = looked {
            complain(format!("{}: {error}", path.display()));
            well = false;
        }
    }
    (files, well)
}

fn device_of(metadata: &std::fs::Metadata) -> Device {
    Device {
        major: rustix::fs::major(metadata.dev()),
        minor: rustix::fs::minor(metadata.dev()),
    }
}

/// One request. Returns whether all went well.
fn ask(
    mount: &Mount,
    files: &[Listed],
    make: impl Fn(Vec<(u64, u64)>) -> Request,
    progress: &mut dyn FnMut(u64),
) -> Result<bool, String> {
    let mut well = true;
    let mut fail = |file: &Listed, why: io::Error| {
        well = false;
        complain(format!("{}: {why}", file.path.display()));
    };
    // As long as its descriptor is there, an inode stays known.
    let mut held: Vec<(&Listed, u64, OwnedFd)> = Vec::new();
    for file in files {
        match open(&file.path) {
            Ok((inode, fd)) => held.push((file, inode, fd)),
            Err(error) => fail(file, error),
        }
    }
    let mut client = Client::connect(mount)?;
    let numbers = held.iter().map(|(file, inode, _)| (*inode, file.size));
    client.ask(&make(numbers.collect()))?;
    loop {
        match client.next()? {
            Some(Event::Progress { done, .. }) => progress(done),
            Some(Event::Failed { inode, errno }) => {
                for (file, ..) in held.iter().filter(|(_, number, _)| *number == inode) {
                    fail(file, io::Error::from_raw_os_error(errno));
                }
            }
            Some(Event::Done) => return Ok(well),
            Some(_) => {}
            None => return Err("the process of the mount has ended meanwhile".into()),
        }
    }
}

fn open(path: &Path) -> io::Result<(u64, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(path, flags, Mode::empty())?;
    let status = rustix::fs::fstat(&held)?;
    Ok((status.st_ino, held))
}
