//! Programs that read and store through a mount, and may have to wait.

use super::mount::{JUNK, Mount};
use super::world::{Cells, World, bytes};
use crate::region::{Residency, WaiterId};

/// A read that is not answered yet.
#[derive(Debug)]
pub struct Read {
    range: Cells,
    waiter: Option<WaiterId>,
    /// Of each of its cells: the last change that was known to be done when it began.
    floor: Vec<u64>,
}

impl Mount {
    pub fn read(&mut self, world: &World, range: Cells) {
        let floor = world.floor[range.start as usize..range.end as usize].to_vec();
        self.reads.push(Read {
            range,
            waiter: None,
            floor,
        });
    }

    /// Whoever is woken goes on; an error ends it.
    pub fn wake(&mut self) {
        let Some(core) = &mut self.core else {
            return;
        };
        while let Some((waiter, outcome)) = core.poll_woken() {
            let read = self.reads.iter().position(|it| it.waiter == Some(waiter));
            let store = self.stores.iter().position(|it| it.1 == Some(waiter));
            match (read, store, outcome) {
                (Some(read), _, Ok(())) => self.reads[read].waiter = None,
                (_, Some(store), Ok(())) => self.stores[store].1 = None,
                (Some(read), _, Err(_)) => drop(self.reads.swap_remove(read)),
                (_, Some(store), Err(_)) => drop(self.stores.swap_remove(store)),
                (None, None, _) => panic!("{waiter:?} is woken, and does not wait"),
            }
        }
    }

    /// Answers reads and makes stores that need not wait.
    pub fn serve(&mut self, world: &mut World) {
        if !self.lease.is_valid(world.now) || self.core.is_none() {
            return;
        }
        let mut reads = std::mem::take(&mut self.reads);
        reads.retain_mut(|read| !self.answer(world, read));
        self.reads = reads;
        if self.resize.is_some() {
            return;
        }
        let mut stores = std::mem::take(&mut self.stores);
        stores.retain_mut(|(range, waiter)| {
            let core = self.core.as_mut().unwrap();
            if core.is_storable(bytes(range)) {
                if let Some(waiter) = waiter.take() {
                    core.handle_waiter_gone(waiter);
                }
                self.store(world, range);
                return false;
            }
            if waiter.is_none() {
                match core.handle_store_fault(world.now, bytes(range)) {
                    Residency::Wait(id) => *waiter = Some(id),
                    Residency::Present => panic!("and not storable"),
                }
            }
            true
        });
        self.stores = stores;
    }

    fn answer(&mut self, world: &World, read: &mut Read) -> bool {
        let size = self.size();
        let core = self.core.as_mut().unwrap();
        if !core.is_present(bytes(&read.range)) {
            if read.waiter.is_none() {
                match core.handle_fault(world.now, bytes(&read.range)) {
                    Residency::Wait(id) => read.waiter = Some(id),
                    Residency::Present => panic!("and not present"),
                }
            }
            return false;
        }
        if let Some(waiter) = read.waiter.take() {
            core.handle_waiter_gone(waiter);
        }
        let unpushed = self.stored.unpushed();
        for (cell, &floor) in read.range.clone().zip(&read.floor) {
            let held = self.copy[cell as usize];
            let held = if cell < size { held } else { 0 };
            assert_ne!(held, JUNK);
            match self.mine.get(&cell) {
                Some(&mine) => assert_eq!(held, mine, "cell {cell}: read your writes"),
                // Stored in a page that somebody else has changed too: the last push wins.
                None if unpushed.contains(&(cell / 2)) => {}
                None => assert!(
                    world.has_held(cell, held, floor),
                    "cell {cell} holds {held}: older than change {floor}, which was done"
                ),
            }
        }
        true
    }

    /// Nobody waits for a read any more.
    pub fn abandon(&mut self, which: usize) {
        let read = self.reads.swap_remove(which);
        if let (Some(core), Some(waiter)) = (&mut self.core, read.waiter) {
            core.handle_waiter_gone(waiter);
        }
    }
}
