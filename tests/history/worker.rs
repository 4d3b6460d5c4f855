//! A program on a mount, with several threads that read, store and sync at random and tell what they did, and one that
//! looks at all pages meanwhile, again and again.
//!
//! It is told line by line: `round SEED` (each thread does some things), `sync` (all files), `read` (all pages, in both
//! ways). It answers with one line for each thing done, `h r FILE PAGE VALUE START END` and the like, and then `h .`.

use super::checker::{Event, Page, What};
use super::{FILES, PAGE_BYTES, PAGES, file_name};
use crate::common::dice::Dice;
use memfs::sys::MappedWords;
use memmap2::{MmapOptions, MmapRaw};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

/// Threads of each worker.
const THREADS: u64 = 2;
/// What each of them does in a round.
const THINGS: u64 = 14;

/// A file in every way.
struct Open {
    path: PathBuf,
    file: File,
    words: MappedWords,
    mapping: MmapRaw,
}

impl Open {
    fn new(path: PathBuf) -> Result<Open> {
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Open {
            words: MappedWords::open(&path)?,
            mapping: MmapOptions::new().map_raw(&file)?,
            file,
            path,
        })
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Does something, and tells when.
fn timed<R>(what: impl FnOnce() -> Result<R>) -> Result<(R, u64, u64)> {
    let start = now();
    let result = what()?;
    Ok((result, start, now()))
}

struct Worker {
    mount: u32,
    files: Vec<Open>,
}

/// A thread's own numbers, which go on from round to round.
struct Thread {
    writer: u64,
    stores: u64,
}

impl Worker {
    fn read(&self, page: Page, by_mapping: bool) -> Result<Event> {
        let open = &self.files[page.0 as usize];
        let offset = u64::from(page.1) * PAGE_BYTES;
        let (value, start, end) = timed(|| {
            if by_mapping {
                return Ok(open.words.load(offset / 8));
            }
            let mut bytes = [0; 8];
            open.file.read_exact_at(&mut bytes, offset)?;
            Ok(u64::from_le_bytes(bytes))
        })?;
        Ok(self.event(What::Read(page, value), start, end))
    }

    fn store(&self, page: Page, value: u64, by_mapping: bool) -> Result<Event> {
        let open = &self.files[page.0 as usize];
        let offset = u64::from(page.1) * PAGE_BYTES;
        let ((), start, end) = timed(|| {
            if by_mapping {
                open.words.store(offset / 8, value);
                return Ok(());
            }
            open.file.write_all_at(&value.to_le_bytes(), offset)
        })?;
        Ok(self.event(What::Store(page, value), start, end))
    }

    fn sync(&self, file: u32, how: u64) -> Result<Event> {
        let open = &self.files[file as usize];
        let another = match how {
            0 => Some(File::options().write(true).open(&open.path)?),
            _ => None,
        };
        let ((), start, end) = timed(|| match (another, how) {
            (Some(another), _) => {
                drop(another); // close
                Ok(())
            }
            (None, 1) => open.mapping.flush(), // msync
            (None, _) => open.file.sync_all(),
        })?;
        Ok(self.event(What::Sync(file), start, end))
    }

    fn event(&self, what: What, start: u64, end: u64) -> Event {
        Event {
            mount: self.mount,
            what,
            start,
            end,
        }
    }

    fn things(&self, thread: &mut Thread, mut dice: Dice) -> Result<Vec<Event>> {
        let mut done = Vec::new();
        for _ in 0..THINGS {
            let file = dice.below(u64::from(FILES)) as u32;
            let page = (file, dice.below(u64::from(PAGES)) as u32);
            let kind = dice.below(100);
            let mut next = || {
                thread.stores += 1;
                thread.writer << 48 | thread.stores
            };
            done.push(match kind {
                0..25 => self.read(page, false)?,
                25..50 => self.read(page, true)?,
                50..64 => self.store(page, next(), false)?,
                64..78 => self.store(page, next(), true)?,
                _ => self.sync(file, dice.below(4))?,
            });
            // Bursts, and rests in which others have their turn.
            if dice.below(3) == 0 {
                std::thread::sleep(Duration::from_micros(dice.below(4000)));
            }
        }
        Ok(done)
    }

