//! What is printed: tables for people, JSON, YAML and names for programs, all from the same rows.

pub mod style;
pub mod table;

use clap::ValueEnum;
use serde_json::{Value, json};
use swarmguard_common::api::API_VERSION;

use crate::failure::{Failure, Outcome};
pub use style::{Style, Tone, clean};
pub use table::{Cell, Column, Listing, Row};

/// How answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns.
    Wide,
    /// For programs.
    Json,
    /// For programs and for reading.
    Yaml,
    /// Names only, one a line.
    Name,
}

/// A value with its kind, as programs get it.
pub fn document(kind: &str, value: Value) -> Value {
    let mut whole = json!({"apiVersion": API_VERSION, "kind": kind});
    match (whole.as_object_mut(), value) {
        (Some(whole), Value::Object(fields)) => whole.extend(fields),
        (Some(whole), other) => drop(whole.insert("items".into(), other)),
        _ => {}
    }
    whole
}

/// As JSON or YAML; `None` where the format is for people.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn for_programs(format: Format, whole: &Value) -> Outcome<Option<String>> {
    match format {
        Format::Json => Ok(Some(format!("{whole:#}\n"))),
        Format::Yaml => match serde_norway::to_string(whole) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(Failure::failed(format!("cannot be written as YAML: {error}"))),
        },
        Format::Table | Format::Wide | Format::Name => Ok(None),
    }
}

/// A length of time as people say it: `850ms`, `4.2s`, `3m10s`, `2h5m`, `3d4h`.
pub fn age(ms: u64) -> String {
    let (s, m, h, d) = (ms / 1_000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..10_000 => format!("{}.{}s", s, ms % 1_000 / 100),
        10_000..60_000 => format!("{s}s"),
        60_000..3_600_000 => format!("{m}m{}s", s % 60),
        3_600_000..86_400_000 => format!("{h}h{}m", m % 60),
        _ => format!("{d}d{}h", h % 24),
    }
}

/// A share, or `-` where it is unknown.
pub fn percent(share: Option<u8>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{share}%"))
}

/// Bytes in binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut left = count;
    let mut rest = 0;
    while left >= 1_024 && unit + 1 < UNITS.len() {
        rest = left % 1_024;
        left /= 1_024;
        unit += 1;
    }
    if unit > 0 && left < 10 {
        format!("{left}.{}{}", rest * 10 / 1_024, UNITS[unit])
    } else {
        format!("{left}{}", UNITS[unit])
    }
}

/// Thousandths of a CPU as CPUs.
pub fn cpus(millis: u64) -> String {
    let tenths = millis % 1_000 / 100;
    if tenths == 0 { format!("{}", millis / 1_000) } else { format!("{}.{tenths}", millis / 1_000) }
}

/// Wall clock in UTC, `HH:MM:SS`, of milliseconds since the Unix epoch.
pub fn time_of_day(at_ms: u64) -> String {
    let s = at_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_what_matters() {
        let ages = [0, 850, 4_250, 59_999, 61_000, 3_599_000, 7_500_000, 90_000_000];
        let shown: Vec<String> = ages.iter().map(|ms| age(*ms)).collect();
        assert_eq!(shown, ["0ms", "850ms", "4.2s", "59s", "1m1s", "59m59s", "2h5m", "1d1h"]);
        assert_eq!(
            [bytes(0), bytes(1_023), bytes(1_536), bytes(300 << 20)],
            ["0B", "1023B", "1.5KiB", "300MiB"]
        );
        assert_eq!([cpus(1_200), cpus(4_000), cpus(50)], ["1.2", "4", "0"]);
        assert_eq!(time_of_day(1_764_390_896_000), "04:34:56");
        assert_eq!(percent(None), "-");
    }

    #[test]
    fn programs_get_kind_and_version() {
        let list = document("NodeList", json!([1]));
        assert_eq!(list, json!({"apiVersion": "swarmguard/v1", "kind": "NodeList", "items": [1]}));
        let yaml = for_programs(Format::Yaml, &list).expect("writable").expect("some");
        assert!(yaml.contains("apiVersion: swarmguard/v1"), "{yaml}");
        assert_eq!(for_programs(Format::Table, &list).expect("fine"), None);
    }
}
