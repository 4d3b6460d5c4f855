//! How to mount: the long options, and the same as `-o name=value,…` as `mount(8)` gives them.

use crate::node::replica::CACHE_BYTES_MIN;
use crate::units::{format_size, parse_duration, parse_size};
use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The shortest and the longest time that makes sense: more than a year is no time limit any more.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(8760 * 3600);

/// The options that have values or stand for themselves; unset where they were not given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Settings {
    /// Refuse changes [-o ro]
    #[arg(long)]
    pub read_only: bool,
    /// The source does not change while it is mounted; implies --read-only
    ///
    /// Files that are wholly here when they are opened are then read by the kernel itself, at the speed of the cache
    /// directory (as root, from Linux 6.9 on). Such a file does not follow the source and does not wait for the server: if
    /// it changes all the same, that is seen when it is opened after everybody has closed it.
    #[arg(long)]
    pub immutable: bool,
    /// Let the kernel keep names, so that each use of one need not ask; nothing may be mounted below then
    ///
    /// Paths are walked several times as fast (from Linux 6.16 on), and names are as true as without it. But the
    /// kernel can only give up all names at once, which it does when another mount or the serving machine changes
    /// any: what is mounted on a folder or a file of this mount is then unmounted.
    #[arg(long)]
    pub keep_names: bool,
    /// Let other users in, as far as modes and owners allow
    ///
    /// An ordinary user needs 'user_allow_other' in /etc/fuse.conf for it.
    #[arg(long)]
    pub allow_other: bool,
    /// Show what belongs to the serving user as this user's
    #[arg(long, value_name = "UID", value_parser = parse_id, allow_negative_numbers = true)]
    pub uid: Option<u32>,
    /// Show what belongs to the serving user's group as this group's
    #[arg(long, value_name = "GID", value_parser = parse_id, allow_negative_numbers = true)]
    pub gid: Option<u32>,
    /// Whose files are whose: 'user' shows the serving user's files as yours, 'none' all as they are there
    ///
    /// Without it 'none' where root mounts what root serves, else 'user'.
    #[arg(long, value_name = "HOW")]
    pub idmap: Option<IdMap>,
    /// Where copies of what is used are kept: a directory, or 'memory'
    ///
    /// Without it ~/.cache/memfs, as root /var/cache/memfs.
    #[arg(long, value_name = "DIR|memory")]
    pub cache: Option<PathBuf>,
    /// What local copies may take on disk, at least 8M; what was used longest ago goes, dirty bytes never
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_size, allow_negative_numbers = true)]
    pub cache_size: Option<u64>,
    /// What is stored through a mapping leaves within this time
    #[arg(long, value_name = "TIME", value_parser = parse_interval, allow_negative_numbers = true)]
    pub push_interval: Option<Duration>,
    /// Bring the rest of what was touched in the background, or only what is asked for
    #[arg(long, value_name = "HOW")]
    pub pull: Option<Pull>,
    /// Do not bring files in the order in which they were touched before, nor tell it
    #[arg(long)]
    pub no_learn: bool,
    /// Fail with EIO what the other side does not answer within this time
    #[arg(long, value_name = "TIME", value_parser = parse_interval, allow_negative_numbers = true, conflicts_with = "hard")]
    pub soft: Option<Duration>,
    /// Wait for the other side for as long as it takes (so it is without --soft)
    #[arg(long)]
    pub hard: bool,
    /// What to do once the other side cannot be reached and the lease has run out: 'wait' for it, or 'serve' what is here
    ///
    /// With 'serve', what is present of files, names and attributes goes on being shown, although others may have changed it
    /// meanwhile, and stores are kept. What is not here waits or fails as without it, and so do fsync, close after a
    /// store, and changes of names and attributes.
    #[arg(long, value_name = "HOW")]
    pub offline: Option<Offline>,
    /// Trust the server with this key and no other
    #[arg(long, value_name = "SHA256:…")]
    pub server_key: Option<String>,
    /// Trust a server that was never seen before, and remember its key
    #[arg(long)]
    pub accept_new: bool,
    /// Show the server this key instead of this user's own; made if there is none
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The servers that are trusted, instead of ~/.config/memfs/known_hosts
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// How to run ssh
    #[arg(long, value_name = "COMMAND")]
    pub ssh: Option<String>,
    /// The memfs program over there
    #[arg(long, value_name = "PATH")]
    pub server: Option<String>,
    /// Send and ask for bytes as they are
    #[arg(long)]
    pub no_compress: bool,
    /// Write log messages to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// The same, from a list.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Listed {
    #[command(flatten)]
    settings: Settings,
}

