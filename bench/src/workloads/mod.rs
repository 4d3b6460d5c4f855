//! What is measured, each on a mount of its own that begins cold.
//!
//! | workload | what is done | what is measured |
//! |---|---|---|
//! | `read` | read(2) of 1 MiB from end to end, then the same again | MiB/s of both, processor time, memory |
//! | `map` | reads of 64 KiB through a mapping | MiB/s |
//! | `random`, `random8` | reads of 4 KiB through a mapping, MADV_RANDOM, by 1 and 8 threads | latency, faults/s |
//! | `write` | write(2) of 1 MiB, then fsync | MiB/s, processor time |
//! | `map-write` | stores of 64 KiB through a mapping, then msync | MiB/s |
//! | `stores` | 4096 random stores of 4 KiB to present pages (512 where it is quick and slow), then msync; then the same after the file was opened anew | stores/s |
//! | `mount` | mount, then the first page of a known path | milliseconds of both |
//! | `middle` | mount, then a page of the middle of a known path | milliseconds of the second |
//! | `remount` | all read, unmounted, mounted again and read through a mapping | MiB/s, bytes that came over the link |
//! | `delta` | all read, unmounted, one page in a hundred changed at the server, mounted again and read | MiB/s, bytes that came over the link |
//! | `list` | a directory of 100,000 files, each with its attributes, twice | seconds of both |
//! | `small` | 500 small files: unpacked, read through a second mount, removed | seconds of each, processor time of the first |
//! | `demand` | random faults while all else is brought in the background (memfs) | latency, MiB/s of the rest |
//! | `learned` | 2000 scattered pages of a 1 GiB file, where another mount has touched them before (memfs) | seconds, and without that |
//!
//! fio does what is sequential. Single pages are touched by programs of our own: with several threads fio
//! 3.33 maps the beginning of the file for all of them, whatever their offsets are; and where a system
//! lets go of its pages when a file is opened, they are present only for who has it open.

mod delta;
mod demand;
mod fault;
mod fio;
mod learned;
mod list;
mod small;
mod stores;

pub use demand::{TouchArgs, touch};
pub use fault::{FaultArgs, Latencies, fault};
pub use learned::{ScatterArgs, scatter};
pub use list::{ListArgs, list};
pub use stores::{StoresArgs, stores};

use crate::link::Link;
use crate::peers::{How, Session, System};
use fio::Job;
use std::time::Duration;

/// Bytes of a GiB.
const GIB: f64 = (1 << 30) as f64;

/// A name from [`crate::report::METRICS`] and its value.
pub type Measure = (&'static str, f64);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Sequential read(2), twice
    Read,
    /// Sequential mapped read
    Map,
    /// Random mapped reads by one thread
    Random,
    /// Random mapped reads by eight threads
    Random8,
    /// Sequential write(2) and fsync
    Write,
    /// Sequential mapped write and msync
    MapWrite,
    /// Random mapped stores to what is present, and msync
    Stores,
    /// Mount and first page
    Mount,
    /// Mount and a page of the middle
    Middle,
    /// A second mount
    Remount,
    /// A second mount of what was changed in part
    Delta,
    /// A directory of very many files
    List,
    /// Many small files
    Small,
    /// Faults beside a background pull
    Demand,
    /// Scattered places that were touched before
    Learned,
}

impl Workload {
    /// Why a system is left out of it, if it is.
    pub fn leaves_out(self, system: System, link: &Link) -> Option<&'static str> {
        use System::{Local, Memfs, Nbdfuse, Raw, Rclone};
        match (self, system) {
            (Workload::Demand, Memfs) if link.line().is_none() => {
                Some("all is there before there can be a fault")
            }
            (Workload::Demand, Memfs) => None,
            (Workload::Demand, _) => Some("brings nothing in the background"),
            (Workload::Learned, Memfs) if link.line().is_none() => {
                Some("a round trip costs next to nothing")
            }
            (Workload::Learned, Memfs) => None,
            (Workload::Learned, _) => Some("learns nothing"),
            (Workload::Read | Workload::Write | Workload::Random | Workload::Random8, Raw) => None,
            (_, Raw) => Some("mounts nothing"),
            (Workload::Mount | Workload::Middle | Workload::Remount | Workload::Delta, Local) => {
                Some("is no mount")
            }
            (Workload::List | Workload::Small, Nbdfuse) => Some("has one file"),
            (Workload::Write | Workload::MapWrite | Workload::Stores, Rclone) => {
                Some("its fsync does not wait for the server")
            }
            (Workload::Small, Rclone) => Some("its close does not wait for the server"),
            _ => None,
        }
    }
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of it that `stores` and `remount` use.
    pub region: u64,
    /// A sequential run ends after so long, with what it has then.
    pub sequential_max: Duration,
    /// So long random reads go on.
    pub random: Duration,
    /// Random stores of `stores`.
    pub stores: u64,
    /// A number for chance.
    pub seed: u64,
}

