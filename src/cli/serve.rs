//! `memfs serve`: let others mount a store.

use super::control::private_directory;
use super::{control, fail, try_print};
use crate::node::authority::{self, AuthorityOptions};
use crate::store::Store;
use crate::store::directory::Directory;
use crate::store::memory::Memory;
use crate::sys::{Starting, detach};
use crate::transport::{Authorized, Identity, Listener, PORT_DEFAULT, ssh};
use crate::units::parse_duration;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Where root keeps what is to be known to a next run.
const ROOT_STATE: &str = "/var/lib/memfs";
/// The shortest and the longest lease.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// A one-shot server ends when nobody has come for so long.
const ONCE_IDLE_MAX: Duration = Duration::from_secs(60);

/// Let others mount a store
///
/// When ready it prints one line: memfs: serving STORE on IP:PORT key SHA256:…
/// This user's own key is always let in, others with 'memfs key authorize', also for reading only or for a part.
///
/// Nobody who is let in can keep the others out. One key has at most 256 mounts, of 48 folders, half of the files that may be open,
/// 32 connections that have not said who they are, and 64 long calls to the store at a time; each mount at most some
/// 80 MiB of requests and answers, and 64 MiB each received, sent, pushed and pulled, less where a key has many.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen (UDP); without it port 4433 on all addresses
    #[arg(long, value_name = "IP:PORT", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// Refuse changes
    #[arg(long)]
    read_only: bool,
    /// Let in the keys in this file instead of those in ~/.config/memfs/authorized_keys
    #[arg(long, value_name = "FILE")]
    authorized: Option<PathBuf>,
    /// Show this key instead of this user's own; made if there is none
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// How long a mount that is not heard of may go on using its copies
    ///
    /// So long others wait for it when they change what it has a copy of, and so long it can be without this side
    /// before what it has is of no use. From 1s to 1h, and the same at each start.
    #[arg(long, value_name = "TIME", value_parser = parse_lease, default_value = "10s")]
    lease: Duration,
    /// Do not remember in which order the parts of files are touched
    ///
    /// Without it that is kept in $XDG_STATE_HOME/memfs/order (~/.local/state, as root /var/lib), and files are
    /// brought in that order to those who mount later.
    #[arg(long)]
    no_learn: bool,
    /// Serve one mount and end; how 'memfs mount HOST:DIR' starts this side
    #[arg(long)]
    once: bool,
    /// What to serve: a directory, or mem://?size=SIZE
    #[arg(value_name = "STORE", value_parser = OsStringValueParser::new().try_map(StoreName::parse))]
    store: StoreName,
}

fn parse_listen(text: &str) -> Result<SocketAddr, &'static str> {
    let address = text.parse();
    address.map_err(|_| "give an address and a port, as 0.0.0.0:4433 or [::1]:4433")
}

fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text)?;
    match (LEASE_MIN..=LEASE_MAX).contains(&lease) {
        true => Ok(lease),
        false => Err(format!("'{text}' is not allowed: give 1s to 1h")),
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn serve(args: Args) -> Result<(), String> {
    let line = |error: &dyn std::fmt::Display| error.to_string();
    // Started over ssh, both keys are for this one mount.
    let (starting, identity, authorized) = if args.once && !std::io::stdin().is_terminal() {
        let client = ssh::read_request(std::io::stdin())?;
        let starting = detach().map_err(|e| line(&e))?;
        let only = Authorized::Keys(vec![client]);
        (Some(starting), Identity::generate(), only)
    } else {
        let identity = match &args.identity {
            Some(path) => Identity::load_or_create(path),
            None => Identity::load_default(),
        };
        let identity = identity.map_err(|e| line(&e))?;
        let path = match args.authorized.clone() {
            Some(path) => path,
            None => Authorized::default_path().map_err(|e| line(&e))?,
        };
        let own = identity.public();
        (None, identity, Authorized::File { own, path })
    };
    // Mounts keep their files open here.
    super::raise_limit();
    for complaint in authorized.complaints() {
        tracing::warn!("{complaint}");
    }
    let store = args.store.open()?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| line(&e))?;
    runtime.block_on(async {
        let listener = Arc::new(listen(&args, &identity, authorized)?);
        let asked_to_end = asked_to_end().map_err(|e| line(&e))?;
        announce(&listener, &identity, store.as_ref(), starting)?;
        let options = AuthorityOptions {
            read_only: args.read_only,
            lease: args.lease,
            once: args.once.then_some(ONCE_IDLE_MAX),
            leases: lease_note(&args),
            learn: !args.no_learn,
            orders: orders(&args),
            ..AuthorityOptions::default()
        };
        let serving = authority::serve(listener.clone(), store, options);
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = asked_to_end => {
                listener.close();
                serving.await;
            }
        }
        listener.close();
        listener.wait_closed().await;
        Ok(())
    })
}

