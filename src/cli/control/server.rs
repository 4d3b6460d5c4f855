//! The side of the mount's process.

use super::{Event, MountStatus, Part, Request, Settle, make_private, socket_paths};
use crate::frontend::fuse::mounts::Device;
use crate::frontend::fuse::{Helper, Rest};
use crate::node::replica::{LinkState, NodeNo, Replica};

use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The longest request.
const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Files that one request works on at a time.
const FILES_AT_ONCE: usize = 16;
/// How often a command is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// So long `umount` waits without anything being pushed while the link is down.
const STALLED_MAX: Duration = Duration::from_secs(10);
/// So long it takes at most to ask the kernel for what it has.
const WRITE_BACK_MAX: Duration = Duration::from_secs(5);

/// Something that could not be pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Path below the mount.
    pub path: String,
    /// Why.
    pub why: String,
}

/// What the commands work on.
pub struct Service {
    /// The replica of the mount.
    pub replica: Arc<Replica>,
    /// What has the kernel write back.
    pub helper: Arc<Helper>,
    /// Where it is mounted.
    pub mountpoint: String,
    /// What is mounted.
    pub source: String,
    /// What was left when it ended; `None` as long as it has not.
    pub end: watch::Receiver<Option<Vec<Left>>>,
    /// Told to end although somebody may still use the mount.
    pub stop: Notify,
}

/// Takes commands for a mount. Dropped, it leaves no socket behind.
pub struct Server {
    path: PathBuf,
    /// Of the socket at `path`.
    inode: u64,
    connections: Arc<tokio::sync::Mutex<JoinSet<()>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    /// Where no socket can be had.
    pub fn start(device: Device, service: Arc<Service>) -> io::Result<Server> {
        let (listener, path) = listen(device)?;
        let inode = std::fs::symlink_metadata(&path)?.ino();
        let connections = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        let accepting = tokio::spawn(accept(listener, service, Arc::clone(&connections)));
        Ok(Server {
            path,
            inode,
            connections,
            accepting,
        })
    }

