//! Carries packets from one TUN device to another, one thread for each direction.
//!
//! ```text
//! device of one side ─ read ─▶ Shaper ─ when due ─ write ─▶ device of the other side
//! ```
//!
//! A thread sleeps in ppoll(2) until a packet comes or the next one is due. It runs before all ordinary
//! threads and asks for timers to the nanosecond, because programs at both ends share its processors
//! and a wire does not wait for them.

use super::shaper::{Fate, Shape, Shaper};
use crate::sys::{self, HEADER_BYTES, SUPER_PACKET_BYTES_MAX};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// Packets that are read before what is due is looked at again.
const BATCH: usize = 64;
/// Buffers that are kept to be used again.
const SPARE_MAX: usize = 1024;

/// What became of the packets of one direction.
#[derive(Debug, Default)]
pub struct Counts {
    /// That arrived. One that stands for many counts once.
    pub packets: AtomicU64,
    /// In them.
    pub bytes: AtomicU64,
    /// That chance took.
    pub lost: AtomicU64,
    /// That found the queue full.
    pub dropped: AtomicU64,
}

/// One direction of a link.
pub struct Direction {
    /// Where packets come from.
    pub from: File,
    /// Where they go.
    pub to: File,
    /// What happens to them.
    pub shape: Shape,
    /// For chance.
    pub seed: u64,
    /// The longest packet, header included.
    pub packet_bytes_max: usize,
}

/// Carries packets until the process ends. `failed` is called if that does not work any more.
///
/// # Errors
/// Where there is no thread to be had.
pub fn start(
    direction: Direction,
    failed: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<Arc<Counts>> {
    let counts = Arc::new(Counts::default());
    let counting = Arc::clone(&counts);
    thread::Builder::new()
        .name("memfs-bench-link".into())
        .spawn(move || {
            // Without it the link works, its delays are less exact.
            if let Err(error) = sys::run_before_others() {
                eprintln!("memfs-bench: the link runs with ordinary priority: {error}");
            }
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            if let Err(error) = carry(direction, &counting) {
                failed(error);
            }
        })?;
    Ok(counts)
}

fn carry(direction: Direction, counts: &Counts) -> io::Result<()> {
    let Direction {
        from,
        to,
        shape,
        seed,
        packet_bytes_max,
    } = direction;
    debug_assert!(packet_bytes_max <= SUPER_PACKET_BYTES_MAX);
    let mut shaper: Shaper<(Vec<u8>, usize)> = Shaper::new(shape, seed);
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut now = Instant::now();
        for _ in 0..BATCH {
            let mut buffer = spare.pop().unwrap_or_else(|| vec![0; packet_bytes_max]);
            let Some(len) = read(&from, &mut buffer)? else {
                spare.push(buffer);
                break;
            };
            // The time the packet is seen; what was read before it took its own.
            now = Instant::now();
            let bytes = len.saturating_sub(HEADER_BYTES) as u64;
            let (fate, back) = shaper.enqueue((buffer, len), bytes, now);
            match fate {
                Fate::Kept => {}
                Fate::Lost => count(&counts.lost, 1),
                Fate::Dropped => count(&counts.dropped, 1),
            }
            spare.extend(back.map(|(buffer, _)| buffer));
        }
        while let Some((buffer, len)) = shaper.poll(now) {
            match (&to).write(&buffer[..len]) {
                Ok(_) => {
                    count(&counts.packets, 1);
                    count(&counts.bytes, len.saturating_sub(HEADER_BYTES) as u64);
                }
                // What a receiver cannot take is lost, as everywhere.
                Err(_) => count(&counts.dropped, 1),
            }
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        }
        sleep(&from, shaper.next_due())?;
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The length of the next packet, if there is one.
fn read(mut from: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match from.read(buffer) {
            Ok(len) => return Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Until a packet comes, or the time has come.
fn sleep(from: &File, until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|due| due.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::new(from, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
