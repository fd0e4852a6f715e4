//! Reading single label values, and keeping account of which were read, wrong, or unknown.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

use super::{LabelError, PREFIX};
use crate::domain::BasisPoints;

/// Longest part of a wrong value that is repeated in an error, in characters.
const SHOWN: usize = 80;

/// Labels not read yet, and what was wrong with those that were.
pub(super) struct Reader<'a> {
    all: BTreeMap<&'a str, &'a str>,
    unread: BTreeMap<&'a str, &'a str>,
    errors: Vec<LabelError>,
}

impl<'a> Reader<'a> {
    /// Starts with labels whose prefix was taken off.
    pub fn new(all: BTreeMap<&'a str, &'a str>) -> Self {
        Self { unread: all.clone(), all, errors: Vec::new() }
    }

    /// Reads `key` into `slot`, if it is there and sensible. `parse` answers what is allowed when it is not.
    pub fn take<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>, slot: &mut T) {
        let Some(text) = self.unread.remove(key) else { return };
        match parse(text) {
            Ok(value) => *slot = value,
            Err(allowed) => self.refuse(key, allowed),
        }
    }

    /// Is there any label not read yet that begins so?
    pub fn any_left(&self, prefix: &str) -> bool {
        self.unread.keys().any(|key| key.starts_with(prefix))
    }

    /// Notes that `key` cannot be obeyed.
    pub fn refuse(&mut self, key: &str, allowed: String) {
        let value = self.all.get(key).map(|text| text.chars().take(SHOWN).collect()).unwrap_or_default();
        self.errors.push(LabelError { key: format!("{PREFIX}{key}"), value, allowed });
    }

    /// Everything that was wrong, labels that nobody read included.
    pub fn finish(mut self) -> Vec<LabelError> {
        let unknown: Vec<&str> = self.unread.keys().copied().collect();
        for key in unknown {
            self.refuse(key, "there is no such label; see docs/labels.md".into());
        }
        self.errors
    }
}

pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    one_of(text, &[("true", true), ("false", false)])
}

pub(super) fn one_of<T: Clone>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
    found.ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        format!("one of {}", words.join(", "))
    })
}

/// Per cent with at most two decimals, more than 0.
pub(super) fn percent(text: &str) -> Result<BasisPoints, String> {
    let number: Option<f64> = text.parse().ok().filter(|number| (0.01..=100.0).contains(number));
    number
        .map(|percent| BasisPoints::from_ratio(percent / 100.0))
        .ok_or_else(|| "per cent, 0.01 to 100".into())
}

pub(super) fn bounded<T: FromStr + PartialOrd + Display>(text: &str, least: T, most: T) -> Result<T, String> {
    let number: Option<T> = text.parse().ok().filter(|number| *number >= least && *number <= most);
    number.ok_or_else(|| format!("a whole number from {least} to {most}"))
}

/// A duration with its unit, such as `300ms` or `1m 30s`, between `least` and `most` seconds.
pub(super) fn duration(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    crate::time::duration(text, Duration::from_secs(least)..=Duration::from_secs(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_their_range_say_what_is_allowed() {
        assert_eq!(percent("75"), Ok(BasisPoints(7_500)));
        assert!(percent("NaN").is_err() && percent("-1").is_err() && percent("0").is_err());
        assert_eq!(bounded("0", 1_u32, 9), Err("a whole number from 1 to 9".into()));
        assert!(duration("3", 0, 9).is_err(), "a duration without unit is ambiguous");
        assert_eq!(duration("300ms", 0, 9), Ok(Duration::from_millis(300)));
    }
}
