//! The life of a mount's process: connect, mount, say that it is up, serve; then push the rest and end.
//!
//! ```text
//! connect ─▶ mount ─▶ up ─┬─ unmounted by somebody ─────────────────────────┬─▶ push the rest ─▶ end
//!                         ├─ unmounted by 'memfs umount --force' ───────────┤
//!                         └─ SIGTERM, SIGINT, SIGHUP ─▶ push ─▶ unmount ────┘     2nd signal: end now
//! ```

use super::link::{Connected, Target};
use super::plan::Plan;
use crate::cli::control::{Left, Server, Service};
use crate::frontend::fuse::{self, Helper, Mounted};
use crate::sys::Starting;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// So long the rest may take to be pushed once nobody can use the mount any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after 'memfs umount --force', which has waited already.
const PATIENCE_FORCED: Duration = Duration::from_secs(2);
/// So long those who wait for the end may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// Lives until the mount is gone. The exit code says whether everything was pushed.
///
/// # Errors
/// One line for the user, where it does not come up.
pub async fn live(
    plan: &Plan,
    target: Target,
    helper: Arc<Helper>,
    starting: Option<Starting>,
) -> Result<ExitCode, String> {
    // Each file that was touched has a copy that is open.
    crate::cli::raise_limit();
    let connected = target.connect(plan.replica_options()?).await?;
    let replica = &connected.replica;
    let server = replica.server_user();
    if let Some(local) = plan.owner(server) {
        replica.set_owner_map(server, local);
    }
    // Before there is a mount that a signal would leave behind.
    let mut signals = Signals::new().map_err(|e| format!("no signals: {e}"))?;
    let how = plan.mounting(replica.is_read_only());
    let mounted = fuse::mount(replica, &Handle::current(), &how, Arc::clone(&helper));
    let mut mounted = match mounted {
        Ok(mounted) => mounted,
        Err(error) => {
            replica.shut_down(Duration::ZERO).await;
            return Err(error);
        }
    };
    let (tell, end) = watch::channel(None);
    let service = Arc::new(Service {
        replica: Arc::clone(replica),
        helper,
        mountpoint: plan.mountpoint.to_string_lossy().into_owned(),
        source: plan.shown.clone(),
        end,
        stop: Notify::new(),
    });
    let control = match Server::start(mounted.device(), Arc::clone(&service)) {
        Ok(control) => Some(control),
        Err(error) => {
            tracing::warn!("'memfs status' and the like will not work: {error}");
            None
        }
    };
    up(starting);

    let mut patience = PATIENCE;
    tokio::select! {
        ended = mounted.ended() => note(ended),
        () = service.stop.notified() => patience = PATIENCE_FORCED,
        () = signals.next() => leave(&plan.mountpoint, &service, &mut mounted, &mut signals).await,
    }
    let left = push_rest(&service, patience, &mut signals).await;
    let code = ExitCode::from(u8::from(!left.is_empty()));
    tell.send_replace(Some(left));
    if let Some(control) = control {
        let _ = tokio::time::timeout(FAREWELL, control.finish()).await;
    }
    close(connected).await;
    Ok(code)
}

/// The mount can be used.
fn up(starting: Option<Starting>) {
    let outcome = rustix::process::chdir("/").map_err(io::Error::from);
    let outcome = outcome.and_then(|()| starting.map_or(Ok(()), Starting::done));
    if let Err(error) = outcome {
        tracing::warn!("this process stays in the foreground: {error}");
    }
}

fn note(ended: io::Result<()>) {
    match ended {
        Ok(()) => tracing::info!("unmounted"),
        Err(error) => tracing::error!("the kernel's requests cannot be read: {error}"),
    }
}

/// Asked to end: hands over what the kernel has, and unmounts.
async fn leave(
    mountpoint: &Path,
    service: &Arc<Service>,
    mounted: &mut Mounted,
    signals: &mut Signals,
) {
    service.write_back().await;
    let _rest = service.rest().await;
    if unmount(mountpoint, false).await {
        tokio::select! {
            ended = mounted.ended() => note(ended),
            () = signals.next() => {}
        }
        return;
    }
    tracing::warn!(
        "{} is still in use: who uses it will meet errors",
        mountpoint.display()
    );
    unmount(mountpoint, true).await;
}

async fn unmount(mountpoint: &Path, lazily: bool) -> bool {
    let path = mountpoint.to_owned();
    let unmounted = tokio::task::spawn_blocking(move || fuse::unmount(&path, lazily)).await;
    match unmounted.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(()) => true,
        Err(error) => {
            tracing::info!("{}: {error}", mountpoint.display());
            false
        }
    }
}

/// Pushes what is dirty and says goodbye, until a signal says that it has taken long enough.
async fn push_rest(service: &Service, patience: Duration, signals: &mut Signals) -> Vec<Left> {
    let left = tokio::select! {
        left = service.replica.shut_down(patience) => {
            let left = left.into_iter().map(|(path, errno)| Left {
                path: path.as_os().to_string_lossy().into_owned(),
                why: io::Error::from(errno).to_string(),
            });
            left.collect()
        }
        () = signals.next() => {
            let regions = service.replica.status().regions;
            let dirty = regions.into_iter().filter(|region| region.dirty_bytes > 0);
            let left = dirty.map(|region| Left {
                path: region.path,
                why: "the process was told to end".into(),
            });
            left.collect::<Vec<_>>()
        }
    };
    for Left { path, why } in &left {
        tracing::error!("not pushed: {path}: {why}");
    }
    left
}

/// The authority inside this process goes last.
async fn close(connected: Connected) {
    if let Some(listener) = connected.listener {
        listener.close();
        let _ = tokio::time::timeout(FAREWELL, listener.wait_closed()).await;
    }
}

/// The signals that ask for the end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
