//! Notices when the ways out of this machine change: an address, a route or a device comes or goes (rtnetlink(7)).
//!
//! What is sent while there is no way is lost, and QUIC waits longer each time before it sends it again. Who knows that the
//! network has changed need not wait.

use crate::sys::watched;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::io;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// What is to be told of.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;
/// Changes within this time count as one: an address comes with its routes.
const SETTLE: Duration = Duration::from_millis(100);
/// Where it changes all the time, that is told only so often.
const PAUSE: Duration = Duration::from_secs(1);

/// The network of this machine, from when this was made.
pub struct Network {
    socket: Option<AsyncFd<OwnedFd>>,
    /// When it was made, or has told of a change.
    told: Mutex<Instant>,
}

impl Network {
    /// Where the kernel tells nobody, nothing ever changes. To be called within a tokio runtime.
    pub fn watch() -> Network {
        let network = listen();
        if let Err(why) = &network {
            tracing::debug!("changes of the network are not noticed: {why}");
        }
        Network {
            socket: network.ok(),
            told: Mutex::new(Instant::now()),
        }
    }

    /// Waits until something has changed that it has not told of. It may be dropped and called again.
    pub async fn changed(&self) {
        let changed = match &self.socket {
            Some(socket) => self.heard(socket).await,
            None => std::future::pending().await,
        };
        if let Err(why) = changed {
            tracing::debug!("changes of the network are not noticed any more: {why}");
            std::future::pending().await
        }
    }

    async fn heard(&self, socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
        drop(socket.readable().await?);
        let settled = Instant::now() + SETTLE;
        let at = settled.max(*self.told.lock() + PAUSE);
        tokio::time::sleep_until(at).await;
        drain(socket).await?;
        *self.told.lock() = Instant::now();
        Ok(())
    }
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS as u32))?;
    watched(socket)
}

/// Takes all there is to be heard.
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    loop {
        // What it is does not matter: a message that does not fit is cut, and gone.
        match recv(socket.get_ref(), &mut [0; 64][..], RecvFlags::TRUNC) {
            // Some were lost, as there were too many.
            Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
