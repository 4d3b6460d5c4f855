//! Byte ranges, page and extent arithmetic, printing and parsing of sizes and times.
//!
//! A **page** is [`PAGE_BYTES`] and the unit of presence and dirtiness, whatever the page size of
//! the machine. A [`ByteRange`] counts bytes, a [`PageRange`] counts pages; both are half open.

use std::fmt;
use std::time::Duration;

/// Bytes in a page: the unit of presence and dirtiness.
pub const PAGE_BYTES: u64 = 4096;

/// The largest size of a region: what `off_t` can hold, in whole pages.
pub const REGION_BYTES_MAX: u64 = (i64::MAX as u64) & !(PAGE_BYTES - 1);

/// A half-open run of bytes. Empty ranges are allowed and have `start == end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never below `start`.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`; an `end` below `start` makes the range empty.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: if end < start { start } else { end },
        }
    }

    /// `len` bytes at `offset`, or `None` where that passes [`REGION_BYTES_MAX`].
    pub const fn at(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= REGION_BYTES_MAX => Some(Self { start: offset, end }),
            _ => None,
        }
    }

    /// Length in bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; empty (at this range's start) where they do not meet.
    pub fn intersect(&self, other: ByteRange) -> ByteRange {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end {
            ByteRange { start, end }
        } else {
            ByteRange::new(self.start, self.start)
        }
    }

    /// The pages this range touches, whole or in part.
    pub const fn pages_touched(&self) -> PageRange {
        if self.is_empty() {
            return PageRange::new(self.start / PAGE_BYTES, self.start / PAGE_BYTES);
        }
        PageRange::new(self.start / PAGE_BYTES, self.end.div_ceil(PAGE_BYTES))
    }

    /// The pages this range covers whole.
    pub const fn pages_covered(&self) -> PageRange {
        PageRange::new(self.start.div_ceil(PAGE_BYTES), self.end / PAGE_BYTES)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}

/// A half-open run of pages: an extent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PageRange {
    /// First page.
    pub start: u64,
    /// One past the last page; never below `start`.
    pub end: u64,
}

impl PageRange {
    /// `start..end`; an `end` below `start` makes the range empty.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: if end < start { start } else { end },
        }
    }

    /// Length in pages.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no page in it.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The pages in both; empty (at this range's start) where they do not meet.
    pub fn intersect(&self, other: PageRange) -> PageRange {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end {
            PageRange { start, end }
        } else {
            PageRange::new(self.start, self.start)
        }
    }

    /// Whether every page of `other` is in this range.
    pub const fn contains(&self, other: PageRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes of these pages.
    pub const fn bytes(&self) -> ByteRange {
        ByteRange::new(self.start * PAGE_BYTES, self.end * PAGE_BYTES)
    }

    /// The bytes of these pages that lie below `size`.
    pub fn bytes_below(&self, size: u64) -> ByteRange {
        ByteRange::new(
            (self.start * PAGE_BYTES).min(size),
            (self.end * PAGE_BYTES).min(size),
        )
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start, self.end)
    }
}

/// Pages that hold `bytes` bytes.
pub const fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

/// A size in bytes for people: `1.5 MiB`, `17 B`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Reads a size as people write it: `4096`, `64K`, `64KiB`, `1.5G`. Powers of 1024 throughout.
///
/// # Errors
/// One line that names the value and what is allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: give bytes, or a number with K, M, G or T");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(wrong()),
    };
    let value: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = value * (1u64 << shift) as f64;
    if !(0.0..=REGION_BYTES_MAX as f64).contains(&bytes) {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// A time for people, in the unit that tells most of it: `17 s`, `3 min`.
pub fn format_duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Reads a time as people write it: `5` and `5s` are seconds, `200ms`, `2m`, `1h`.
///
/// # Errors
/// One line that names the value and what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: give seconds, or a number with ms, s, m or h");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let value: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(value * factor).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_bytes() {
        let range = ByteRange::new(4095, 8193);
        assert_eq!(range.pages_touched(), PageRange::new(0, 3));
        assert_eq!(range.pages_covered(), PageRange::new(1, 2));
        assert!(ByteRange::new(5, 5).pages_touched().is_empty());
        assert_eq!(
            PageRange::new(1, 3).bytes_below(5000),
            ByteRange::new(4096, 5000)
        );
        assert!(PageRange::new(4, 5).bytes_below(5000).is_empty());
    }

    #[test]
    fn times_are_told_in_one_unit() {
        for (seconds, told) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_200, "2 h"),
            (200_000, "2 days"),
        ] {
            assert_eq!(format_duration(Duration::from_secs(seconds)), told);
        }
    }

    #[test]
    fn ranges_are_bounded() {
        assert_eq!(ByteRange::at(u64::MAX, 1), None);
        assert_eq!(ByteRange::at(REGION_BYTES_MAX, 1), None);
        assert!(ByteRange::at(REGION_BYTES_MAX - 1, 1).is_some());
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_size("1.5K"), Ok(1536));
        assert_eq!(parse_size("2MiB"), Ok(2 << 20));
        assert!(parse_size("-1").is_err() && parse_size("x").is_err() && parse_size("").is_err());
        assert!(parse_size("9999999P").is_err() && parse_size("NaN").is_err());
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert!(parse_duration("-5").is_err() && parse_duration("1 week").is_err());
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(17), "17 B");
    }
}