    /// Reads through the mapping until there is no need to. Of equal values in a row the first and the last count.
    fn watch(&self, ended: &AtomicBool) -> Result<Vec<Event>> {
        let mut seen: HashMap<Page, Vec<Event>> = HashMap::new();
        while !ended.load(Ordering::Relaxed) {
            for event in self.all(|page| Ok(vec![self.read(page, true)?]))? {
                let What::Read(page, _) = event.what else {
                    continue;
                };
                let seen = seen.entry(page).or_default();
                if let [.., first, last] = &seen[..]
                    && first.what == event.what
                    && last.what == event.what
                {
                    seen.pop();
                }
                seen.push(event);
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(seen.into_values().flatten().collect())
    }

    fn round(&self, threads: &mut [Thread], seed: u64) -> Result<Vec<Event>> {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| self.watch(&ended));
            let running: Vec<_> = (threads.iter_mut())
                .map(|thread| {
                    let dice = Dice(seed ^ thread.writer << 40);
                    scope.spawn(move || self.things(thread, dice))
                })
                .collect();
            let done: Vec<_> = running.into_iter().map(ScopedJoinHandle::join).collect();
            ended.store(true, Ordering::Relaxed);
            let mut all = Vec::new();
            for thread in done.into_iter().chain([watching.join()]) {
                all.extend(thread.expect("a thread does not panic")?);
            }
            Ok(all)
        })
    }

    fn all(&self, one: impl Fn(Page) -> Result<Vec<Event>>) -> Result<Vec<Event>> {
        let mut done = Vec::new();
        for file in 0..FILES {
            for page in 0..PAGES {
                done.extend(one((file, page))?);
            }
        }
        Ok(done)
    }
}

fn tell(events: &[Event]) {
    for Event {
        what, start, end, ..
    } in events
    {
        match what {
            What::Store((file, page), value) => println!("h s {file} {page} {value} {start} {end}"),
            What::Read((file, page), value) => println!("h r {file} {page} {value} {start} {end}"),
            What::Sync(file) => println!("h y {file} 0 0 {start} {end}"),
        }
    }
    println!("h .");
}

/// What a line of the worker of a mount says; `None`: all is told.
pub fn understand(mount: u32, line: &str) -> Option<Event> {
    let mut words = line.split(' ').skip(1);
    let kind = words.next()?;
    let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let [file, page, value, start, end] = numbers[..] else {
        return None;
    };
    let page = (file as u32, page as u32);
    let what = match kind {
        "s" => What::Store(page, value),
        "r" => What::Read(page, value),
        "y" => What::Sync(page.0),
        _ => panic!("{line}"),
    };
    Some(Event {
        mount,
        what,
        start,
        end,
    })
}

/// Works until nobody tells it what to do any more.
pub fn work(folder: &Path, mount: u32) -> Result<()> {
    let files = (0..FILES).map(|file| Open::new(folder.join(file_name(file))));
    let files = files.collect::<Result<_>>()?;
    let worker = Worker { mount, files };
    let writer = |thread| Thread {
        writer: u64::from(mount) * THREADS + thread + 1,
        stores: 0,
    };
    let mut threads: Vec<Thread> = (0..THREADS).map(writer).collect();
    println!("\nh ."); // after what the test runner says
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let done = match line.split_once(' ') {
            Some(("round", seed)) => worker.round(&mut threads, seed.parse().unwrap())?,
            _ if line == "sync" => {
                let syncs = (0..FILES).map(|file| worker.sync(file, 2));
                syncs.collect::<Result<Vec<_>>>()?
            }
            _ => {
                worker.all(|page| Ok(vec![worker.read(page, false)?, worker.read(page, true)?]))?
            }
        };
        tell(&done);
    }
    Ok(())
}
