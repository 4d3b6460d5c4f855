//! What is mounted: `[user@]host:dir`, `memfs://host:port/dir`, or a store.

use crate::transport::PORT_DEFAULT;
use crate::wire::RelPath;
use std::path::Path;

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory that ssh leads to.
    Ssh {
        /// `[user@]host`.
        destination: String,
        /// The directory there; empty means the home directory.
        directory: String,
    },
    /// What a running server serves.
    Server {
        /// Name or address, without brackets.
        host: String,
        /// UDP port.
        port: u16,
        /// The part of it that is mounted.
        subtree: RelPath,
    },
    /// A store; the authority runs inside the mount.
    Store(String),
}

impl Source {
    /// Reads what was typed.
    ///
    /// # Errors
    /// One line that names it and what is allowed.
    pub fn parse(text: &str) -> Result<Source, String> {
        if text.is_empty() {
            return Err(
                "SOURCE is empty: give [user@]host:dir, memfs://host:port/dir or a store".into(),
            );
        }
        if let Some(rest) = text.strip_prefix("memfs://") {
            return server(rest).map_err(|why| {
                format!("'{text}' is not a server's address: {why}; it is memfs://host:port/dir")
            });
        }
        if text.contains("://") {
            return Ok(Source::Store(text.to_owned()));
        }
        Ok(match split_host(text) {
            Some((destination, directory)) => Source::Ssh {
                destination: destination.to_owned(),
                directory: directory.to_owned(),
            },
            None => Source::Store(text.to_owned()),
        })
    }

    /// The directory of this machine that it is, if it is one.
    pub fn local_directory(&self) -> Option<&Path> {
        match self {
            Source::Store(text) if !text.contains("://") => Some(Path::new(text)),
            _ => None,
        }
    }
}

/// `host:dir`, where a colon comes before any slash. An IPv6 address stands in brackets.
fn split_host(text: &str) -> Option<(&str, &str)> {
    let host_end = match text.find(['[', '/', ':']) {
        Some(at) if text[at..].starts_with('[') => at + text[at..].find(']')?,
        _ => 0,
    };
    let colon = host_end + text[host_end..].find(['/', ':'])?;
    let (host, rest) = text.split_at(colon);
    let directory = rest.strip_prefix(':')?;
    (!host.is_empty()).then_some((host, directory))
}

fn server(text: &str) -> Result<Source, &'static str> {
    let (address, path) = text.split_once('/').unwrap_or((text, ""));
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket does not close")?;
            (
                host,
                after
                    .strip_prefix(':')
                    .or((!after.is_empty()).then_some(after)),
            )
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    let port = match port {
        None => PORT_DEFAULT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("the port is not a number from 1 to 65535")?,
    };
    let subtree =
        RelPath::new(path.trim_matches('/')).ok_or("the directory is not a plain path")?;
    Ok(Source::Server {
        host: host.to_owned(),
        port,
        subtree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(destination: &str, directory: &str) -> Source {
        Source::Ssh {
            destination: destination.into(),
            directory: directory.into(),
        }
    }

    fn at(host: &str, port: u16, subtree: &str) -> Source {
        Source::Server {
            host: host.into(),
            port,
            subtree: RelPath::new(subtree).unwrap(),
        }
    }

    #[test]
    fn sources_are_told_apart() {
        for (text, source) in [
            ("host:/srv", ssh("host", "/srv")),
            ("me@host:", ssh("me@host", "")),
            ("me@[::1]:a:b", ssh("me@[::1]", "a:b")),
            ("memfs://host", at("host", PORT_DEFAULT, "")),
            ("memfs://host/", at("host", PORT_DEFAULT, "")),
            ("memfs://10.0.0.1:99/a/b/", at("10.0.0.1", 99, "a/b")),
            ("memfs://[::1]:99/a", at("::1", 99, "a")),
            ("memfs://[::1]", at("::1", PORT_DEFAULT, "")),
            ("./a:b", Source::Store("./a:b".into())),
            ("/a:b", Source::Store("/a:b".into())),
            ("data", Source::Store("data".into())),
            (":x", Source::Store(":x".into())),
            ("[x", Source::Store("[x".into())),
            ("mem://?size=1G", Source::Store("mem://?size=1G".into())),
        ] {
            assert_eq!(Source::parse(text), Ok(source), "{text}");
        }
        for bad in [
            "",
            "memfs://",
            "memfs://:99/",
            "memfs://host:0/",
            "memfs://host:99999/",
            "memfs://host:x/",
            "memfs://host/a/../b",
            "memfs://[::1/",
            "memfs://[::1]x/",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }
}
