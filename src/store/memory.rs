//! A tree in memory.
