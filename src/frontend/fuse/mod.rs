//! A replica as a file system, over FUSE.
//!
//! ```text
//!   program ─ kernel ═ /dev/fuse ═ 2 to 4 threads ─ adapter ─ Replica
//!                 ▲                                               │
//!                 ├──── notices ◀──────────── FuseKernel ◀────────┤  a thread of the replica's own
//!                 └──── open, sync_file_range ◀─ helper process ◀─┘
//! ```
//!
//! The threads that read `/dev/fuse` serve everybody, so none of them ever waits: a request runs on its
//! thread as far as it goes without waiting, and is answered there if that is to its end; otherwise the
//! rest of it becomes a task. What the pages for a read are present for costs no allocation and no hop.
//!
//! The kernel keeps attributes for as long as the replica says, pages until it is told to drop them, and
//! names not at all unless asked to: each use of a name is a LOOKUP, answered from the replica's coherent copy. So
//! there is no name to take back from the kernel: see `names` for why.
//!
//! | file | owns |
//! |---|---|
//! | `run` | how a request is run |
//! | `askers` | programs that are killed while they wait |
//! | `adapter` | the kernel's requests; those on names and attributes |
//! | `data` | the requests on open files and directories |
//! | `locks` | the requests on locks |
//! | `convert`, `reply` | the kernel's words and ours; outcomes as answers |
//! | `kernel` | what is said to the kernel unasked |
//! | `names` | what the kernel may keep of names |
//! | `helper` | the process beside this one: writing back mapped pages, giving up |
//! | `mount` | `mount(2)`, `fusermount3` |
//! | `mounts` | reading `/proc/self/mountinfo` |

mod adapter;
mod askers;
mod convert;
mod data;
mod helper;
mod kernel;
mod locks;
mod mount;
pub mod mounts;
mod names;
mod reply;
mod run;

pub use helper::{HELPER_NAME, Helper, Rest, help};
pub use mount::{Mounting, remount, unmount};

use crate::node::replica::Replica;
use askers::Askers;
use kernel::FuseKernel;
use mounts::Device;
use names::Names;
use run::Adapter;
use std::io;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What `/proc/mounts` shows after `fuse.`.
pub const SUBTYPE: &str = "memfs";

/// How far the kernel reads ahead in a file, in KiB. Only root can raise it.
const READ_AHEAD_KIB: u32 = 1024;

/// A file system that programs can use.
pub struct Mounted {
    device: Device,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Mounted {
    /// Its device number, as `st_dev` of its files.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Waits until the file system is unmounted and nobody uses it any more.
    ///
    /// # Errors
    /// Where the kernel's requests could not be read any more.
    pub async fn ended(&mut self) -> io::Result<()> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread of the file system is gone")),
        }
    }
}

/// Mounts `replica` and begins to answer.
///
/// # Errors
/// One line for the user.
pub fn mount(
    replica: &Arc<Replica>,
    runtime: &Handle,
    how: &Mounting,
    helper: Arc<Helper>,
) -> Result<Mounted, String> {
    let fd = mount::mount(how)?;
    match start(replica, runtime, how, helper, fd) {
        Ok(mounted) => Ok(mounted),
        Err(error) => {
            // It is mounted and would hang whoever looks at it.
            if let Err(why) = unmount(&how.mountpoint, true) {
                tracing::warn!("{}: {why}", how.mountpoint.display());
            }
            Err(format!("{}: {error}", how.mountpoint.display()))
        }
    }
}

fn start(
    replica: &Arc<Replica>,
    runtime: &Handle,
    how: &Mounting,
    helper: Arc<Helper>,
    fd: std::os::fd::OwnedFd,
) -> io::Result<Mounted> {
    let device = mounts::read()?
        .into_iter()
        .rfind(|mount| mount.is_memfs() && mount.mountpoint == how.mountpoint)
        .map(|mount| mount.device)
        .ok_or_else(|| io::Error::other("the mount is not in /proc/self/mountinfo"))?;
    helper.watch(device, &how.mountpoint);

    let mut config = fuser::Config::default();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, 4));
    config.clone_fd = mount::can_open_device();
    let (names, probes) = Names::new(fd.try_clone()?);
    let names = Arc::new(names);
    let adapter = Adapter::new(
        Arc::clone(replica),
        runtime.clone(),
        Askers::start(helper.pid())?,
        names.clone(),
    );
    // The kernel itself refuses other users; the library's own check would also refuse what they do
    // with a file that was handed to them open.
    let session = fuser::Session::from_fd(adapter, fd, fuser::SessionACL::All, config)?;
    let (notifier, known) = (session.notifier(), Arc::downgrade(&names));
    std::thread::Builder::new()
        .name("memfs-names".into())
        .spawn(move || probes.run(&known, &notifier))?;
    let kernel = FuseKernel::new(session.notifier(), helper, names);
    replica.set_kernel(Arc::new(kernel))?;
    raise_read_ahead(device);

    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            // Nobody listens where the process is ending.
            let _ = tell.send(session.run());
        })?;
    Ok(Mounted { device, ended })
}

/// Best effort: the kernel lets nobody but root.
fn raise_read_ahead(device: Device) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(why) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("{path}: {why}");
    }
}
