//! `memfs-bench link`: two network namespaces, joined as if by a long wire.
//!
//! ```text
//! namespace …-a              this process               namespace …-b
//! TUN 10.87.0.1 ◀── Shaper, a thread each way ──▶ TUN 10.87.0.2
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `shaper` | delay, rate, queue and loss, sans-IO |
//! | `relay` | carries packets through a shaper |
//! | `namespace` | network namespaces |
//! | `options` | what a link is like |
//! | `started` | a link that runs in a process of its own, for the runner |
//!
//! Where neither rate nor loss is asked for, kernels hand over segments of up to 64 KiB whole, which is
//! how far more than 5 Gbit/s fit through; else each packet goes its own way.

mod namespace;
mod options;
mod relay;
mod shaper;
mod started;

pub use options::Options;
pub use started::{Link, Side};

use crate::sys::{HEADER_BYTES, SUPER_PACKET_BYTES_MAX};
use namespace::Namespace;
use relay::{Counts, Direction};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The address of side a.
const ADDRESS_A: &str = "10.87.0.1";
/// The address of side b.
const ADDRESS_B: &str = "10.87.0.2";
/// The name of the device in either namespace.
const DEVICE: &str = "memfs-bench-0";
/// Packets the kernel keeps for the relay, as the driver of a fast network card does; what comes when
/// there are more is lost.
const DEVICE_QUEUE: &str = "2000";

/// Join two network namespaces by a link with delay, rate, queue and loss
///
/// When ready it prints one line with their names and addresses. The link is there until SIGINT or
/// SIGTERM. Programs run on one side with: nsenter --net=/run/netns/NAME PROGRAM
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// End when standard input does
    #[arg(long)]
    until_eof: bool,
}

/// Runs the command.
///
/// # Errors
/// One line.
pub fn run(args: &Args) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("a link needs root: it makes network namespaces and devices".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        // Caught before there is anything to clean up.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
        let (end, mut ended) = mpsc::unbounded_channel();
        namespace::remove_left_behind();
        let wire = Wire::new(args.options, &end)?;
        println!(
            "memfs-bench: link {} {ADDRESS_A} {} {ADDRESS_B}",
            wire.a.name(),
            wire.b.name()
        );
        if args.until_eof {
            std::thread::spawn(move || {
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                let _ = end.send(Ok(()));
            });
        }
        let outcome = tokio::select! {
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            Some(outcome) = ended.recv() => outcome,
        };
        wire.tell();
        outcome
    })
}

/// Both namespaces, and what goes on between them.
struct Wire {
    a: Namespace,
    b: Namespace,
    counts: [Arc<Counts>; 2],
}

impl Wire {
    fn new(
        options: Options,
        end: &mpsc::UnboundedSender<Result<(), String>>,
    ) -> Result<Wire, String> {
        let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
        let super_packets = options.super_packets();
        let (tun_a, tun_b) = (
            a.open_tun(DEVICE, super_packets)?,
            b.open_tun(DEVICE, super_packets)?,
        );
        for (space, own, other) in [(&a, ADDRESS_A, ADDRESS_B), (&b, ADDRESS_B, ADDRESS_A)] {
            space.ip(&["address", "add", own, "peer", other, "dev", DEVICE])?;
            let mtu = options.mtu.to_string();
            space.ip(&[
                "link",
                "set",
                DEVICE,
                "mtu",
                &mtu,
                "txqueuelen",
                DEVICE_QUEUE,
                "up",
            ])?;
        }
        let clone = |file: &std::fs::File| file.try_clone().map_err(|e| e.to_string());
        let packet_bytes_max = match super_packets {
            true => SUPER_PACKET_BYTES_MAX,
            false => HEADER_BYTES + usize::from(options.mtu),
        };
        let direction = |from, to, seed| {
            let end = end.clone();
            let direction = Direction {
                from,
                to,
                shape: options.shape(),
                seed,
                packet_bytes_max,
            };
            let failed = move |error| {
                let _ = end.send(Err(format!("the link broke: {error}")));
            };
            relay::start(direction, failed).map_err(|e| e.to_string())
        };
        let there = direction(clone(&tun_a)?, clone(&tun_b)?, options.seed)?;
        let back = direction(tun_b, tun_a, options.seed.wrapping_add(1))?;
        Ok(Wire {
            a,
            b,
            counts: [there, back],
        })
    }

    /// What became of the packets, on stderr.
    fn tell(&self) {
        for (name, counts) in ["a to b", "b to a"].into_iter().zip(&self.counts) {
            let [packets, bytes, lost, dropped] = [
                &counts.packets,
                &counts.bytes,
                &counts.lost,
                &counts.dropped,
            ]
            .map(|counter| counter.load(Ordering::Relaxed));
            eprintln!(
                "memfs-bench: {name}: {packets} packets, {bytes} bytes; {lost} lost, {dropped} dropped"
            );
        }
    }
}
