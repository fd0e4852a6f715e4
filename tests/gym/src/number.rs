//! Conversions between counts and real numbers, each held to its range, in one place.

use std::time::Duration;

/// A count as a real number; all of ours are far below 2^53.
pub fn real(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
    let real = count as f64;
    real
}

/// The same of a length.
pub fn real_len(count: usize) -> f64 {
    real(u64::try_from(count).unwrap_or(u64::MAX))
}

/// The nearest count; 0 for what is negative or no number.
pub fn count(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to the range first")]
    let count = value.round().clamp(0.0, 9e15) as u64;
    count
}

/// The nearest index; 0 for what is negative or no number.
pub fn index(value: f64) -> usize {
    usize::try_from(count(value)).unwrap_or(usize::MAX)
}

/// The nearest count that fits 32 bits.
pub fn count32(value: f64) -> u32 {
    u32::try_from(count(value)).unwrap_or(u32::MAX)
}

/// Whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