/// Whose files are whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IdMap {
    /// As they are over there
    None,
    /// The serving user's are the mounting user's
    User,
}

/// What is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    /// Also the rest of what was touched
    Background,
    /// What is asked for
    Demand,
}

/// What to do while the other side cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Offline {
    /// Wait for it
    Wait,
    /// Show what is here, true or not
    Serve,
}

fn parse_cache_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if bytes >= CACHE_BYTES_MIN => Ok(bytes),
        _ => Err(format!("give at least {}", format_size(CACHE_BYTES_MIN))),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if (INTERVAL_MIN..=INTERVAL_MAX).contains(&time) => Ok(time),
        _ => Err("give 1ms to 8760h".into()),
    }
}

fn parse_id(text: &str) -> Result<u32, &'static str> {
    // The last one stands for none.
    let id = text.parse().ok().filter(|id| *id != u32::MAX);
    id.ok_or("give a number from 0 to 4294967294, as 'id' tells it")
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlags {
    /// Refuse changes.
    pub read_only: bool,
    /// Honour set-uid bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Let programs be executed.
    pub exec: bool,
}

impl Default for KernelFlags {
    fn default() -> KernelFlags {
        KernelFlags {
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
        }
    }
}

impl KernelFlags {
    /// The flags in `-o` lists, whatever else is there.
    pub fn among(lists: &[String]) -> KernelFlags {
        let mut flags = KernelFlags::default();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            flags.take(option);
        }
        flags
    }

    /// Takes over an option, if it is one of these.
    fn take(&mut self, option: &str) -> bool {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            _ => return false,
        }
        true
    }
}

/// Names that mean something to `mount(8)`, to fstab or to others, and nothing to us.
const IGNORED: [&str; 27] = [
    "defaults",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "nofail",
    "fail",
    "_netdev",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "default_permissions",
    "silent",
    "loud",
    "iversion",
    "noiversion",
];

impl Settings {
    /// Takes over `-o` lists; what was given as a long option counts more.
    ///
    /// # Errors
    /// One line that names the option.
    pub fn with_lists(self, lists: &[String]) -> Result<(Settings, KernelFlags), String> {
        let mut flags = KernelFlags::default();
        let mut long = Vec::new();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            match option {
                "" => {}
                flag if flags.take(flag) => {}
                ignored if IGNORED.contains(&ignored) => {}
                comment if comment.starts_with("x-") || comment.starts_with("comment=") => {}
                option => long.push(long_option(option)?),
            }
        }
        let listed = Listed::try_parse_from(&long).map_err(|error| {
            let told = super::super::one_line(&error);
            format!("-o {}: {told}", lists.join(","))
        })?;
        let mut settings = self.or(listed.settings);
        settings.read_only |= flags.read_only || settings.immutable;
        if settings.soft.is_some() && settings.hard {
            return Err("'soft' and 'hard' contradict each other: give one of them".into());
        }
        Ok((settings, flags))
    }

    fn or(self, other: Settings) -> Settings {
        Settings {
            read_only: self.read_only || other.read_only,
            immutable: self.immutable || other.immutable,
            keep_names: self.keep_names || other.keep_names,
            allow_other: self.allow_other || other.allow_other,
            uid: self.uid.or(other.uid),
            gid: self.gid.or(other.gid),
            idmap: self.idmap.or(other.idmap),
            cache: self.cache.or(other.cache),
            cache_size: self.cache_size.or(other.cache_size),
            push_interval: self.push_interval.or(other.push_interval),
            pull: self.pull.or(other.pull),
            no_learn: self.no_learn || other.no_learn,
            soft: self.soft.or(other.soft),
            hard: self.hard || other.hard,
            offline: self.offline.or(other.offline),
            server_key: self.server_key.or(other.server_key),
            accept_new: self.accept_new || other.accept_new,
            identity: self.identity.or(other.identity),
            known_hosts: self.known_hosts.or(other.known_hosts),
            ssh: self.ssh.or(other.ssh),
            server: self.server.or(other.server),
            no_compress: self.no_compress || other.no_compress,
            log: self.log.or(other.log),
        }
    }
}

