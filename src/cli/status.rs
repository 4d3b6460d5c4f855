//! `memfs status`: what is here, what is on its way.

use super::control::{Client, Event, MountStatus, Request, find};
use super::{complain, fail, printed, try_print};
use crate::frontend::fuse::mounts::{self, Mount};
use crate::node::replica::{LinkState, RegionStatus, Status};
use crate::units::{format_duration, format_size};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How often --watch looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// So long the process of a mount may take to answer. It does so at once, unless it is stopped.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// So long all together: a little more, for those that answer byte by byte.
const ALL_MAX: Duration = Duration::from_secs(12);
/// Clears the screen and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show mounts: the link, and of each file in use what is here, dirty, and on its way
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: an object for MOUNTPOINT, without it an array of them; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Again every second, with rates, until interrupted
    #[arg(long)]
    watch: bool,
    /// List closed files as well of which copies are kept
    #[arg(long)]
    all: bool,
    /// Where it is mounted, or anything below; all mounts without it
    mountpoint: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut before: Option<(Instant, Vec<Told>)> = None;
    loop {
        let mounts = match wanted(args) {
            Ok(mounts) => mounts,
            Err(error) => return fail(error),
        };
        let now = Instant::now();
        let told = ask(mounts);
        let well = told.iter().all(|told| matches!(told, Told::Status(_)));
        let shown = match (args.json, &told[..]) {
            (_, [Told::Nothing { error, .. }]) if args.mountpoint.is_some() && !args.watch => {
                return fail(error);
            }
            (false, []) if !args.watch => {
                complain("nothing is mounted");
                Ok(())
            }
            (true, _) => match json(args, &told) {
                Ok(json) => try_print(json),
                Err(error) => return fail(error),
            },
            (false, _) => show(
                args,
                &told,
                before.as_ref().map(|(at, old)| (now - *at, &old[..])),
            ),
        };
        // With nobody to read there is nothing to watch for.
        if !args.watch || shown.is_err() {
            return match printed(shown) {
                ExitCode::SUCCESS if !well => ExitCode::FAILURE,
                code => code,
            };
        }
        before = Some((now, told));
        std::thread::sleep(WATCH_EVERY);
    }
}

fn json(args: &Args, told: &[Told]) -> serde_json::Result<String> {
    match (&args.mountpoint, told) {
        (Some(_), [only]) => serde_json::to_string(only),
        _ => serde_json::to_string(told),
    }
}

fn wanted(args: &Args) -> Result<Vec<Mount>, String> {
    if let Some(path) = &args.mountpoint {
        return find(path).map(|mount| vec![mount]);
    }
    let mounts = mounts::read().map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let own = rustix::process::getuid();
    let ours =
        |mount: &Mount| mount.is_memfs() && (own.is_root() || mount.owner == Some(own.as_raw()));
    Ok(mounts.into_iter().filter(ours).collect())
}

/// What came of asking a mount.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Told {
    Status(Box<MountStatus>),
    Nothing {
        mountpoint: String,
        source: String,
        error: String,
    },
}

impl Told {
    fn of(mount: &Mount, status: Result<MountStatus, String>) -> Told {
        match status {
            Ok(status) => Told::Status(Box::new(status)),
            Err(error) => Told::Nothing {
                mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
                source: mount.source.to_string_lossy().into_owned(),
                error,
            },
        }
    }
}

/// Asks all mounts at the same time, and waits no longer than [`ALL_MAX`].
fn ask(mounts: Vec<Mount>) -> Vec<Told> {
    let (tell, all) = mpsc::channel();
    let silent = |mount: &Mount| Err(format!("{}: no answer", mount.mountpoint.display()));
    let mut told: Vec<Told> = (mounts.iter())
        .map(|mount| Told::of(mount, silent(mount)))
        .collect();
    for (at, mount) in mounts.into_iter().enumerate() {
        let tell = tell.clone();
        // Nobody listens any more once it took too long.
        let ask = move || drop(tell.send((at, Told::of(&mount, ask_one(&mount)))));
        if let Err(error) = std::thread::Builder::new().spawn(ask) {
            complain(format!("no thread: {error}"));
        }
    }
    drop(tell);
    let until = Instant::now() + ALL_MAX;
    let left = || until.saturating_duration_since(Instant::now());
    while let Ok((at, one)) = all.recv_timeout(left()) {
        told[at] = one;
    }
    told
}

fn ask_one(mount: &Mount) -> Result<MountStatus, String> {
    let mut client = Client::connect(mount)?;
    let mut asked = || {
        client.answer_within(Some(ANSWER_MAX))?;
        client.ask(&Request::Status)?;
        match client.next()? {
            Some(Event::Status(status)) => Ok(*status),
            _ => Err("the process of the mount says nothing".into()),
        }
    };
    asked().map_err(|error: String| format!("{}: {error}", mount.mountpoint.display()))
}

