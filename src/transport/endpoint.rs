//! QUIC endpoints and their tuning.
//!
//! ```text
//! Dialer::connect                                Listener::accept
//!   resolve, try all addresses ── handshake ──▶    each in a task of its own, bounded in number and time
//!   is the server's key trusted?                   is the client's key let in?
//!   no: CLOSE_UNTRUSTED                            no: CLOSE_UNAUTHORIZED, logged
//! ```
//!
//! TLS has checked that both sides hold their keys before either question is asked. The client is
//! the first to have its answer, so it may take itself as connected before the server refuses it.

use super::{Authorized, Identity, PublicKey, ServerTrust, tls};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The UDP port where nobody says another.
pub const PORT_DEFAULT: u16 = 4433;

/// Closes a connection that has served its purpose.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// Closes a connection whose client is not let in.
pub(super) const CLOSE_UNAUTHORIZED: VarInt = VarInt::from_u32(1);
/// Closes a connection whose server is not trusted.
const CLOSE_UNTRUSTED: VarInt = VarInt::from_u32(2);

/// Streams a replica may have open: one is the control stream, the others are requests.
const REQUESTS_MAX: u32 = 4096;
/// What may be on its way in one stream: 1 Gbit/s at 130 ms.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What may be on its way in all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// The largest datagram that is tried on a path (RFC 8899): what takes 2 s of processor time per GiB and
/// side with 1452 bytes takes 0.7 s with these, on loopback or with jumbo frames. quinn hands the kernel
/// ten datagrams at once, which drops all of them where they pass 65,507 bytes together.
const DATAGRAM_BYTES_MAX: u16 = 6500;
/// Asked of the kernel: bursts wait here for their reader; what does not fit is lost.
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;
/// Asked of the kernel.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// A connection is dead when nothing was heard for so long.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// So often something is sent even if there is nothing to say.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A client has so long to finish its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes going on at once; who comes then has to come again.
const HANDSHAKES_MAX: usize = 256;
/// From so many handshakes on, clients first prove that their address is theirs.
const HANDSHAKES_UNPROVED_MAX: usize = 32;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The next address is tried when the one before has not answered for so long (RFC 8305).
const ADDRESS_STAGGER: Duration = Duration::from_millis(250);

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
    host: String,
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
        let tls = tls::client(&identity).map_err(io::Error::other)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config(0)));
        // One socket for both families; where there is no IPv6, for IPv4 alone.
        let socket = bind((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        Ok(Dialer(Arc::new(Inner {
            host: host.trim_matches(['[', ']']).to_ascii_lowercase(),
            port,
            public: identity.public(),
            trust,
            trusted: parking_lot::Mutex::new(None),
            endpoint: endpoint(socket, None)?,
            config,
        })))
    }

    /// A connection on which the handshake has succeeded and the server's key was found trusted.
    /// Tries each address the name has. Gives up after `patience`, not counting the time the user takes
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
        let Inner { host, port, .. } = &*self.0;
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

    /// A connection after its handshake, over whichever address answers first.
    async fn reach(&self, deadline: Instant) -> Result<quinn::Connection, ConnectError> {
        let addresses = self.resolve(deadline).await?;
        let mut attempts = JoinSet::new();
        for (n, &address) in addresses.iter().enumerate() {
            let connecting = self.0.endpoint.clone();
            let config = self.0.config.clone();
            attempts.spawn(async move {
                sleep(ADDRESS_STAGGER * n as u32).await;
                // The name is not sent and not checked: the key is all that counts.
                match connecting.connect_with(config, address, "memfs") {
                    Ok(connecting) => connecting.await.map_err(Some),
                    Err(error) => {
                        tracing::debug!("{address}: {error}");
                        Err(None)
                    }
                }
            });
        }
        let mut worst = None;
        while let Ok(Some(attempt)) = timeout_at(deadline, attempts.join_next()).await {
            match attempt {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(Some(quinn::ConnectionError::TimedOut) | None)) | Err(_) => {}
                Ok(Err(Some(error))) => worst = Some(error),
            }
        }
        Err(match worst {
            Some(error) => self.failed(&plain(&error)),
            None => ConnectError::Unreachable {
                host: self.name(),
                address: addresses[0],
            },
        })
    }

    /// The addresses of the host, at least one.
    async fn resolve(&self, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
        let lookup = tokio::net::lookup_host((self.0.host.as_str(), self.0.port));
        let reason = match timeout_at(deadline, lookup).await {
            Ok(Ok(found)) => {
                let mut addresses = Vec::new();
                for address in found.take(64) {
                    if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                if !addresses.is_empty() {
                    return Ok(addresses);
                }
                "the name has no address".to_string()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer from the resolver of names".to_string(),
        };
        let host = self.name();
        Err(ConnectError::Resolve { host, reason })
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

/// Takes connections. Dropped, it closes them as [`Listener::close`] does.
pub struct Listener {
    endpoint: quinn::Endpoint,
    accepted: tokio::sync::Mutex<mpsc::Receiver<(quinn::Connection, PublicKey)>>,
}

impl Listener {
    /// Listens on `address`; the unspecified IPv6 address takes IPv4 as well. To be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub fn new(
        address: SocketAddr,
        identity: &Identity,
        authorized: Authorized,
    ) -> io::Result<Listener> {
        Listener::from_socket(bind(address)?, identity, authorized)
    }

    /// Listens on a socket that is bound already. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the socket cannot be used.
    pub fn from_socket(
        socket: UdpSocket,
        identity: &Identity,
        authorized: Authorized,
    ) -> io::Result<Listener> {
        let tls = tls::server(identity).map_err(io::Error::other)?;
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config(REQUESTS_MAX)));
        config.max_incoming(HANDSHAKES_MAX);
        // Nothing of use can come before the handshake.
        config.incoming_buffer_size(64 << 10);
        config.incoming_buffer_size_total(4 << 20);

        let endpoint = endpoint(socket, Some(config))?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept_all(endpoint.clone(), authorized, sender));
        Ok(Listener {
            endpoint,
            accepted: tokio::sync::Mutex::new(receiver),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next connection whose handshake has succeeded, with a key that is let in. Handshakes go
    /// on beside each other; those that fail are logged and dropped. `None` after `close`.
    pub async fn accept(&self) -> Option<(quinn::Connection, PublicKey)> {
        self.accepted.lock().await.recv().await
    }

    /// Takes no more connections and closes those there are.
    pub fn close(&self) {
        self.endpoint.close(CLOSE_DONE, b"the server ends");
    }

    /// Waits until the other side of each closed connection was told so. To be called before a program
    /// ends; lasts a few round trips at most.
    pub async fn wait_closed(&self) {
        self.endpoint.wait_idle().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs until the endpoint is closed.
async fn accept_all(
    endpoint: quinn::Endpoint,
    authorized: Authorized,
    accepted: mpsc::Sender<(quinn::Connection, PublicKey)>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = handshakes.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        let pending = handshakes.len();
        if pending >= HANDSHAKES_MAX {
            incoming.refuse();
        } else if pending >= HANDSHAKES_UNPROVED_MAX && !incoming.remote_address_validated() {
            // Cannot fail: the address is not validated.
            let _ = incoming.retry();
        } else {
            let (authorized, accepted) = (authorized.clone(), accepted.clone());
            handshakes.spawn(async move {
                let from = incoming.remote_address();
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                match timeout(HANDSHAKE_MAX, let_in(incoming, from, authorized)).await {
                    // Nobody takes it only where the listener is gone.
                    Ok(Ok(connection)) => drop(accepted.send(connection).await),
                    Ok(Err(why)) => tracing::warn!("connection from {from}: {why}"),
                    Err(_) => tracing::warn!("connection from {from}: too slow a handshake"),
                }
            });
        }
    }
}

/// Goes through the handshake with a client, which has to show a key that is let in.
async fn let_in(
    incoming: quinn::Incoming,
    from: SocketAddr,
    authorized: Authorized,
) -> Result<(quinn::Connection, PublicKey), String> {
    let connection = incoming.await.map_err(|error| plain(&error))?;
    let key = tls::peer_key(&connection).ok_or("the client shows no key")?;
    // This may read a file.
    let allowed = tokio::task::spawn_blocking(move || authorized.allows(&key))
        .await
        .map_err(|error| error.to_string())?;
    if allowed {
        tracing::info!("connection from {from} with key {}", key.fingerprint());
        return Ok((connection, key));
    }
    connection.close(CLOSE_UNAUTHORIZED, b"this key is not authorized");
    Err(format!(
        "refused, its key {} is not authorized; to let it in: memfs key authorize '{key}'",
        key.fingerprint()
    ))
}

/// An error that may hold words of somebody unknown, fit for a terminal and for one line of a log.
fn plain(error: &quinn::ConnectionError) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// How connections behave; the peer may open `streams` bidirectional streams at once.
fn transport_config(streams: u32) -> quinn::TransportConfig {
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES_MAX);
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE_MAX.try_into().ok())
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(super::congestion::factory());
    config
}

/// A UDP socket of either family.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    Ok(socket.into())
}

/// A QUIC endpoint on a socket.
fn endpoint(socket: UdpSocket, server: Option<quinn::ServerConfig>) -> io::Result<quinn::Endpoint> {
    use rustix::net::sockopt;
    // Without privileges the kernel gives what net.core.rmem_max and wmem_max allow, which does.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES));
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES));
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(DATAGRAM_BYTES_MAX)
        .map_err(io::Error::other)?;
    quinn::Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_strangers_are_made_plain() {
        let close = quinn::ApplicationClose {
            error_code: CLOSE_DONE,
            reason: b"one\n\x1b[31mtwo"[..].into(),
        };
        let told = plain(&quinn::ConnectionError::ApplicationClosed(close));
        assert!(told.contains("one??[31mtwo"), "{told}");
    }
}