/// Does it once.
///
/// # Errors
/// One line, of the system or of a program that measures it.
pub fn run(workload: Workload, session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    match workload {
        Workload::Read => read(session, extent),
        Workload::Map => {
            let mount = session.mount(How::default())?;
            let speed = Job::read(&mount.file, extent).mapped().run(session)?.speed;
            mount.unmount()?;
            Ok(vec![("map", speed)])
        }
        Workload::Random => fault::run(session, extent, 1),
        Workload::Random8 => fault::run(session, extent, 8),
        Workload::Write => write(session, extent),
        Workload::MapWrite => {
            let mount = session.mount(How::default())?;
            let speed = Job::write(&mount.file, extent).mapped().run(session)?.speed;
            mount.unmount()?;
            Ok(vec![("map-write", speed)])
        }
        Workload::Stores => stores::run(session, extent),
        Workload::Mount => {
            let mount = session.mount(How::default())?;
            let mut measures = vec![("mount", mount.seconds * 1000.0)];
            let millis = demand::page(session, &mount.file, 0)?;
            measures.push(("first-page", millis));
            mount.unmount()?;
            Ok(measures)
        }
        Workload::Middle => {
            let mount = session.mount(How::default())?;
            let millis = demand::page(session, &mount.file, extent.bytes / 2)?;
            mount.unmount()?;
            Ok(vec![("middle-page", millis)])
        }
        Workload::Remount => remount(session, extent),
        Workload::Delta => delta::run(session, extent),
        Workload::List => list::run(session),
        Workload::Small => small::run(session),
        Workload::Demand => demand::run(session, extent),
        Workload::Learned => learned::run(session, extent),
    }
}

/// Processor time while something runs, on both sides.
struct Effort([Option<f64>; 2]);

impl Effort {
    fn begin(session: &Session) -> Effort {
        Effort([session.client.seconds(), session.server.seconds()])
    }

    /// For each of so many, in a unit of which a second has so many.
    fn end(
        self,
        session: &Session,
        count: f64,
        units: f64,
        names: [&'static str; 2],
    ) -> Vec<Measure> {
        let now = Effort::begin(session).0;
        let both = names.into_iter().zip(self.0.into_iter().zip(now));
        both.filter_map(|(name, (then, now))| Some((name, (now? - then?) * units / count)))
            .collect()
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn read(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let names = ["read-cpu-client", "read-cpu-server"];
    if session.system == System::Raw {
        let effort = Effort::begin(session);
        let seconds = session.transfer(extent.bytes, false)?;
        let bytes = extent.bytes as f64;
        let mut measures = vec![("read", mib(bytes) / seconds)];
        // The client has ended, its group still knows what it took.
        measures.extend(effort.end(session, bytes / GIB, 1.0, names));
        return Ok(measures);
    }
    let mount = session.mount(How::default())?;
    let effort = Effort::begin(session);
    let first = Job::read(&mount.file, extent).run(session)?;
    let mut measures = vec![("read", first.speed)];
    if session.system != System::Local {
        measures.extend(effort.end(session, first.bytes / GIB, 1.0, names));
        let memory = session.client.memory();
        measures.extend(memory.map(|memory| ("read-memory", mib(memory as f64))));
    }
    // What is present is what was read in time.
    let present = Extent {
        bytes: (first.bytes as u64) >> 20 << 20,
        ..*extent
    };
    let again = Job::read(&mount.file, &present).run(session)?;
    measures.push(("again", again.speed));
    mount.unmount()?;
    Ok(measures)
}

fn write(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let names = ["write-cpu-client", "write-cpu-server"];
    let effort = Effort::begin(session);
    if session.system == System::Raw {
        let seconds = session.transfer(extent.bytes, true)?;
        let bytes = extent.bytes as f64;
        let mut measures = vec![("write", mib(bytes) / seconds)];
        measures.extend(effort.end(session, bytes / GIB, 1.0, names));
        return Ok(measures);
    }
    let mount = session.mount(How::default())?;
    let outcome = Job::write(&mount.file, extent).run(session)?;
    let mut measures = vec![("write", outcome.speed)];
    if session.system != System::Local {
        measures.extend(effort.end(session, outcome.bytes / GIB, 1.0, names));
    }
    mount.unmount()?;
    Ok(measures)
}

fn remount(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    let region = Extent {
        bytes: extent.region,
        sequential_max: extent.sequential_max * 4,
        ..*extent
    };
    let read = |how: How| -> Result<f64, String> {
        let mount = session.mount(how)?;
        let outcome = Job::read(&mount.file, &region).mapped().run(session)?;
        mount.unmount()?;
        match (outcome.bytes as u64) < region.bytes {
            true => Err("too slow to read all of it in time".into()),
            false => Ok(outcome.speed),
        }
    };
    read(How::default())?;
    let before = session.place.link.bytes_received()?;
    let speed = read(How::default())?;
    let came = session.place.link.bytes_received()?.saturating_sub(before);
    let mut measures = vec![
        ("remount", speed),
        ("remount-share", 100.0 * came as f64 / region.bytes as f64),
    ];
    if session.system == System::Memfs {
        let read_only = How {
            read_only: true,
            ..How::default()
        };
        measures.push(("remount-ro", read(read_only)?));
    }
    Ok(measures)
}