fn show(args: &Args, told: &[Told], before: Option<(Duration, &[Told])>) -> io::Result<()> {
    let mut text = String::new();
    if args.watch && std::io::stdout().is_terminal() {
        text.push_str(CLEAR);
    }
    for told in told {
        // Writing to a string does not fail.
        let _ = match told {
            Told::Status(status) => {
                let old = before.and_then(|(passed, old)| {
                    let same = old.iter().find_map(|old| match old {
                        Told::Status(old) if old.mountpoint == status.mountpoint => Some(&**old),
                        _ => None,
                    })?;
                    Some((passed, same))
                });
                describe(&mut text, status, args.all, old)
            }
            Told::Nothing {
                mountpoint,
                source,
                error,
            } => writeln!(text, "{source} on {mountpoint} (not answering)\n  {error}"),
        };
    }
    match text.is_empty() {
        true => Ok(()),
        false => try_print(text.trim_end()),
    }
}

fn describe(
    text: &mut String,
    status: &MountStatus,
    all: bool,
    before: Option<(Duration, &MountStatus)>,
) -> std::fmt::Result {
    let replica = &status.replica;
    let since = UNIX_EPOCH + Duration::from_secs(replica.link_since);
    let lost = format_duration(Duration::from_secs(
        since.elapsed().unwrap_or_default().as_secs(),
    ));
    let link = match (replica.link, replica.serve_offline) {
        (LinkState::Up, _) => "up".into(),
        (LinkState::Reconnecting, _) => format!("lost {lost} ago, copies are still good"),
        (LinkState::Lost, false) => format!("lost {lost} ago, waiting for it"),
        (LinkState::Lost, true) => format!("lost {lost} ago, copies are used all the same"),
    };
    let mode = if status.read_only {
        "read-only"
    } else {
        "read-write"
    };
    writeln!(text, "{} on {} ({mode})", status.source, status.mountpoint)?;
    let rtt = replica.rtt_us as f64 / 1000.0;
    writeln!(text, "  link     {link}, {} ({rtt:.1} ms)", replica.server)?;
    if let Some(error) = &replica.link_error {
        writeln!(text, "           {error}")?;
    }
    let rate = |now: u64, old: fn(&MountStatus) -> u64| match before {
        Some((passed, before)) if !passed.is_zero() => {
            let bytes = now.saturating_sub(old(before)) as f64 / passed.as_secs_f64();
            format!(" ({}/s)", format_size(bytes as u64))
        }
        _ => String::new(),
    };
    writeln!(
        text,
        "  pulled   {}{}",
        format_size(replica.pulled_bytes),
        rate(replica.pulled_bytes, |old| old.replica.pulled_bytes)
    )?;
    writeln!(
        text,
        "  pushed   {}{}",
        format_size(replica.pushed_bytes),
        rate(replica.pushed_bytes, |old| old.replica.pushed_bytes)
    )?;
    describe_copies(text, replica)?;
    if replica.waiting > 0 {
        writeln!(text, "  waiting  {} requests", replica.waiting)?;
    }
    writeln!(text, "  process  {} (memfs {})", status.pid, status.version)?;
    let (idle, busy): (Vec<_>, Vec<_>) =
        (replica.regions.iter()).partition(|region| !all && is_idle(region));
    table(text, &busy)?;
    if !idle.is_empty() {
        let bytes = idle.iter().map(|region| region.present_bytes).sum();
        let (count, bytes) = (idle.len(), format_size(bytes));
        writeln!(
            text,
            "  and copies of {count} closed files, {bytes} (--all lists them)"
        )?;
    }
    Ok(())
}

fn describe_copies(text: &mut String, replica: &Status) -> std::fmt::Result {
    if replica.hash_bytes > 0 {
        let (found, by) = (replica.confirmed_bytes, replica.hash_bytes);
        let (found, by) = (format_size(found), format_size(by));
        writeln!(
            text,
            "  same     {found} of older copies, as {by} of hashes told"
        )?;
    }
    let last = match replica.copies_last {
        true => "",
        false => ", which end with this mount",
    };
    let copies = format_size(replica.copy_bytes);
    writeln!(text, "  copies   {copies}{last}")?;
    if !replica.conflicts.is_empty() {
        let count = replica.conflicts.len();
        writeln!(
            text,
            "  kept     of {count} files that others have changed ('memfs conflicts' lists them)"
        )?;
    }
    Ok(())
}

/// Whether there is no more to it than a copy that is kept.
fn is_idle(region: &RegionStatus) -> bool {
    region.opens == 0 && region.dirty_bytes == 0 && region.in_flight_bytes == 0
}

fn table(text: &mut String, regions: &[&RegionStatus]) -> std::fmt::Result {
    if regions.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "  {:>10} {:>10} {:>10} {:>10} {:>5}  FILE",
        "SIZE", "PRESENT", "DIRTY", "IN FLIGHT", "OPEN"
    )?;
    for region in regions {
        let refused = (region.refused.as_ref())
            .map_or_else(String::new, |why| format!(" (not taken over there: {why})"));
        writeln!(
            text,
            "  {:>10} {:>10} {:>10} {:>10} {:>5}  {}{}{refused}",
            format_size(region.size),
            format_size(region.present_bytes),
            format_size(region.dirty_bytes),
            format_size(region.in_flight_bytes),
            region.opens,
            region.path,
            if region.lent {
                " (read by the kernel itself)"
            } else {
                ""
            }
        )?;
    }
    Ok(())
}
