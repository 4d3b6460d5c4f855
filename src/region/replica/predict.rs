//! Where those who fault will want to go on: streams of access, each told from where its faults lie.
//!
//! | way | seen by | read ahead |
//! |---|---|---|
//! | forward | a fault at or just behind the end of another | what follows |
//! | backward | a fault just before the start of another | what precedes, nearest first |
//! | by strides | four faults, each as far from the one before | runs of that size at the next strides |
//!
//! Forward and backward, two faults are enough where nobody faulted in between, otherwise three in a row. Random faults
//! meet neither condition but by rare chance, and are read ahead of by nothing.
//!
//! A fault that fits a stream is one past what was read ahead: it doubles how far is read ahead of it. Requests of
//! one reader may overtake each other, so a fault a little way back changes nothing. Any other fault close to a
//! stream ends it.

use crate::units::PageRange;
use std::collections::VecDeque;

/// Streams that are followed at once; beyond, the one that was longest without a fault is given up.
const STREAMS_MAX: usize = 8;
/// Faults that fitted no stream, and may be the beginning of one.
const STRAYS_MAX: usize = 32;
/// Strides read ahead, at most: each is a pull of its own.
const STRIDES_MAX: u64 = 64;
/// Requests that another one of the same reader may overtake.
const OVERTAKEN_MAX: u64 = 4;

const NO_PAGES: PageRange = PageRange::new(0, 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Forward,
    Backward,
    /// Pages from the start of one to the start of the next; not 0.
    Strides(i64),
}

/// One stream of access.
#[derive(Debug)]
struct Stream {
    way: Way,
    /// The farthest fault.
    last: PageRange,
    /// How far is read ahead of it, in pages.
    window: u64,
    /// Forward and backward: what of that has not been asked for yet.
    ahead: PageRange,
    /// By strides: which comes next, and how many are still to be asked for.
    strides: (i64, u64),
}

enum Fits {
    Ahead,
    Overtaken,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    window_max: u64,
    /// Latest fault first.
    streams: VecDeque<Stream>,
    /// Newest last.
    strays: VecDeque<PageRange>,
    last: PageRange,
}

impl Streams {
    /// Reads ahead of a stream no more than so many pages.
    pub fn new(window_max: u64) -> Streams {
        Streams {
            window_max,
            streams: VecDeque::new(),
            strays: VecDeque::new(),
            last: NO_PAGES,
        }
    }

    /// Somebody has come to pages that are not all here. Whether it is a reader that goes forward.
    pub fn follow(&mut self, pages: PageRange) -> bool {
        let last = std::mem::replace(&mut self.last, pages);
        let fitting = |stream: &Stream| stream.fits(pages);
        let found = self.streams.iter().enumerate();
        let found = found
            .filter_map(|(at, stream)| Some((at, fitting(stream)?)))
            .next();
        let stream = match found {
            Some((at, fits)) => self.streams.remove(at).map(|mut stream| {
                if matches!(fits, Fits::Ahead) {
                    stream.window = stream.window.saturating_mul(2).min(self.window_max);
                    stream.advance(pages);
                }
                stream
            }),
            None => {
                let far = self.window_max;
                self.streams.retain(|stream| !stream.is_near(pages, far));
                self.way_to(last, pages).map(|way| {
                    let window = pages.len().min(self.window_max);
                    Stream::new(way, pages, window)
                })
            }
        };
        let Some(stream) = stream.filter(|stream| stream.window > 0) else {
            if self.strays.len() == STRAYS_MAX {
                self.strays.pop_front();
            }
            self.strays.push_back(pages);
            return false;
        };
        let forward = stream.way == Way::Forward;
        self.streams.push_front(stream);
        self.streams.truncate(STREAMS_MAX);
        forward
    }

    /// Nothing is to be read ahead.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.strays.clear();
        self.last = NO_PAGES;
    }

    /// How a new stream goes that has come to `pages`.
    fn way_to(&self, last: PageRange, pages: PageRange) -> Option<Way> {
        let strays = || self.strays.iter().copied();
        let chain = |leads: fn(PageRange, PageRange) -> bool| {
            let before = |to| strays().filter(move |&from| leads(from, to));
            leads(last, pages) || before(pages).any(|middle| before(middle).next().is_some())
        };
        if chain(is_behind) {
            return Some(Way::Forward);
        }
        if chain(is_before) {
            return Some(Way::Backward);
        }
        let was = |start: i64| strays().any(|stray| stray.start as i64 == start);
        let start = pages.start as i64;
        let steps = strays().rev().map(|stray| start - stray.start as i64);
        let mut steps = steps.filter(|&step| step != 0);
        let step = steps.find(|step| was(start - 2 * step) && was(start - 3 * step));
        step.map(Way::Strides)
    }

    /// Adds to `run` what is to be read ahead right behind it, up to `end`.
    pub fn widen(
        &mut self,
        run: PageRange,
        end: u64,
        absent: impl Fn(PageRange) -> Option<PageRange>,
    ) -> PageRange {
        let forward = |stream: &&mut Stream| stream.way == Way::Forward;
        for stream in self.streams.iter_mut().filter(forward) {
            match absent(stream.ahead) {
                Some(ahead) if ahead.start == run.end && run.end < end => {
                    let end = ahead.end.min(end);
                    stream.ahead = PageRange::new(end, stream.ahead.end);
                    return PageRange::new(run.start, end);
                }
                _ => {}
            }
        }
        run
    }

    /// The next run of at most `pages_max` that is to be read ahead, of what `absent` says is neither here
    /// nor under way.
    pub fn next(
        &mut self,
        pages_max: u64,
        absent: impl Fn(PageRange) -> Option<PageRange>,
    ) -> Option<PageRange> {
        let mut streams = self.streams.iter_mut();
        streams.find_map(|stream| stream.next(pages_max, &absent))
    }
}

