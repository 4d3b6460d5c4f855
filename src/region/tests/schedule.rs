//! Random schedules, and how they come to rest.

use super::Random;
use super::mount::{Link, Mount};
use super::world::{CELLS, Cells, LEASE, PAGES, Reply, Up, World};
use crate::region::ClientId;
use crate::units::{PAGE_BYTES, PageRange};
use std::time::Duration;

const STEPS: u64 = 150;
/// Steps in which all must have come to rest.
const REST_STEPS_MAX: u64 = 2000;

struct Schedule {
    random: Random,
    world: World,
    mounts: Vec<Mount>,
    /// How often what happens, in this schedule: so that some see only stores, others only cuts.
    weights: Vec<u64>,
    /// Cells that are read and stored: the fewer, the more they are fought over.
    reach: u64,
    /// How likely a mount without a connection asks for one, each time.
    patience: u64,
    /// Of a hundred requests, so many are refused, and as many are lost.
    refused: u64,
    tell: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver,
    Land,
    Push,
    Read,
    Store,
    Flush,
    Resize,
    Ask,
    Forget,
    Want,
    Compare,
    Abandon,
    GiveUp,
    Background,
    Learn,
    Offer,
    WriteThere,
    Time,
    LongTime,
    Cut,
    Restart,
}

/// Each with how often it happens, usually.
const STEP_WEIGHTS: [(Step, u64); 21] = [
    (Step::Deliver, 50),
    (Step::Land, 25),
    (Step::Push, 15),
    (Step::Read, 10),
    (Step::Store, 10),
    (Step::Flush, 3),
    (Step::Resize, 4),
    (Step::Ask, 2),
    (Step::Forget, 2),
    (Step::Want, 1),
    (Step::Compare, 2),
    (Step::Abandon, 1),
    (Step::GiveUp, 3),
    (Step::Background, 1),
    (Step::Learn, 2),
    (Step::Offer, 2),
    (Step::WriteThere, 2),
    (Step::Time, 4),
    (Step::LongTime, 1),
    (Step::Cut, 2),
    (Step::Restart, 1),
];

/// So many steps happen often, in each schedule.
const FAVOURITES: usize = 4;

pub fn run(seed: u64, tell: bool) {
    let mut random = Random(seed);
    let clients = [ClientId([0; 16]), ClientId([1; 16])];
    let reach = 6 + random.below(CELLS - 5);
    let world = World::new(random.below(reach), &clients);
    let mounts = clients.map(|client| {
        let config = Mount::config_of(random.percent(50), 1 + random.below(4));
        let keeps = random.percent(70);
        let mut mount = Mount::new(client, config, world.now);
        mount.keeps = keeps;
        mount
    });
    let mut weights = STEP_WEIGHTS.map(|(_, usual)| match random.below(3) {
        0 => usual / 4,
        _ => usual,
    });
    for _ in 0..FAVOURITES {
        weights[random.index(STEP_WEIGHTS.len())] += 15;
    }
    let patience = [100, 30, 3][random.index(3)];
    let mut schedule = Schedule {
        random,
        world,
        mounts: mounts.into(),
        weights: weights.to_vec(),
        reach,
        patience,
        refused: 3,
        tell,
    };
    for _ in 0..STEPS {
        schedule.step();
    }
    schedule.come_to_rest();
}

impl Schedule {
    fn step(&mut self) {
        let mut left = self.random.below(self.weights.iter().sum());
        let mut steps = self.weights.iter().zip(STEP_WEIGHTS);
        let (step, _) = loop {
            let (&weight, step) = steps.next().unwrap();
            if left < weight {
                break step;
            }
            left -= weight;
        };
        let which = self.random.index(self.mounts.len());
        self.take(step, which);
        match step {
            Step::Time | Step::LongTime | Step::Restart => self.settle_all(),
            _ => self.settle(which),
        }
    }

    fn settle_all(&mut self) {
        (0..self.mounts.len()).for_each(|which| self.settle(which));
    }

    fn tell(&self, what: &str, which: usize, more: &dyn std::fmt::Debug) {
        if self.tell {
            let size = self.mounts[which].size();
            eprintln!("{which} (size {size}): {what} {more:?}");
        }
    }

    fn cells(&mut self) -> Cells {
        let start = self.random.below(self.reach);
        start..(start + 1 + self.random.below(6)).min(self.reach)
    }

    fn take(&mut self, step: Step, which: usize) {
        let range = self.cells();
        if !matches!(step, Step::Deliver | Step::Land | Step::Push) {
            self.tell("does", which, &(step, &range));
        }
        let (mount, world, random) = (&mut self.mounts[which], &mut self.world, &mut self.random);
        match step {
            Step::Deliver => self.deliver(which),
            Step::Land => mount.land_some(random),
            Step::Push => {
                let bytes_max = (1 + random.below(4)) * PAGE_BYTES;
                mount.push(world, bytes_max, 1 + random.index(3));
            }
            Step::Read => mount.read(world, range),
            Step::Store => mount.stores.push((range, None)),
            Step::Flush => mount.flush(),
            Step::Resize => {
                let ready = mount.is_idle() || random.percent(50);
                if ready && mount.can_resize() && mount.link == Link::Up {
                    mount.resize(world, random.below(self.reach));
                }
            }
            Step::Ask => mount.ask(world),
            Step::Forget => mount.forget(&range),
            Step::Want => {
                if let Some(core) = &mut mount.core {
                    core.handle_want(super::world::bytes(&range));
                }
            }
            Step::Compare => {
                if let Some(core) = &mut mount.core {
                    core.handle_compare(super::world::bytes(&range));
                }
            }
            Step::Abandon if !mount.reads.is_empty() => {
                mount.abandon(random.index(mount.reads.len()));
            }
            Step::Abandon => {}
            Step::GiveUp => mount.give_up(world),
            Step::Background => {
                if let Some(core) = &mut mount.core {
                    core.set_background(random.percent(50));
                }
            }
            Step::Learn => {
                // Sometimes it is asked for and does not come for long.
                if let Some(core) = &mut mount.core {
                    core.expect_order();
                    if random.percent(70) {
                        let run = |_| PageRange::new(random.below(20), random.below(20));
                        let order = (0..10).map(run).collect();
                        core.handle_order(&order);
                    }
                }
            }
            Step::Offer => mount.offer(world, range.end),
            Step::WriteThere => world.write_there(range, random.percent(30)),
            Step::Time => world.pass_time(LEASE / 8 * random.below(4) as u32),
            Step::LongTime => world.pass_time(LEASE + Duration::from_secs(1)),
            Step::Cut => mount.cut(world, random.percent(50)),
            Step::Restart => {
                for mount in &mut self.mounts {
                    mount.cut(world, false);
                }
                world.restart();
            }
        }
    }

