//! What was typed, understood and completed: everything a mount needs to know before it touches a network.

use super::Args;
use super::link::Target;
use super::options::{IdMap, KernelFlags, Offline, Pull, Settings};
use super::source::Source;
use crate::cli::control::private_directory;
use crate::cli::serve::check_store_name;
use crate::frontend::fuse::{Mounting, mounts};
use crate::node::replica::{ReplicaOptions, SourceName};
use crate::transport::ssh::split_command;
use crate::wire::{Caller, RelPath};
use std::io;
use std::path::{Path, PathBuf};

/// Where root's local copies are kept.
const ROOT_CACHE: &str = "/var/cache/memfs";

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// What to mount.
    pub source: Source,
    /// Where; made absolute by [`Plan::check`].
    pub mountpoint: PathBuf,
    /// As it is to be shown.
    pub shown: String,
    /// Do not become a daemon.
    pub foreground: bool,
    /// Where log messages go.
    pub log: Option<PathBuf>,
    /// How.
    pub settings: Settings,
    flags: KernelFlags,
    /// The command for ssh.
    pub ssh: Vec<String>,
}

impl Plan {
    /// Understands what was typed.
    ///
    /// # Errors
    /// One line that names what is wrong with it.
    pub fn new(args: Args) -> Result<Plan, String> {
        let (mut settings, flags) = args.settings.with_lists(&args.options)?;
        let source = Source::parse(&args.source)?;
        if let Source::Store(name) = &source {
            check_store_name(name)?;
        }
        let ssh = split_command(settings.ssh.as_deref().unwrap_or("ssh"))
            .map_err(|why| format!("--ssh: {why}"))?;
        if let Some(key) = settings
            .server_key
            .as_deref()
            .filter(|key| !is_fingerprint(key))
        {
            return Err(format!(
                "--server-key '{key}': it is SHA256: and 43 letters and digits"
            ));
        }
        // The daemon works from the root directory.
        for path in [
            &mut settings.identity,
            &mut settings.known_hosts,
            &mut settings.log,
        ] {
            absolute(path)?;
        }
        if settings.cache.as_deref() != Some(Path::new("memory")) {
            absolute(&mut settings.cache)?;
        }
        Ok(Plan {
            shown: args.source,
            source,
            mountpoint: args.mountpoint,
            foreground: args.foreground,
            log: settings.log.clone(),
            settings,
            flags,
            ssh,
        })
    }

    /// Looks whether the mount point can be mounted on.
    ///
    /// # Errors
    /// One line for the user.
    pub fn check(&mut self) -> Result<(), String> {
        let shown = self.mountpoint.display().to_string();
        let line = |error: io::Error| match error.kind() {
            io::ErrorKind::NotConnected => format!(
                "{shown}: a file system is mounted there whose process is gone; \
                 'fusermount3 -u {shown}' takes it away"
            ),
            _ => format!("{shown}: {error}"),
        };
        self.mountpoint = self.mountpoint.canonicalize().map_err(line)?;
        if !self.mountpoint.metadata().map_err(line)?.is_dir() {
            return Err(format!("{shown} is not a directory"));
        }
        let there = mounts::read().map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let on_top = there
            .iter()
            .rfind(|mount| mount.mountpoint == self.mountpoint);
        if let Some(mount) = on_top.filter(|mount| mount.is_memfs()) {
            let source = mount.source.to_string_lossy();
            return Err(format!(
                "{shown} is in use: {source} is mounted there already"
            ));
        }
        if let Some(directory) = self.source.local_directory() {
            let directory = directory
                .canonicalize()
                .map_err(|e| format!("{}: {e}", directory.display()))?;
            if self.mountpoint != directory && self.mountpoint.starts_with(&directory) {
                return Err(format!(
                    "{shown} lies in {} itself: what is mounted cannot be inside of what is served",
                    directory.display()
                ));
            }
            self.shown = directory.to_string_lossy().into_owned();
            self.source = Source::Store(self.shown.clone());
        }
        Ok(())
    }

    /// What to connect to: over ssh it is started now.
    ///
    /// # Errors
    /// One line for the user.
    pub fn target(&self) -> Result<Target, String> {
        Target::find(self)
    }