/// Where the next run of this store finds who holds leases of this one. Nobody runs a one-shot server again,
/// and what was in memory is gone with its run.
fn lease_note(args: &Args) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let StoreName::Directory(path) = &args.store else {
        return None;
    };
    if args.once {
        return None;
    }
    let found = std::fs::metadata(path).and_then(|root| Ok((root, control::runtime_directory()?)));
    match found {
        Ok((root, directory)) => {
            Some(directory.join(format!("leases-{:x}-{:x}", root.dev(), root.ino())))
        }
        Err(error) => {
            tracing::warn!("who holds leases is not noted for a next run: {error}");
            None
        }
    }
}

/// Where it is kept in which order files are touched. What is in memory is gone with its run.
fn orders(args: &Args) -> Option<PathBuf> {
    if args.no_learn || !matches!(args.store, StoreName::Directory(_)) {
        return None;
    }
    let state = match std::env::var_os("XDG_STATE_HOME") {
        Some(state) => PathBuf::from(state).join("memfs"),
        None if rustix::process::geteuid().is_root() => ROOT_STATE.into(),
        None => std::env::home_dir()?.join(".local/state/memfs"),
    };
    let path = Some(state).filter(|path| path.is_absolute())?.join("order");
    match private_directory(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            let path = path.display();
            tracing::info!("what is touched is not kept for a next run: {path}: {error}");
            None
        }
    }
}

/// A store as it is typed.
#[derive(Clone, Debug)]
enum StoreName {
    Directory(PathBuf),
    /// `mem://…`
    Memory(String),
}

impl StoreName {
    fn parse(name: OsString) -> Result<StoreName, String> {
        match name.to_str().and_then(|name| name.split_once("://")) {
            Some(("mem", _)) => {
                let url = name.to_string_lossy().into_owned();
                Memory::from_url(&url)?;
                Ok(StoreName::Memory(url))
            }
            Some((kind, _)) if kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Err(
                format!("there is no {kind}://, give a directory or mem://?size=SIZE"),
            ),
            _ => Ok(StoreName::Directory(name.into())),
        }
    }

    fn open(&self) -> Result<Arc<dyn Store>, String> {
        match self {
            StoreName::Directory(path) => match Directory::open(path) {
                Ok(directory) => Ok(Arc::new(directory)),
                Err(error) => Err(error.to_string()),
            },
            StoreName::Memory(url) => Ok(Arc::new(Memory::from_url(url)?)),
        }
    }
}

/// Whether a store can have this name.
///
/// # Errors
/// One line that names it and what is allowed.
pub fn check_store_name(name: &str) -> Result<(), String> {
    named(name).map(drop)
}

/// The store of this name.
///
/// # Errors
/// As [`check_store_name`]; where it cannot be opened.
pub fn open_store(name: &str) -> Result<Arc<dyn Store>, String> {
    named(name)?.open()
}

fn named(name: &str) -> Result<StoreName, String> {
    StoreName::parse(name.into()).map_err(|why| format!("'{name}' is not a store: {why}"))
}

/// Listens where the arguments say.
fn listen(args: &Args, identity: &Identity, authorized: Authorized) -> Result<Listener, String> {
    let port = if args.once { 0 } else { PORT_DEFAULT };
    let listen = |address| Listener::new(address, identity, authorized.clone());
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let (address, listener) = match args.listen {
        Some(address) => (address, listen(address)),
        None => match listen(any) {
            // Without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                (any, listen(any))
            }
            listener => (any, listener),
        },
    };
    listener.map_err(|error| format!("cannot listen on {address} (UDP): {error}"))
}

/// Says that everything is up, and to whoever started it over ssh how to come here.
fn announce(
    listener: &Listener,
    identity: &Identity,
    store: &dyn Store,
    starting: Option<Starting>,
) -> Result<(), String> {
    let key = identity.public();
    let address = listener.address().map_err(|error| error.to_string())?;
    let (name, fingerprint) = (store.describe(), key.fingerprint());
    let name = name.escape_debug();
    let line = format!("memfs: serving {name} on {address} key {fingerprint}");
    match try_print(line) {
        // Who has read enough may be served all the same.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(format!("standard output: {error}"));
        }
        _ => {}
    }
    if let Some(starting) = starting {
        ssh::write_started(std::io::stdout(), address, &key)
            .and_then(|()| starting.done())
            .map_err(|error| format!("standard output: {error}"))?;
    }
    Ok(())
}

/// Ends when SIGTERM or SIGINT comes; they are caught from now on.
fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
