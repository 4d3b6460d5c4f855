//! A second mount of a file of which the first had all, and of which the server has changed one page in a hundred
//! meanwhile.

use super::{Extent, Job, Measure};
use crate::peers::{FILE, How, Session};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE_BYTES: usize = 4096;
/// Of so many pages one is changed.
const OF_PAGES: u64 = 100;

pub fn run(session: &Session, extent: &Extent) -> Result<Vec<Measure>, String> {
    // All of the file: what was never read would come as well.
    let whole = Extent {
        sequential_max: extent.sequential_max * 4,
        ..*extent
    };
    let read = || -> Result<f64, String> {
        let mount = session.mount(How::default())?;
        let outcome = Job::read(&mount.file, &whole).run(session)?;
        mount.unmount()?;
        match (outcome.bytes as u64) < extent.bytes {
            true => Err("too slow to read all of it in time".into()),
            false => Ok(outcome.speed),
        }
    };
    read()?;
    let served = session.place.served.join(FILE);
    change(&served, extent).map_err(|e| format!("{}: {e}", served.display()))?;
    let before = session.place.link.bytes_received()?;
    let speed = read()?;
    let came = session.place.link.bytes_received()?.saturating_sub(before);
    let share = 100.0 * came as f64 / extent.bytes as f64;
    Ok(vec![("delta", speed), ("delta-share", share)])
}

/// Other random bytes in random pages.
fn change(file: &std::path::Path, extent: &Extent) -> std::io::Result<()> {
    let file = File::options().write(true).open(file)?;
    let mut random = fastrand::Rng::with_seed(extent.seed);
    let pages = extent.bytes / PAGE_BYTES as u64;
    let mut page = [0; PAGE_BYTES];
    for _ in 0..pages / OF_PAGES {
        random.fill(&mut page);
        file.write_all_at(&page, random.u64(0..pages) * PAGE_BYTES as u64)?;
    }
    Ok(())
}
