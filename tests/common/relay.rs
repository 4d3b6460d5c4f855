//! A way between a mount and its server that can be cut: datagrams are handed on, or lost.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Between a mount and its server; the way can be cut.
pub struct Relay {
    /// What the mount takes for the server's.
    pub address: String,
    cut: Arc<AtomicBool>,
}

impl Relay {
    /// Its threads end with the test.
    pub fn start(server: &str) -> Relay {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = front.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let (server, cut_here) = (server.to_owned(), cut.clone());
        std::thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            // As a router does it: each who sends has an address of its own on the other side.
            let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            while let Ok((len, from)) = front.recv_from(&mut bytes) {
                let way = ways
                    .entry(from)
                    .or_insert_with(|| back(&server, &front, from, &cut_here));
                if !cut_here.load(Ordering::Relaxed) {
                    let _ = way.send(&bytes[..len]); // the server may be gone
                }
            }
        });
        Relay { address, cut }
    }

    /// What to mount.
    pub fn source(&self) -> String {
        format!("memfs://{}/", self.address)
    }

    /// What comes is lost from here on, or is not.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

/// A socket to the server; what it answers is handed on.
fn back(
    server: &str,
    front: &Arc<UdpSocket>,
    to: SocketAddr,
    cut: &Arc<AtomicBool>,
) -> Arc<UdpSocket> {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    back.connect(server).unwrap();
    let (front, cut, from) = (front.clone(), cut.clone(), back.clone());
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65536];
        loop {
            let Ok(len) = from.recv(&mut bytes) else {
                continue; // the server may be gone
            };
            if !cut.load(Ordering::Relaxed) {
                let _ = front.send_to(&bytes[..len], to);
            }
        }
    });
    back
}
