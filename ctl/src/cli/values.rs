//! Values that can be typed, with their bounds.

use std::time::Duration;

use crate::drill::probe;

pub(super) fn held(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), Duration::from_secs(600))
}

pub(super) fn probed(text: &str) -> Result<String, String> {
    probe::target(text).map(|_| text.to_owned())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse().ok().filter(|share| (0.0..=100.0).contains(share));
    number.ok_or_else(|| "0% to 100% are allowed".to_owned())
}

pub(super) fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("a whole number, 0 to {}", u32::MAX))
}

pub(super) fn rhythm(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_millis(250), Duration::from_secs(3_600))
}

pub(super) fn glance(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_millis(250), Duration::from_secs(60))
}

pub(super) fn patience(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_millis(10), Duration::from_secs(30 * 86_400))
}

fn bounded(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    swarmguard_common::time::duration(text, least..=most)
}
