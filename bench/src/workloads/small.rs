//! Many small files: unpacked by tar(1), all read by cat(1) over a second mount that begins cold, removed by rm(1).

use super::{Effort, Measure};
use crate::peers::{How, Mount, Session, System};
use crate::process::run_within;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The directory, beside the file that all workloads use.
const DIRECTORY: &str = "small";
const FOLDERS: usize = 10;
const FILES: usize = 500;
/// Of each file, at most; on average half of it.
const BYTES_MAX: usize = 8 << 10;
/// Nothing that is measured takes longer.
const SMALL_MAX: Duration = Duration::from_secs(240);

pub fn run(session: &Session) -> Result<Vec<Measure>, String> {
    let measured = measure(session);
    let served = session.place.served.join(DIRECTORY);
    match fs::remove_dir_all(&served) {
        // What could not be measured to its end may have left it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", served.display()))
        }
        _ => measured,
    }
}

fn measure(session: &Session) -> Result<Vec<Measure>, String> {
    let room = session.place.room;
    let (files, packed) = (room.join(DIRECTORY), room.join("small.tar"));
    make(&files).map_err(|e| format!("{}: {e}", files.display()))?;
    timed(
        session,
        "tar -C \"$2\" -cf \"$1\" small && rm -r \"$2/small\"",
        [&packed, room],
    )?;

    let mount = session.mount(How::default())?;
    let effort = Effort::begin(session);
    let unpack = timed(
        session,
        "tar -C \"$2\" -xf \"$1\"",
        [&packed, folder(&mount)],
    )?;
    let mut measures = vec![("small-unpack", unpack)];
    if session.system != System::Local {
        let names = ["small-cpu-client", "small-cpu-server"];
        measures.extend(effort.end(session, FILES as f64, 1e3, names));
    }
    mount.unmount()?;

    let cold = How {
        cold: true,
        ..How::default()
    };
    let mount = session.mount(cold)?;
    // cat(1) would have several of them copied by the kernel where its output were no pipe.
    let all = "cat \"$2\"/small/*/* | wc -c";
    let read = timed(session, all, [&packed, folder(&mount)])?;
    let remove = timed(session, "rm -r \"$2/small\"", [&packed, folder(&mount)])?;
    measures.extend([("small-read", read), ("small-remove", remove)]);
    mount.unmount()?;
    Ok(measures)
}

fn make(folder: &Path) -> io::Result<()> {
    let mut random = fastrand::Rng::with_seed(FILES as u64);
    for number in 0..FILES {
        let folder = folder.join(format!("folder-{}", number % FOLDERS));
        fs::create_dir_all(&folder)?;
        let mut bytes = vec![0; random.usize(1..=BYTES_MAX)];
        random.fill(&mut bytes);
        fs::write(folder.join(format!("file-{number}")), bytes)?;
    }
    Ok(())
}

fn folder(mount: &Mount) -> &Path {
    mount.file.parent().unwrap_or(&mount.file)
}

/// Seconds that a line of the shell takes.
fn timed(session: &Session, line: &str, arguments: [&Path; 2]) -> Result<f64, String> {
    let mut command = session.work.command(&[], Path::new("sh"));
    command.args(["-ec", line, "sh"]).args(arguments);
    let begin = Instant::now();
    run_within(
        &mut command,
        &session.place.room.join("small.log"),
        SMALL_MAX,
    )?;
    Ok(begin.elapsed().as_secs_f64())
}