/// Whether a reader that goes forward may come to `to` after `from`.
fn is_behind(from: PageRange, to: PageRange) -> bool {
    !from.is_empty()
        && from.start <= to.start
        && from.end < to.end
        && to.start <= from.end + to.len()
}

/// Whether a reader that goes backward may come to `to` after `from`.
fn is_before(from: PageRange, to: PageRange) -> bool {
    !from.is_empty()
        && to.start < from.start
        && to.end <= from.end
        && from.start <= to.end + to.len()
}

impl Stream {
    fn new(way: Way, pages: PageRange, window: u64) -> Stream {
        let mut stream = Stream {
            way,
            last: pages,
            window,
            ahead: NO_PAGES,
            strides: (0, 0),
        };
        stream.advance(pages);
        stream
    }

    /// Whether a fault belongs to it.
    fn fits(&self, pages: PageRange) -> Option<Fits> {
        let overtaken = OVERTAKEN_MAX * pages.len();
        let (ahead, behind) = match self.way {
            Way::Forward => (
                self.last.start <= pages.start
                    && self.last.end < pages.end
                    && pages.start <= self.last.end + self.window + pages.len(),
                pages.end <= self.last.end && self.last.start <= pages.start + overtaken,
            ),
            Way::Backward => (
                pages.start < self.last.start
                    && pages.end <= self.last.end
                    && self.last.start <= pages.end + self.window + pages.len(),
                self.last.start <= pages.start && pages.end <= self.last.end + overtaken,
            ),
            Way::Strides(step) => {
                let far = pages.start as i64 - self.last.start as i64;
                let (count, exact) = (far / step, far % step == 0);
                let most = self.strides_ahead() as i64 + 1;
                (
                    exact && (1..=most).contains(&count),
                    exact && (-(OVERTAKEN_MAX as i64)..=0).contains(&count),
                )
            }
        };
        match (ahead, behind) {
            (true, _) => Some(Fits::Ahead),
            (false, true) => Some(Fits::Overtaken),
            _ => None,
        }
    }

    fn is_near(&self, pages: PageRange, far: u64) -> bool {
        pages.start < self.last.end + far && self.last.start < pages.end + far
    }

    fn strides_ahead(&self) -> u64 {
        (self.window / self.last.len().max(1)).clamp(1, STRIDES_MAX)
    }

    /// Its newest fault is here.
    fn advance(&mut self, pages: PageRange) {
        self.last = pages;
        match self.way {
            Way::Forward => self.ahead = PageRange::new(pages.end, pages.end + self.window),
            Way::Backward => {
                let from = pages.start.saturating_sub(self.window);
                self.ahead = PageRange::new(from, pages.start);
            }
            Way::Strides(step) => {
                self.strides = (pages.start as i64 + step, self.strides_ahead());
            }
        }
    }

    fn next(
        &mut self,
        pages_max: u64,
        absent: &impl Fn(PageRange) -> Option<PageRange>,
    ) -> Option<PageRange> {
        let clip = |run: PageRange| PageRange::new(run.start, run.end.min(run.start + pages_max));
        match self.way {
            Way::Forward => {
                let run = absent(self.ahead).map(clip);
                self.ahead = run.map_or(NO_PAGES, |run| PageRange::new(run.end, self.ahead.end));
                run
            }
            // Piece by piece: one that is under way is not absent any more.
            Way::Backward => loop {
                let PageRange { start, end } = self.ahead;
                if start == end {
                    return None;
                }
                let piece = PageRange::new(start.max(end.saturating_sub(pages_max)), end);
                match absent(piece) {
                    Some(run) => return Some(run),
                    None => self.ahead = PageRange::new(start, piece.start),
                }
            },
            Way::Strides(step) => loop {
                let (start, left) = self.strides;
                if left == 0 {
                    return None;
                }
                if let Ok(start) = u64::try_from(start)
                    && let Some(run) = absent(PageRange::new(start, start + self.last.len()))
                {
                    return Some(clip(run));
                }
                self.strides = (start + step, left - 1);
            },
        }
    }
}
