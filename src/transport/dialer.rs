//! Making connections to a server, again and again.

use super::endpoint::{CLOSE_UNTRUSTED, bind, endpoint, plain, transport_config};
use super::{Identity, Network, PublicKey, ServerTrust, tls};
use quinn::EndpointConfig;
use quinn::crypto::rustls::QuicClientConfig;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The next address is tried when the one before has not answered for so long (RFC 8305).
const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Whether anybody listens is asked so often.
const REFUSAL_AWAITED: Duration = Duration::from_secs(1);

/// Why a connection could not be made. One line each for the user, naming host and address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("{host}: {reason}")]
    Resolve {
        /// As given.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "{host}: no answer from {address} (is 'memfs serve' running there, and UDP let through?)"
    )]
    Unreachable {
        /// As given.
        host: String,
        /// What was tried.
        address: SocketAddr,
    },
    /// The machine is there, and no server on it.
    #[error("{host}: nobody listens on {address} (UDP): is 'memfs serve' running there?")]
    Refused {
        /// As given.
        host: String,
        /// What was tried.
        address: SocketAddr,
    },
    /// The server's key is not trusted.
    #[error("{0}")]
    Untrusted(String),
    /// The server does not let this key in.
    #[error(
        "{host}: the server does not accept this key ({key}); on the server run: memfs key authorize '{line}'"
    )]
    Unauthorized {
        /// As given.
        host: String,
        /// Our fingerprint.
        key: String,
        /// Our public key.
        line: String,
    },
    /// Anything else.
    #[error("{host}: {reason}")]
    Failed {
        /// As given.
        host: String,
        /// What went wrong.
        reason: String,
    },
}

