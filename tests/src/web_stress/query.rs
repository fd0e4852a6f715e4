//! Query strings with a known set of keys, each a number within bounds; anything else is an error that names the
//! key, the value and what is allowed.
//!
//! Not axum's `Query` extractor: serde's messages say neither the bounds nor, for a wrong type, the key.

use std::collections::BTreeMap;

/// One key that a path takes.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As it stands in the query.
    pub name: &'static str,
    /// What it means, with its unit.
    pub what: &'static str,
    /// Least value allowed.
    pub min: f64,
    /// Greatest value allowed.
    pub max: f64,
    /// Taken where the key is absent; `None` means that the key must be given.
    pub default: Option<f64>,
}

/// Why a query was refused.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{key}={value}: allowed: {allowed}")]
pub struct BadQuery {
    /// The key at fault.
    pub key: String,
    /// Its value as given, empty where it is missing.
    pub value: String,
    /// What would have been accepted.
    pub allowed: String,
}

/// Values by key, all within bounds.
#[derive(Debug, Default)]
pub struct Values {
    numbers: BTreeMap<&'static str, f64>,
    /// The `host` key: act only on the replica of this host name.
    pub host: Option<String>,
}

impl Values {
    /// The value of a key that was in the list given to [`parse`]; 0 for any other.
    pub fn get(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }
}

/// Reads `query` (without `?`) against `keys`. `host` is always accepted.
///
/// # Errors
/// The first key that is unknown, given twice, not a number, out of bounds, or missing.
pub fn parse(query: &str, keys: &[Key]) -> Result<Values, BadQuery> {
    let mut values = Values::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == "host" {
            values.host = Some(host(value)?);
            continue;
        }
        let Some(key) = keys.iter().find(|key| key.name == name) else {
            let names: Vec<_> = keys.iter().map(|key| key.name).chain(["host"]).collect();
            return Err(bad(name, value, format!("the keys {}", names.join(", "))));
        };
        let number = value.parse::<f64>().ok().filter(|n| (key.min..=key.max).contains(n));
        let number = number.ok_or_else(|| bad(name, value, range(key)))?;
        if values.numbers.insert(key.name, number).is_some() {
            return Err(bad(name, value, "each key once".to_owned()));
        }
    }
    for key in keys {
        if let std::collections::btree_map::Entry::Vacant(free) = values.numbers.entry(key.name) {
            free.insert(key.default.ok_or_else(|| bad(key.name, "", range(key)))?);
        }
    }
    Ok(values)
}

fn host(value: &str) -> Result<String, BadQuery> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if value.is_empty() || value.len() > 64 || !value.chars().all(fits) {
        return Err(bad("host", value, "the host name of one replica".to_owned()));
    }
    Ok(value.to_owned())
}

fn range(key: &Key) -> String {
    let needed = if key.default.is_none() { ", required" } else { "" };
    format!("{} to {} ({}{needed})", key.min, key.max, key.what)
}

fn bad(key: &str, value: &str, allowed: String) -> BadQuery {
    let cut = |text: &str| text.chars().take(64).collect();
    BadQuery { key: cut(key), value: cut(value), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [Key; 2] = [
        Key { name: "mb", what: "MiB", min: 1.0, max: 100.0, default: None },
        Key { name: "ramp", what: "seconds", min: 0.0, max: 60.0, default: Some(5.0) },
    ];

    #[test]
    fn good_values_and_defaults() {
        let values = parse("mb=12.5&host=abc-1", &KEYS).unwrap();
        assert_eq!((values.get("mb"), values.get("ramp")), (12.5, 5.0));
        assert_eq!(values.host.as_deref(), Some("abc-1"));
    }

    #[test]
    fn every_refusal_names_key_value_and_what_is_allowed() {
        for (query, key, value, allowed) in [
            ("", "mb", "", "1 to 100 (MiB, required)"),
            ("mb=", "mb", "", "1 to 100 (MiB, required)"),
            ("mb=0", "mb", "0", "1 to 100 (MiB, required)"),
            ("mb=101", "mb", "101", "1 to 100 (MiB, required)"),
            ("mb=NaN", "mb", "NaN", "1 to 100 (MiB, required)"),
            ("mb=-inf", "mb", "-inf", "1 to 100 (MiB, required)"),
            ("mb=ten", "mb", "ten", "1 to 100 (MiB, required)"),
            ("mb=1&ramp=61", "ramp", "61", "0 to 60 (seconds)"),
            ("mb=1&size=2", "size", "2", "the keys mb, ramp, host"),
            ("mb=1&mb=2", "mb", "2", "each key once"),
            ("mb=1&host=a/b", "host", "a/b", "the host name of one replica"),
        ] {
            let error = parse(query, &KEYS).unwrap_err();
            assert_eq!(
                (error.key.as_str(), error.value.as_str(), error.allowed.as_str()),
                (key, value, allowed),
                "{query}"
            );
        }
    }
}
