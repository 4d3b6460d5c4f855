//! `memfs mount`, and the same as `mount.memfs`, which is what `mount(8)` and fstab call.
//!
//! ```text
//! what was typed ─ options, source ─▶ Plan ─ link ─▶ Replica ─ daemon ─▶ mounted, until it is unmounted
//!                                      │
//!                                      └─ from here on in a child process, unless in the foreground
//! ```
//!
//! The calling process waits until the mount can be used, and ends with the outcome. Until then the
//! child may ask on the terminal and complain on stderr.

mod daemon;
mod link;
mod options;
mod plan;
mod source;

use super::{EXIT_USAGE, complain, log};
use crate::frontend::fuse::mounts::{self, Mount};
use crate::frontend::fuse::{self, Helper, Mounting};
use crate::sys;
use clap::Parser;
use options::{KernelFlags, Settings};
use plan::Plan;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// What `mount(8)` says for a mount that failed.
const EXIT_MOUNT: u8 = 32;
/// What `mount(8)` says for a wrong call.
const EXIT_MOUNT_USAGE: u8 = 1;

/// Mount a directory of another machine
///
/// SOURCE is one of
///   [user@]host:dir         a directory over there, through your own ssh; memfs has to be installed there
///   memfs://host:port/dir   what 'memfs serve' serves there, or a directory in it
///   DIR or mem://?size=…    a store of this machine
///
/// Returns once the mount can be used; it is served by a process in the background until
/// 'memfs umount MOUNTPOINT'. In /etc/fstab the type is memfs, once /sbin/mount.memfs is a link to memfs.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// What to mount
    source: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Options as mount(8) takes them: ro, nosuid, nodev, noexec, and every option below by its name
    #[arg(short = 'o', value_name = "NAME=VALUE,…")]
    options: Vec<String>,
    /// Stay in the foreground; log messages go to stderr
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: Args, verbose: u8) -> ExitCode {
    mount(args, verbose, [EXIT_USAGE, 1])
}

/// `mount.memfs SOURCE DIR [-sfnv] [-N ns] [-o options] [-t type]`, as `mount(8)` calls it.
#[derive(Debug, Parser)]
#[command(name = "mount.memfs", version)]
struct HelperArgs {
    source: String,
    mountpoint: PathBuf,
    #[arg(short = 'o')]
    options: Vec<String>,
    /// Take options that are not known as they come
    #[arg(short)]
    sloppy: bool,
    /// Go through the motions, do not mount
    #[arg(short)]
    fake: bool,
    /// Leave /etc/mtab alone (it is the kernel's)
    #[arg(short)]
    no_mtab: bool,
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    #[arg(short = 'N')]
    namespace: Option<PathBuf>,
    #[arg(short = 't')]
    fstype: Option<String>,
}

/// Runs as `mount.memfs`.
pub fn run_as_helper(args: Vec<OsString>) -> ExitCode {
    let program = OsString::from("mount.memfs");
    let args = match HelperArgs::try_parse_from(std::iter::once(program).chain(args)) {
        Ok(args) => args,
        Err(error) => {
            let code = super::usage(&error);
            let informed = !error.use_stderr();
            return if informed {
                code
            } else {
                ExitCode::from(EXIT_MOUNT_USAGE)
            };
        }
    };
    if args.namespace.is_some() {
        complain("-N: another mount namespace is not supported; enter it with nsenter(1) first");
        return ExitCode::from(EXIT_MOUNT_USAGE);
    }
    if args.fake {
        return ExitCode::SUCCESS;
    }
    let mut listed = args.options.iter().flat_map(|list| list.split(','));
    if listed.any(|option| option == "remount") {
        return match remount(&args.mountpoint, &args.options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(error);
                ExitCode::from(EXIT_MOUNT)
            }
        };
    }
    let verbose = args.verbose;
    let args = Args {
        source: args.source,
        mountpoint: args.mountpoint,
        options: args.options,
        foreground: false,
        settings: Settings::default(),
    };
    mount(args, verbose, [EXIT_MOUNT_USAGE, EXIT_MOUNT])
}

/// `mount -o remount,…`: ro, suid, dev, exec and their opposites, which the kernel sees to. `mount(8)` repeats
/// all the other options; they stay as they are.
fn remount(mountpoint: &Path, options: &[String]) -> Result<(), String> {
    let place = mountpoint.display();
    let mountpoint = mountpoint
        .canonicalize()
        .map_err(|error| format!("{place}: {error}"))?;
    let there = mounts::read().map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let on_top = there.iter().rfind(|mount| mount.mountpoint == mountpoint);
    if !on_top.is_some_and(Mount::is_memfs) {
        return Err(format!("{place} is not a memfs mount"));
    }
    let flags = KernelFlags::among(options);
    fuse::remount(&Mounting {
        mountpoint,
        source: String::new(),
        read_only: flags.read_only,
        allow_other: false,
        suid: flags.suid,
        dev: flags.dev,
        exec: flags.exec,
    })
    .map_err(|error| format!("{place}: {error}"))
}

/// With the exit codes for a wrong call and for a mount that failed.
fn mount(args: Args, verbose: u8, [usage, failure]: [u8; 2]) -> ExitCode {
    let plan = match Plan::new(args) {
        Ok(plan) => plan,
        Err(error) => {
            complain(error);
            return ExitCode::from(usage);
        }
    };
    match carry_out(plan, verbose) {
        Ok(code) => code,
        Err(error) => {
            complain(error);
            ExitCode::from(failure)
        }
    }
}

fn carry_out(mut plan: Plan, verbose: u8) -> Result<ExitCode, String> {
    plan.check()?;
    log::start(verbose, plan.log.as_deref())?;
    let starting = match plan.foreground {
        true => None,
        false => Some(sys::detach().map_err(|e| e.to_string())?),
    };
    let helper = Arc::new(Helper::start().map_err(|e| format!("no helper process: {e}"))?);
    let target = plan.target()?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| format!("no threads: {e}"))?;
    let code = runtime.block_on(daemon::live(&plan, target, helper, starting))?;
    // What still runs has nothing to lose.
    runtime.shutdown_background();
    Ok(code)
}
