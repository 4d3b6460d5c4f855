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

use super::{Authorized, Grant, Identity, PublicKey, tls};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The UDP port where nobody says another.
pub const PORT_DEFAULT: u16 = 4433;

/// Closes a connection that has served its purpose.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// Closes a connection whose client is not let in.
pub(super) const CLOSE_UNAUTHORIZED: VarInt = VarInt::from_u32(1);
/// Closes a connection whose server is not trusted.
pub(super) const CLOSE_UNTRUSTED: VarInt = VarInt::from_u32(2);

/// Streams a replica may have open at first: one is the control stream, the others are requests.
pub const STREAMS_AT_FIRST: u32 = 256;
/// What may be on its way in one stream: 1 Gbit/s at 130 ms.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What may be on its way in all streams of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// What a client may send before the server has widened that.
const GREETING_WINDOW_BYTES: u32 = 256 << 10;
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

/// A connection whose client has shown a key that is let in, and what for.
type Accepted = (quinn::Connection, PublicKey, Grant);

/// Takes connections. Dropped, it closes them as [`Listener::close`] does.
pub struct Listener {
    endpoint: quinn::Endpoint,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Accepted>>,
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
        let mut transport = transport_config(STREAMS_AT_FIRST);
        transport.receive_window(VarInt::from_u32(GREETING_WINDOW_BYTES));
        config.transport_config(Arc::new(transport));
        config.max_incoming(HANDSHAKES_MAX);
        // Nothing of use can come before the handshake.
        config.incoming_buffer_size(64 << 10);
        config.incoming_buffer_size_total(4 << 20);

        let known_again = known_again(identity, socket.local_addr()?.port());
        let endpoint = endpoint(socket, known_again, Some(config))?;
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

    /// The next connection whose handshake has succeeded, with a key that is let in and what for. Handshakes
    /// go on beside each other; those that fail are logged and dropped. `None` after `close`.
    ///
    /// The client may send little until [`quinn::Connection::set_receive_window`] lets it send more, up to
    /// [`CONNECTION_WINDOW_BYTES`].
    pub async fn accept(&self) -> Option<(quinn::Connection, PublicKey, Grant)> {
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
    accepted: mpsc::Sender<Accepted>,
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
) -> Result<Accepted, String> {
    let connection = incoming.await.map_err(|error| plain(&error))?;
    let key = tls::peer_key(&connection).ok_or("the client shows no key")?;
    // This may read a file.
    let granted = tokio::task::spawn_blocking(move || authorized.grant(&key))
        .await
        .map_err(|error| error.to_string())?;
    if let Some(grant) = granted {
        tracing::info!("connection from {from} with key {}", key.fingerprint());
        return Ok((connection, key, grant));
    }
    connection.close(CLOSE_UNAUTHORIZED, b"this key is not authorized");
    Err(format!(
        "refused, its key {} is not authorized; to let it in: memfs key authorize '{key}'",
        key.fingerprint()
    ))
}

/// An error that may hold words of somebody unknown, fit for a terminal and for one line of a log.
pub(super) fn plain(error: &quinn::ConnectionError) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// How connections behave; the peer may open `streams` bidirectional streams at once.
pub(super) fn transport_config(streams: u32) -> quinn::TransportConfig {
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
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
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

/// An endpoint that, started again with the same identity on the same port, can tell the clients of the one before
/// that their connections are gone: by stateless resets (RFC 9000, 10.3). Otherwise they would find that
/// out by [`IDLE_MAX`].
fn known_again(identity: &Identity, port: u16) -> EndpointConfig {
    use ring::hmac::{HMAC_SHA256, Key};
    // Of the port as well: an endpoint is not to give away the tokens of another one (21.11 there).
    let secret = |purpose: &str| identity.secret(&format!("memfs {purpose}, port {port}"));
    let resets = Key::new(HMAC_SHA256, &secret("stateless resets"));
    let mut config = EndpointConfig::new(Arc::new(resets));
    let mut ids = [0; 8];
    ids.copy_from_slice(&secret("connection ids")[..8]);
    let ids = u64::from_le_bytes(ids);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// A QUIC endpoint on a socket.
pub(super) fn endpoint(
    socket: UdpSocket,
    mut config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    use rustix::net::sockopt;
    // Without privileges the kernel gives what net.core.rmem_max and wmem_max allow, which does.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES));
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES));
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
