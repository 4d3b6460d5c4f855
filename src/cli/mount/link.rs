//! Whom to connect to, and the replica over that connection.

use super::plan::Plan;
use super::source::Source;
use crate::cli::serve::open_store;
use crate::node::authority::{self, AuthorityOptions};
use crate::node::replica::{Replica, ReplicaOptions};
use crate::store::Store;
use crate::transport::ssh::{self, SshTarget, Started};
use crate::transport::{Authorized, Dialer, Identity, Listener, Route, ServerTrust, Unknown};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The memfs program over there, where nobody says another.
const SERVER_DEFAULT: &str = "memfs";

/// Whom to connect to.
pub enum Target {
    /// Who was started over ssh, and would be again.
    Started(Started, SshTarget),
    /// Who runs already.
    Server {
        /// Name or address.
        host: String,
        /// UDP port.
        port: u16,
        /// Who we are.
        identity: Box<Identity>,
        /// Whom we trust.
        trust: ServerTrust,
    },
    /// Ourselves.
    Store(Arc<dyn Store>),
}

/// A replica, and what has to stay for it to work.
pub struct Connected {
    /// The replica.
    pub replica: Arc<Replica>,
    /// Where the authority inside this process listens.
    pub listener: Option<Arc<Listener>>,
}

impl Target {
    /// Reads keys, opens the store, or has ssh start the far side, which may ask on the terminal.
    ///
    /// # Errors
    /// One line for the user.
    pub fn find(plan: &Plan) -> Result<Target, String> {
        let settings = &plan.settings;
        match &plan.source {
            Source::Ssh {
                destination,
                directory,
            } => {
                let target = SshTarget {
                    destination: without_brackets(destination),
                    directory: directory.clone(),
                    ssh: plan.ssh.clone(),
                    server: settings
                        .server
                        .clone()
                        .unwrap_or_else(|| SERVER_DEFAULT.into()),
                    read_only: settings.read_only,
                    run_in: plan.run_in(),
                };
                let started = ssh::start(&target)?;
                Ok(Target::Started(started, target))
            }
            Source::Server { host, port, .. } => {
                let identity = match &settings.identity {
                    Some(path) => Identity::load_or_create(path),
                    None => Identity::load_default(),
                };
                let identity = identity.map_err(|e| e.to_string())?;
                Ok(Target::Server {
                    host: host.clone(),
                    port: *port,
                    trust: trust(plan, &identity)?,
                    identity: Box::new(identity),
                })
            }
            Source::Store(text) => open_store(text).map(Target::Store),
        }
    }

    /// Connects, and is let in.
    ///
    /// # Errors
    /// One line for the user.
    pub async fn connect(self, options: ReplicaOptions) -> Result<Connected, String> {
        match self {
            Target::Started(started, target) => {
                let route = Route::over_ssh(target, started);
                let route = route.map_err(|e| format!("no UDP socket: {e}"))?;
                Ok(Connected {
                    replica: Replica::connect(route, options).await?,
                    listener: None,
                })
            }
            Target::Server {
                host,
                port,
                identity,
                trust,
            } => {
                let dialer = Dialer::new(&host, port, *identity, trust);
                let dialer = dialer.map_err(|e| format!("no UDP socket: {e}"))?;
                Ok(Connected {
                    replica: Replica::connect(dialer, options).await?,
                    listener: None,
                })
            }
            Target::Store(store) => connect_inside(store, options).await,
        }
    }
}

/// `me@[::1]` as `me@::1`: ssh takes an address without the brackets that tell it from what follows.
fn without_brackets(destination: &str) -> String {
    let (user, host) = match destination.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, destination),
    };
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match (user, inner.unwrap_or(host)) {
        (Some(user), host) => format!("{user}@{host}"),
        (None, host) => host.to_owned(),
    }
}

fn trust(plan: &Plan, identity: &Identity) -> Result<ServerTrust, String> {
    if let Some(fingerprint) = &plan.settings.server_key {
        return Ok(ServerTrust::Fingerprint(fingerprint.clone()));
    }
    let path = match &plan.settings.known_hosts {
        Some(path) => path.clone(),
        None => ServerTrust::default_path().map_err(|e| e.to_string())?,
    };
    Ok(ServerTrust::KnownHosts {
        own: identity.public(),
        path,
        unknown: match plan.settings.accept_new {
            true => Unknown::Accept,
            false => Unknown::Ask,
        },
    })
}

/// The authority runs here, with keys that nobody else has.
async fn connect_inside(
    store: Arc<dyn Store>,
    options: ReplicaOptions,
) -> Result<Connected, String> {
    let (ours, theirs) = (Identity::generate(), Identity::generate());
    let trust = ServerTrust::Key(theirs.public());
    let allowed = Authorized::Keys(vec![ours.public()]);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let no_socket = |e: std::io::Error| format!("no UDP socket: {e}");
    let listener = Arc::new(Listener::new(any, &theirs, allowed).map_err(no_socket)?);
    let address = listener.address().map_err(no_socket)?;
    tokio::spawn(authority::serve(
        Arc::clone(&listener),
        store,
        AuthorityOptions {
            read_only: options.read_only,
            // There is no way to be saved.
            learn: false,
            ..AuthorityOptions::default()
        },
    ));
    let dialer = Dialer::new(&address.ip().to_string(), address.port(), ours, trust);
    let replica = Replica::connect(dialer.map_err(no_socket)?, options).await?;
    Ok(Connected {
        replica,
        listener: Some(listener),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_not_for_ssh() {
        for (typed, told) in [
            ("[::1]", "::1"),
            ("me@[fe80::1%eth0]", "me@fe80::1%eth0"),
            ("a@b@host", "a@b@host"),
            ("host", "host"),
            ("[host", "[host"),
        ] {
            assert_eq!(without_brackets(typed), told);
        }
    }
}