    /// One message arrives, if there is one.
    fn deliver(&mut self, which: usize) {
        let client = self.mounts[which].client;
        let wire = self.world.wire(client);
        let waiting = [
            !wire.requests.is_empty(),
            !wire.replies.is_empty(),
            !wire.up.is_empty(),
            !wire.down.is_empty(),
        ];
        let kinds: Vec<usize> = (0..4).filter(|&kind| waiting[kind]).collect();
        if kinds.is_empty() {
            return;
        }
        match kinds[self.random.index(kinds.len())] {
            0 => self.ask(which),
            1 => {
                let index = self.random.index(wire.replies.len());
                let reply = wire.replies.swap_remove(index);
                self.answered(which, reply);
            }
            2 => {
                if let Some(event) = wire.up.pop_front() {
                    self.world.handle_up(client, event);
                }
            }
            _ => {
                if let Some(event) = wire.down.pop_front() {
                    self.tell("is told", which, &event);
                    let (mount, random) = (&mut self.mounts[which], &mut self.random);
                    mount.handle_down(&mut self.world, event, random);
                }
            }
        }
    }

    /// A request arrives at the authority, or is lost.
    fn ask(&mut self, which: usize) {
        let client = self.mounts[which].client;
        let wire = self.world.wire(client);
        let index = self.random.index(wire.requests.len());
        let request = wire.requests.swap_remove(index);
        self.tell("asks", which, &request);
        let lost = self.mounts[which].request_lost(&request);
        match lost.filter(|_| self.random.percent(self.refused)) {
            Some(reply) => self.answered(which, reply),
            None => {
                let refuse = self.random.percent(self.refused);
                self.world.handle_request(client, request, refuse);
            }
        }
    }

    fn answered(&mut self, which: usize, reply: Reply) {
        self.tell("is answered", which, &reply);
        self.mounts[which].handle_reply(&mut self.world, reply, &mut self.random);
    }

    /// What a node does after each call.
    fn settle(&mut self, which: usize) {
        let mount = &mut self.mounts[which];
        mount.wake();
        mount.serve(&mut self.world);
        mount.wake();
        mount.end_flushes();
        mount.pull(&mut self.world);
        if mount.link != Link::Down || self.random.percent(self.patience) {
            mount.keep_link(&mut self.world);
        }
        mount.check(&self.world);
    }

    /// Nothing new happens, and what was begun comes to its end.
    fn come_to_rest(&mut self) {
        self.patience = 100;
        self.until(|schedule| {
            let idle = |mount: &Mount| mount.link == Link::Up && mount.is_idle();
            schedule.mounts.iter().all(idle) && schedule.wires_are_idle()
        });
        self.refused = 0;
        for mount in &mut self.mounts {
            if let Some(core) = &mut mount.core {
                core.set_background(false);
            }
            mount.read(&self.world, 0..CELLS);
        }
        self.settle_all();
        self.until(|schedule| schedule.mounts.iter().all(Mount::is_idle));
        for mount in &self.mounts {
            assert_eq!(mount.size(), self.world.size);
            let end = self.world.size as usize;
            assert_eq!(mount.copy[..end], self.world.content[..end]);
            let core = mount.core.as_ref().unwrap();
            let (present, ..) = core.sets();
            assert!(present.run_count() <= 1 && present.len() <= PAGES);
        }
        for mount in &self.mounts {
            let wire = self.world.wire(mount.client);
            wire.up.push_back(Up::Goodbye);
        }
        self.until(Schedule::wires_are_idle);
        self.world.assert_idle();
    }

    fn wires_are_idle(&self) -> bool {
        self.world.wires.values().all(|wire| {
            wire.requests.is_empty()
                && wire.replies.is_empty()
                && wire.up.is_empty()
                && wire.down.is_empty()
        })
    }

    fn until(&mut self, done: impl Fn(&Schedule) -> bool) {
        for _ in 0..REST_STEPS_MAX {
            if done(self) {
                return;
            }
            if self.wires_are_idle() {
                self.world.pass_time(LEASE / 8);
                self.settle_all();
            }
            let which = self.random.index(self.mounts.len());
            self.mounts[which].push(&mut self.world, PAGE_BYTES * PAGES, 4);
            self.mounts[which].land_some(&mut self.random);
            self.deliver(which);
            self.settle(which);
        }
        for mount in &self.mounts {
            eprintln!("{mount:?} {:?}", self.world.wires[&mount.client]);
        }
        panic!("does not come to rest");
    }
}