    /// Where ssh is run, also later: options of it may name files relative to this. Not below the mount point, where it
    /// would wait for the mount.
    pub fn run_in(&self) -> Option<PathBuf> {
        let here = std::env::current_dir().ok()?;
        Some(match here.starts_with(&self.mountpoint) {
            true => PathBuf::from("/"),
            false => here,
        })
    }

    /// For the replica.
    ///
    /// # Errors
    /// One line for the user, about the cache directory.
    pub fn replica_options(&self) -> Result<ReplicaOptions, String> {
        let default = ReplicaOptions::default();
        let settings = &self.settings;
        Ok(ReplicaOptions {
            read_only: settings.read_only,
            immutable: settings.immutable,
            keep_names: settings.keep_names || settings.immutable,
            subtree: match &self.source {
                Source::Server { subtree, .. } => subtree.clone(),
                Source::Ssh { .. } | Source::Store(_) => RelPath::root(),
            },
            source: match &self.source {
                Source::Server { .. } => SourceName::Key,
                Source::Ssh {
                    destination,
                    directory,
                } => SourceName::Name(format!("{destination}:{directory}")),
                Source::Store(store) if store.contains("://") => SourceName::Nothing,
                Source::Store(directory) => SourceName::Name(directory.clone()),
            },
            cache: self.cache()?,
            cache_bytes_max: settings.cache_size.unwrap_or(default.cache_bytes_max),
            background: settings.pull != Some(Pull::Demand),
            learn: !settings.no_learn,
            push_interval: settings.push_interval.unwrap_or(default.push_interval),
            soft: settings.soft,
            serve_offline: settings.offline == Some(Offline::Serve),
            compress: !settings.no_compress,
            dirty_bytes_max: default.dirty_bytes_max,
        })
    }

    /// Where local copies go. A directory that nobody asked for and that cannot be had is done without.
    fn cache(&self) -> Result<Option<PathBuf>, String> {
        match self.settings.cache.as_deref() {
            Some(path) if path == Path::new("memory") => Ok(None),
            Some(path) => match private_directory(path) {
                Ok(()) => Ok(Some(path.to_owned())),
                Err(why) => Err(format!("--cache {}: {why}", path.display())),
            },
            None => {
                let path = default_cache();
                match path.as_deref().map(private_directory) {
                    Some(Ok(())) => Ok(path),
                    why => {
                        tracing::info!("copies are kept in memory: {path:?}: {why:?}");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// For the kernel.
    pub fn mounting(&self, read_only: bool) -> Mounting {
        Mounting {
            mountpoint: self.mountpoint.clone(),
            source: self.shown.clone(),
            read_only,
            allow_other: self.settings.allow_other,
            suid: self.flags.suid,
            dev: self.flags.dev,
            exec: self.flags.exec,
        }
    }

    /// As whose the files of `server`, the user who serves, are shown; `None`: as they are.
    pub fn owner(&self, server: Caller) -> Option<Caller> {
        let own = Caller {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let (uid, gid) = (self.settings.uid, self.settings.gid);
        let map = match self.settings.idmap {
            Some(map) => map == IdMap::User,
            None => uid.is_some() || gid.is_some() || server.uid != 0 || own.uid != 0,
        };
        map.then(|| Caller {
            uid: uid.unwrap_or(own.uid),
            gid: gid.unwrap_or(own.gid),
        })
    }
}

fn absolute(path: &mut Option<PathBuf>) -> Result<(), String> {
    if let Some(path) = path {
        *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// As [`crate::transport::PublicKey::fingerprint`] writes them.
fn is_fingerprint(text: &str) -> bool {
    let base64 = text.strip_prefix("SHA256:").unwrap_or_default();
    let base64 = base64.trim_end_matches('=');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    base64.len() == 43 && base64.bytes().all(allowed)
}

fn default_cache() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(ROOT_CACHE));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    cache.is_absolute().then(|| cache.join("memfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_recognised() {
        assert!(is_fingerprint(&format!("SHA256:{}", "a".repeat(43))));
        assert!(is_fingerprint(&format!("SHA256:{}=", "a".repeat(43))));
        for bad in [
            "",
            "SHA256:",
            "MD5:aa",
            &format!("SHA256:{}", "-".repeat(43)),
        ] {
            assert!(!is_fingerprint(bad), "{bad}");
        }
    }
}
