//! Choices from a seed, so that a run can be made again.

use std::env;

/// Numbers from a seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A number from the environment.
pub fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A seed: what the variable says, or one of this moment. Told, past the capture of the test runner.
pub fn seed(name: &str) -> u64 {
    use std::io::Write as _;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = variable(name).unwrap_or(u64::from(clock.unwrap().subsec_nanos()));
    let _ = writeln!(std::io::stderr(), "{name}={seed}");
    seed
}

/// Bytes that no two places have in common and that do not compress.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 32) as u32).to_le_bytes()
    });
    words.flatten().take(len).collect()
}