/// `push_interval=1s` as `--push-interval=1s`.
fn long_option(option: &str) -> Result<OsString, String> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let name = name.replace('_', "-");
    let command = <Listed as clap::CommandFactory>::command();
    let known = |argument: &clap::Arg| argument.get_long() == Some(name.as_str());
    if !command.get_arguments().any(known) {
        let meant = similar_to(&name).map_or_else(String::new, |similar| {
            format!(", a similar one is '{similar}'")
        });
        return Err(format!(
            "-o {option}: there is no such option{meant}; 'memfs mount --help' has those there are"
        ));
    }
    Ok(match value {
        Some(value) => format!("--{name}={value}").into(),
        None => format!("--{name}").into(),
    })
}

/// The option that may have been meant.
fn similar_to(name: &str) -> Option<String> {
    let error = Listed::try_parse_from([format!("--{name}")]).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(similar) => Some(similar.trim_start_matches('-').to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(lists: &[&str]) -> Result<(Settings, KernelFlags), String> {
        let lists: Vec<String> = lists.iter().map(ToString::to_string).collect();
        Settings::default().with_lists(&lists)
    }

    #[test]
    fn lists_are_options() {
        let (settings, flags) = listed(&[
            "ro,nosuid,x-systemd.automount,_netdev,push_interval=200ms",
            "cache=memory,dev,cache-size=1G,allow_other,soft=5",
        ])
        .unwrap();
        assert!(settings.read_only && settings.allow_other && flags.dev && !flags.suid);
        assert_eq!(settings.push_interval, Some(Duration::from_millis(200)));
        assert_eq!(settings.cache_size, Some(1 << 30));
        assert_eq!(settings.cache, Some(PathBuf::from("memory")));
        assert_eq!(settings.soft, Some(Duration::from_secs(5)));
        assert!(!listed(&["ro,rw"]).unwrap().0.read_only);
        assert!(listed(&["immutable"]).unwrap().0.read_only);
    }

    #[test]
    fn what_was_typed_counts_more_than_a_list() {
        let typed = Settings {
            pull: Some(Pull::Demand),
            ..Settings::default()
        };
        let (settings, _) = typed.with_lists(&["pull=background".into()]).unwrap();
        assert_eq!(settings.pull, Some(Pull::Demand));
    }

    #[test]
    fn complaints_name_option_and_value() {
        for (list, words) in [
            ("bogus", vec!["bogus", "no such option"]),
            (
                "cache_sise=1G",
                vec!["cache_sise=1G", "no such option", "'cache-size'"],
            ),
            ("cache_size=1k", vec!["cache-size", "'1k'", "8.0 MiB"]),
            ("soft=10000h", vec!["soft", "'10000h'", "1ms to 8760h"]),
            ("cache_size=much", vec!["cache-size", "'much'", "bytes"]),
            ("idmap=all", vec!["idmap", "all", "user"]),
            ("soft=0", vec!["soft", "'0'"]),
            ("uid=me", vec!["uid", "'me'"]),
            ("soft=5,hard", vec!["soft", "hard"]),
            ("read_only=yes", vec!["read-only", "yes"]),
            ("cache", vec!["cache"]),
        ] {
            let complaint = listed(&[list]).unwrap_err();
            for word in words {
                assert!(complaint.contains(word), "{list}: {complaint}");
            }
            assert!(!complaint.contains('\n'), "{complaint}");
        }
        let typed = Settings {
            hard: true,
            ..Settings::default()
        };
        assert!(typed.with_lists(&["soft=5".into()]).is_err());
    }
}