    /// Waits until those who wait for the end know of it.
    pub async fn finish(self) {
        self.accepting.abort();
        let mut connections = self.connections.lock().await;
        while connections.join_next().await.is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        // The device number is free since the unmount, so another mount may have put its own there.
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// In the first directory that is or can be made this user's alone.
fn listen(device: Device) -> io::Result<(UnixListener, PathBuf)> {
    let mut complaint = io::Error::from(io::ErrorKind::NotFound);
    for path in socket_paths(device, rustix::process::geteuid().as_raw()) {
        match listen_at(&path) {
            Ok(listener) => return Ok((listener, path)),
            Err(error) => {
                complaint = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            }
        }
    }
    Err(complaint)
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_private(directory)?;
    match UnixListener::bind(path) {
        // Device numbers are used again: left behind by a process that was killed.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn accept(
    listener: UnixListener,
    service: Arc<Service>,
    connections: Arc<tokio::sync::Mutex<JoinSet<()>>>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let mut connections = connections.lock().await;
                while connections.try_join_next().is_some() {}
                connections.spawn(answer(stream, Arc::clone(&service)));
            }
            // Out of descriptors, for one: that may pass.
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, service: Arc<Service>) {
    if let Err(error) = converse(stream, &service).await {
        // Most often a command that was interrupted.
        tracing::debug!("control socket: {error}");
    }
}

async fn converse(stream: UnixStream, service: &Arc<Service>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (read, write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(REQUEST_BYTES_MAX));
    read.read_line(&mut line).await?;
    let request = serde_json::from_str(&line)?;
    let mut out = Out(write);
    let replica = &service.replica;
    match request {
        Request::Status => out.say(&Event::Status(Box::new(service.status()))).await,
        Request::Pull { files, part, wait } if wait => {
            work(replica, Work::Pull(part), files, &mut out).await
        }
        Request::Pull { files, part, .. } => {
            for (inode, _) in &files {
                replica.remember(NodeNo(*inode));
            }
            tokio::spawn(pull_unseen(Arc::clone(replica), files, part));
            out.say(&Event::Done).await
        }
        Request::Flush { files } => work(replica, Work::Flush, files, &mut out).await,
        Request::Forget { files } => work(replica, Work::Forget, files, &mut out).await,
        Request::Conflicts { settle } => out.say(&conflicts(replica, settle).await).await,
        Request::Umount { force } => {
            // Until it is unmounted, or stays mounted.
            let _rest = service.push_all(force, &mut out).await?;
            tokio::select! {
                told = service.tell_end(&mut out) => return told,
                read = read.read_line(&mut line) => match read? {
                    0 => return Ok(()), // It went away.
                    _ => service.stop.notify_one(),
                },
            }
            service.tell_end(&mut out).await
        }
    }
}

/// Settles one, then tells what is left.
async fn conflicts(replica: &Replica, settle: Option<Settle>) -> Event {
    let settled = match settle {
        Some(Settle::KeepMine(path)) => replica.keep_conflict(&path).await,
        Some(Settle::Drop(path)) => replica.drop_conflict(&path),
        None => Ok(()),
    };
    match settled {
        Ok(()) => Event::Conflicts(replica.conflicts()),
        Err(errno) => Event::Failed {
            inode: 0,
            errno: errno.raw_os_error(),
        },
    }
}

/// Where events go.
struct Out(OwnedWriteHalf);

impl Out {
    async fn say(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.0.write_all(&line).await
    }
}

/// What is done to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Pull(Part),
    Flush,
    Forget,
}

/// Does it to each file, some at a time, and tells how far it is: in bytes for a pull, else in files.
async fn work(
    replica: &Arc<Replica>,
    what: Work,
    files: Vec<(u64, u64)>,
    out: &mut Out,
) -> io::Result<()> {
    let weight = |size| match what {
        Work::Pull(part) => part.of(size).len(),
        _ => 1,
    };
    let total = files
        .iter()
        .fold(0u64, |sum, (_, size)| sum.saturating_add(weight(*size)));
    let done = Arc::new(AtomicU64::new(0));
    let room = Arc::new(Semaphore::new(FILES_AT_ONCE));
    let mut tasks = JoinSet::new();
    for (inode, size) in files {
        let (replica, done, room) = (Arc::clone(replica), Arc::clone(&done), Arc::clone(&room));
        tasks.spawn(async move {
            let _room = room.acquire().await;
            (
                inode,
                work_on(&replica, what, NodeNo(inode), size, &done).await,
            )
        });
    }
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => break,
                Some(Ok((inode, Err(errno)))) => {
                    let errno = errno.raw_os_error();
                    out.say(&Event::Failed { inode, errno }).await?;
                }
                Some(_) => {}
            },
            _ = ticks.tick() => {
                let done = done.load(Ordering::Relaxed);
                out.say(&Event::Progress { done, total }).await?;
            }
        }
    }
    let done = done.load(Ordering::Relaxed);
    out.say(&Event::Progress { done, total }).await?;
    out.say(&Event::Done).await
}

async fn work_on(
    replica: &Replica,
    what: Work,
    node: NodeNo,
    size: u64,
    done: &AtomicU64,
) -> rustix::io::Result<()> {
    let result = match what {
        Work::Pull(part) => {
            let mut told = 0;
            let mut progress = |present: u64, _| {
                done.fetch_add(present.saturating_sub(told), Ordering::Relaxed);
                told = told.max(present);
            };
            return replica.pull(node, part.of(size), &mut progress).await;
        }
        Work::Flush => replica.push(node).await,
        Work::Forget => replica.drop_copy(node).await,
    };
    done.fetch_add(1, Ordering::Relaxed);
    result
}

/// Nobody waits; the nodes were remembered.
async fn pull_unseen(replica: Arc<Replica>, files: Vec<(u64, u64)>, part: Part) {
    let room = Arc::new(Semaphore::new(FILES_AT_ONCE));
    let mut tasks = JoinSet::new();
    for (inode, size) in files {
        let (replica, room) = (Arc::clone(&replica), Arc::clone(&room));
        tasks.spawn(async move {
            let _room = room.acquire().await;
            let node = NodeNo(inode);
            if let Err(errno) = replica.pull(node, part.of(size), &mut |_, _| {}).await {
                tracing::warn!("inode {inode} cannot be pulled: {errno}");
            }
            replica.forget(node, 1);
        });
    }
    tasks.join_all().await;
}