/// Makes connections to one server, again and again.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    /// At least one: all of the same server.
    hosts: Vec<String>,
    port: u16,
    public: PublicKey,
    trust: ServerTrust,
    /// The key that was found trusted; it stays so, whatever becomes of files and terminals.
    trusted: parking_lot::Mutex<Option<PublicKey>>,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl Dialer {
    /// For `host` (a name or address; resolved anew for each connection) and `port`. To be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// Where no UDP socket can be had.
    pub fn new(
        host: &str,
        port: u16,
        identity: Identity,
        trust: ServerTrust,
    ) -> io::Result<Dialer> {
        Dialer::to_any(&[host], port, identity, trust)
    }

    /// As [`Dialer::new`], for a server that has several names or addresses, best first, at least one.
    ///
    /// # Errors
    /// As there.
    pub fn to_any(
        hosts: &[impl AsRef<str>],
        port: u16,
        identity: Identity,
        trust: ServerTrust,
    ) -> io::Result<Dialer> {
        let plain = |host: &str| host.trim_matches(['[', ']']).to_ascii_lowercase();
        let hosts: Vec<_> = hosts.iter().map(|host| plain(host.as_ref())).collect();
        if hosts.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tls = tls::client(&identity).map_err(io::Error::other)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config(0)));
        // One socket for both families; where there is no IPv6, for IPv4 alone.
        let socket = bind((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        Ok(Dialer(Arc::new(Inner {
            hosts,
            port,
            public: identity.public(),
            trust,
            trusted: parking_lot::Mutex::new(None),
            endpoint: endpoint(socket, EndpointConfig::default(), None)?,
            config,
        })))
    }

    /// A connection on which the handshake has succeeded and the server's key was found trusted.
    /// Tries each address each name has. Gives up after `patience`, not counting the time the user takes
    /// to answer a question.
    ///
    /// # Errors
    /// [`ConnectError`]. The server's refusal of our key arrives after the handshake (TLS 1.3), so it
    /// can also show as the first stream's failure: see [`super::stream::is_unauthorized`].
    pub async fn connect(&self, patience: Duration) -> Result<quinn::Connection, ConnectError> {
        let connection = self.reach(Instant::now() + patience).await?;
        if self.check_trust(&connection).await? {
            return Ok(connection);
        }
        // The server did not wait for the user's answer.
        let connection = self.reach(Instant::now() + patience).await?;
        match self.check_trust(&connection).await? {
            true => Ok(connection),
            false => Err(self.failed("the server closed the connection")),
        }
    }

    /// `host:port`, for messages.
    pub fn name(&self) -> String {
        let Inner { hosts, port, .. } = &*self.0;
        let host = &hosts[0];
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    /// Our fingerprint and key, for messages.
    pub fn public(&self) -> PublicKey {
        self.0.public
    }

    /// The server's key, once there was a connection.
    pub fn server(&self) -> Option<PublicKey> {
        *self.0.trusted.lock()
    }

    /// Why the server refused us, for where [`super::stream::is_unauthorized`] shows it did.
    pub fn unauthorized(&self) -> ConnectError {
        ConnectError::Unauthorized {
            host: self.name(),
            key: self.0.public.fingerprint(),
            line: self.0.public.to_string(),
        }
    }

    /// Waits until the other side of each closed connection was told so. To be called before a program
    /// ends; lasts a few round trips at most.
    pub async fn wait_closed(&self) {
        self.0.endpoint.wait_idle().await;
    }

    /// A connection after its handshake, over whichever address answers first. What was sent before the network
    /// changed is lost, most likely: then it begins anew.
    async fn reach(&self, deadline: Instant) -> Result<quinn::Connection, ConnectError> {
        let network = Network::watch();
        loop {
            tokio::select! {
                outcome = self.reach_now(deadline) => return outcome,
                () = network.changed() => {}
            }
        }
    }

    async fn reach_now(&self, deadline: Instant) -> Result<quinn::Connection, ConnectError> {
        let addresses = self.resolve(deadline).await?;
        let mut attempts = JoinSet::new();
        for (n, &address) in addresses.iter().enumerate() {
            let (endpoint, config) = (self.0.endpoint.clone(), self.0.config.clone());
            attempts.spawn(async move {
                sleep(ADDRESS_STAGGER * n as u32).await;
                attempt(&endpoint, config, address).await
            });
        }
        let mut worst = None;
        let mut refusals = 0;
        while let Ok(Some(attempt)) = timeout_at(deadline, attempts.join_next()).await {
            match attempt {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(Attempt::Refused)) => refusals += 1,
                Ok(Err(
                    Attempt::Failed(quinn::ConnectionError::TimedOut) | Attempt::Impossible,
                ))
                | Err(_) => {}
                Ok(Err(Attempt::Failed(error))) => worst = Some(error),
            }
        }
        let (host, address) = (self.name(), addresses[0]);
        Err(match worst {
            Some(error) => self.failed(&plain(&error)),
            None if refusals == addresses.len() => ConnectError::Refused { host, address },
            None => ConnectError::Unreachable { host, address },
        })
    }

    /// The addresses of the hosts, at least one.
    async fn resolve(&self, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut addresses = Vec::new();
        let mut reason = None;
        for (n, host) in self.0.hosts.iter().enumerate() {
            // One that is not answered for leaves time for the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let others = (self.0.hosts.len() - n) as u32;
            let lookup = tokio::net::lookup_host((host.as_str(), self.0.port));
            match timeout(left / others, lookup).await {
                Ok(Ok(found)) => {
                    for address in found.take(64) {
                        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                            addresses.push(address);
                        }
                    }
                }
                Ok(Err(error)) => reason = reason.or(Some(error.to_string())),
                Err(_) => reason = reason.or(Some("no answer from the resolver of names".into())),
            }
        }
        match addresses.is_empty() {
            false => Ok(addresses),
            true => Err(ConnectError::Resolve {
                host: self.name(),
                reason: reason.unwrap_or_else(|| "the name has no address".into()),
            }),
        }
    }

    /// Whether the connection is still there once its server's key was found trusted.
    async fn check_trust(&self, connection: &quinn::Connection) -> Result<bool, ConnectError> {
        let Some(key) = tls::peer_key(connection) else {
            return Err(self.failed("the server shows no key"));
        };
        if *self.0.trusted.lock() != Some(key) {
            let (dialer, name) = (self.clone(), self.name());
            let checked = tokio::task::spawn_blocking(move || dialer.0.trust.check(&name, &key));
            match checked.await {
                Ok(Ok(())) => *self.0.trusted.lock() = Some(key),
                Ok(Err(why)) => {
                    connection.close(CLOSE_UNTRUSTED, b"the server's key is not trusted");
                    return Err(ConnectError::Untrusted(why));
                }
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        }
        if super::stream::is_unauthorized(connection) {
            return Err(self.unauthorized());
        }
        Ok(connection.close_reason().is_none())
    }

    fn failed(&self, reason: &str) -> ConnectError {
        ConnectError::Failed {
            host: self.name(),
            reason: reason.to_string(),
        }
    }
}

/// Why there is no connection with an address.
enum Attempt {
    /// There cannot be one, as with a port 0.
    Impossible,
    /// The machine says that nobody listens there.
    Refused,
    Failed(quinn::ConnectionError),
}

/// Tries to connect with an address.
async fn attempt(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
) -> Result<quinn::Connection, Attempt> {
    // The name is not sent and not checked: the key is all that counts.
    let connecting = endpoint.connect_with(config, address, "memfs");
    let connecting = connecting.map_err(|error| {
        tracing::debug!("{address}: {error}");
        Attempt::Impossible
    })?;
    tokio::select! {
        connection = connecting => connection.map_err(Attempt::Failed),
        () = refused(address) => Err(Attempt::Refused),
    }
}

/// Ends when the machine at `address` says that nobody listens on the port (ICMP port unreachable). QUIC itself pays no
/// heed to that, as others could say so; here it costs them no more than that it is tried again.
pub async fn refused(address: SocketAddr) {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let Ok(socket) = tokio::net::UdpSocket::bind(any).await else {
        return std::future::pending().await;
    };
    loop {
        let asked = async {
            socket.connect(address).await?;
            // Nothing that a server would answer.
            socket.send(&[0]).await?;
            socket.recv(&mut [0]).await
        };
        match timeout(REFUSAL_AWAITED, asked).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return,
            // As where there is no way to it.
            Ok(_) => sleep(REFUSAL_AWAITED).await,
            Err(_) => {}
        }
    }
}