impl Service {
    fn status(&self) -> MountStatus {
        MountStatus {
            mountpoint: self.mountpoint.clone(),
            source: self.source.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            read_only: self.replica.is_read_only(),
            replica: self.replica.status(),
        }
    }

    fn dirty_bytes(&self) -> u64 {
        let regions = self.replica.status().regions;
        regions.iter().map(|region| region.dirty_bytes).sum()
    }

    /// Pushes everything, and tells how far it is and what is left. Then the mount can be unmounted, as long as the
    /// helper rests.
    async fn push_all(self: &Arc<Self>, force: bool, out: &mut Out) -> io::Result<Option<Rest>> {
        let why = self.push_dirty(force, out).await?;
        for region in self.replica.status().regions {
            if let Some(why) = why.as_ref().filter(|_| region.dirty_bytes > 0) {
                let (path, why) = (region.path, why.clone());
                out.say(&Event::Left(Left { path, why })).await?;
            }
        }
        let rest = self.rest().await;
        out.say(&Event::Pushed).await?;
        Ok(rest)
    }

    /// Keeps the helper from using the mount. `None` where it waits for the other side.
    pub async fn rest(&self) -> Option<Rest> {
        let helper = Arc::clone(&self.helper);
        let resting = tokio::task::spawn_blocking(move || helper.rest());
        let rest = tokio::time::timeout(WRITE_BACK_MAX, resting).await;
        rest.ok().and_then(Result::ok)
    }

    /// Waits for the end, and tells what was left then.
    async fn tell_end(&self, out: &mut Out) -> io::Result<()> {
        let mut end = self.end.clone();
        let left = match end.wait_for(Option::is_some).await {
            Ok(left) => left.clone().unwrap_or_default(),
            Err(_) => return Ok(()),
        };
        for left in left {
            out.say(&Event::Left(left)).await?;
        }
        Ok(())
    }

    /// Has the kernel hand over what programs stored through mappings, and pushes what is dirty. Returns why
    /// not all of it went; `None` where it did.
    async fn push_dirty(
        self: &Arc<Self>,
        force: bool,
        out: &mut Out,
    ) -> io::Result<Option<String>> {
        self.write_back().await;
        let mut pushes = JoinSet::new();
        for node in self.replica.dirty_nodes() {
            let replica = Arc::clone(&self.replica);
            pushes.spawn(async move { replica.push(node).await });
        }
        let total = self.dirty_bytes();
        let (mut why, mut least, mut moved) = (None, total, Instant::now());
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                ended = pushes.join_next() => match ended {
                    None => break,
                    Some(Ok(Err(errno))) => why = Some(io::Error::from(errno).to_string()),
                    Some(_) => {}
                },
                _ = ticks.tick() => {
                    let left = self.dirty_bytes();
                    if left < least {
                        (least, moved) = (left, Instant::now());
                    }
                    let done = total.saturating_sub(left);
                    out.say(&Event::Progress { done, total }).await?;
                    let waits = force || self.replica.status().link != LinkState::Up;
                    if waits && moved.elapsed() > STALLED_MAX {
                        why = Some("the other side does not answer".into());
                        break;
                    }
                }
            }
        }
        if why.is_none() {
            out.say(&Event::Progress { done: total, total }).await?;
        }
        Ok(why)
    }

    /// Has the kernel hand over what it has, as far as that goes without waiting for the other side.
    pub async fn write_back(self: &Arc<Self>) {
        let service = Arc::clone(self);
        let asked = tokio::task::spawn_blocking(move || service.helper.write_back_all());
        match tokio::time::timeout(WRITE_BACK_MAX, asked).await {
            Ok(Ok(Ok(()))) => {}
            outcome => tracing::debug!("the kernel does not write back: {outcome:?}"),
        }
    }
}
