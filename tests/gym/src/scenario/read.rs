//! Reading a scenario file so that every wrong value is named: file, line, key, value, and what is allowed.
//!
//! By hand over TOML's own tree, not by serde: all faults of a file are told at once, unknown keys with the nearest known
//! one, and ranges stand beside the keys.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest part of a wrong value that is repeated, in characters.
const SHOWN: usize = 60;

/// One file being read.
pub struct Reader<'t> {
    file: String,
    text: &'t str,
    problems: RefCell<Vec<String>>,
    known: RefCell<BTreeMap<String, &'static str>>,
}

impl<'t> Reader<'t> {
    /// `file` is how it is called in messages.
    pub fn new(file: &str, text: &'t str) -> Self {
        Self { file: file.into(), text, problems: RefCell::default(), known: RefCell::default() }
    }

    /// The whole document.
    pub fn section<'r>(&'r self, table: &'r DeTable<'t>) -> Section<'r, 't> {
        Section { reader: self, path: String::new(), table, at: 0..0, asked: RefCell::default() }
    }

    /// Notes what is wrong at a place.
    pub fn problem(&self, at: &Range<usize>, text: impl Display) {
        let line = self.text.get(..at.start).unwrap_or_default().matches('\n').count() + 1;
        self.problems.borrow_mut().push(format!("{}:{line}: {text}", self.file));
    }

    /// All that was wrong.
    pub fn into_problems(self) -> Vec<String> {
        self.problems.into_inner()
    }

    /// Every key that was asked for, as `section.key`.
    pub fn known(&self) -> Vec<String> {
        self.known.borrow().keys().cloned().collect()
    }
}

/// One table of the file, and which keys were asked of it.
pub struct Section<'r, 't> {
    reader: &'r Reader<'t>,
    path: String,
    table: &'r DeTable<'t>,
    at: Range<usize>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'r, 't> Section<'r, 't> {
    /// Where it stands, for messages.
    pub fn at(&self) -> &Range<usize> {
        &self.at
    }

    fn get(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.asked.borrow_mut().push(key);
        self.reader.known.borrow_mut().insert(join(&generic(&self.path), key), key);
        self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key).map(|(_, value)| value)
    }

    /// Notes that a value is not allowed.
    pub fn refuse(&self, key: &str, allowed: impl Display) {
        let found = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key);
        let (at, shown) = match found {
            Some((name, value)) => (name.span(), shown(value.get_ref())),
            None => (self.at.clone(), "(missing)".into()),
        };
        self.reader.problem(&at, format!("{} = {shown}: {allowed}", join(&self.path, key)));
    }

    fn take<T>(
        &self,
        key: &'static str,
        default: T,
        allowed: &str,
        read: impl Fn(&DeValue<'t>) -> Option<T>,
    ) -> T {
        match self.get(key) {
            None => default,
            Some(value) => read(value.get_ref()).unwrap_or_else(|| {
                self.refuse(key, allowed);
                default
            }),
        }
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.keys().any(|name| name.get_ref().as_ref() == key)
    }

    /// A number within a range.
    pub fn number(&self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.take(key, default, &allowed, |value| real(value).filter(|value| range.contains(value)))
    }

    /// The same, or nothing.
    pub fn maybe_number(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.take(key, None, &allowed, |value| real(value).filter(|value| range.contains(value)).map(Some))
    }

    /// A whole number within a range.
    pub fn whole(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(key, default, &allowed, |value| whole(value).filter(|value| range.contains(value)))
    }

    /// The same, or nothing.
    pub fn maybe_whole(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(key, None, &allowed, |value| whole(value).filter(|value| range.contains(value)).map(Some))
    }

    /// A duration with its unit.
    pub fn duration(
        &self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.maybe_duration(key, range).unwrap_or(default)
    }

    /// The same, or nothing.
    pub fn maybe_duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let show = humantime::format_duration;
        let allowed = format!(
            "a duration with its unit (\"150ms\", \"3s\", \"10m\") from {} to {}",
            show(*range.start()),
            show(*range.end())
        );
        self.take(key, None, &allowed, |value| {
            humantime::parse_duration(value.as_str()?).ok().filter(|it| range.contains(it)).map(Some)
        })
    }

    /// An amount of memory with its unit.
    pub fn bytes(&self, key: &'static str, default: u64) -> u64 {
        self.maybe_bytes(key).unwrap_or(default)
    }

    /// The same, or nothing.
    pub fn maybe_bytes(&self, key: &'static str) -> Option<u64> {
        self.take(key, None, "an amount of memory with its unit (\"64KiB\", \"512MiB\", \"8GiB\")", |value| {
            bytes(value.as_str()?).map(Some)
        })
    }

    /// Any text.
    pub fn text(&self, key: &'static str, default: &str) -> String {
        self.take(key, default.to_owned(), "a text", |value| value.as_str().map(Into::into))
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, default: T, words: &[(&str, T)]) -> T {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.take(key, default, &format!("one of {}", all.join(", ")), |value| {
            words.iter().find(|(word, _)| Some(*word) == value.as_str()).map(|(_, meant)| *meant)
        })
    }

    /// A list of texts.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        self.take(key, Vec::new(), "a list of texts", |value| {
            value.as_array()?.iter().map(|one| one.get_ref().as_str().map(Into::into)).collect()
        })
    }

    /// A list of numbers that count from 1, as indexes that count from 0.
    pub fn indexes(&self, key: &'static str, most: usize) -> Vec<usize> {
        self.take(key, Vec::new(), &format!("a list of whole numbers from 1 to {most}"), |value| {
            let number = |one: &Spanned<DeValue<'t>>| {
                let number = usize::try_from(whole(one.get_ref())?).ok()?;
                (1..=most).contains(&number).then(|| number - 1)
            };
            value.as_array()?.iter().map(number).collect()
        })
    }

    /// A table of texts, whatever its keys.
    pub fn map(&self, key: &'static str) -> Vec<(String, String)> {
        self.take(key, Vec::new(), "a table of texts", |value| {
            value
                .as_table()?
                .iter()
                .map(|(name, value)| Some((name.get_ref().to_string(), value.get_ref().as_str()?.to_owned())))
                .collect()
        })
    }

    /// A table below this one.
    pub fn table(&self, key: &'static str) -> Option<Section<'r, 't>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.refuse(key, "a table");
            return None;
        };
        Some(self.below(join(&self.path, key), table, value.span()))
    }

    /// A table below this one whose name the file itself chooses.
    pub fn named_table(&self, key: &str) -> Option<Section<'r, 't>> {
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.refuse(key, "a table");
            return None;
        };
        Some(self.below(join(&self.path, "<service>"), table, value.span()))
    }

    /// A list of tables below this one.
    pub fn tables(&self, key: &'static str) -> Vec<Section<'r, 't>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            self.refuse(key, format!("a list of tables ([[{}]])", join(&generic(&self.path), key)));
            return Vec::new();
        };
        let mut all = Vec::new();
        for (index, one) in list.iter().enumerate() {
            match one.get_ref().as_table() {
                Some(table) => {
                    let path = format!("{}[{index}]", join(&self.path, key));
                    all.push(self.below(path, table, one.span()));
                }
                None => self.refuse(key, "a list of tables only"),
            }
        }
        all
    }

    fn below(&self, path: String, table: &'r DeTable<'t>, at: Range<usize>) -> Section<'r, 't> {
        Section { reader: self.reader, path, table, at, asked: RefCell::default() }
    }

    /// Refuses every key that was not asked for. `others` are known, too.
    pub fn finish(&self, others: &[String]) {
        let asked = self.asked.borrow();
        let known: Vec<&str> = asked.iter().copied().chain(others.iter().map(String::as_str)).collect();
        for (name, _) in self.table.iter().filter(|(name, _)| !known.contains(&name.get_ref().as_ref())) {
            let key = name.get_ref().as_ref();
            let near = nearest(key, &known).map_or_else(
                || format!("known are {}", known.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            self.reader.problem(&name.span(), format!("unknown key {}: {near}", join(&self.path, key)));
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// A path without the numbers of its lists.
fn generic(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for letter in path.chars() {
        match letter {
            '[' => inside = true,
            ']' => inside = false,
            _ if !inside => out.push(letter),
            _ => {}
        }
    }
    out
}

fn real(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(number) => number.as_str().replace('_', "").parse().ok(),
        DeValue::Float(number) => {
            number.as_str().replace('_', "").parse().ok().filter(|it: &f64| it.is_finite())
        }
        _ => None,
    }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer().filter(|number| number.radix() == 10)?;
    number.as_str().replace('_', "").parse().ok()
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1_u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    let (unit, factor) = units.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
    (0.0..=1e6).contains(&number).then(|| crate::number::count(number * crate::number::real(factor)))
}

fn shown(value: &DeValue<'_>) -> String {
    let text = match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "[…]".into(),
        DeValue::Table(_) => "{…}".into(),
    };
    if text.chars().count() > SHOWN { text.chars().take(SHOWN).chain("…".chars()).collect() } else { text }
}

/// The known key that is most like a wrong one, where one is like it at all.
pub fn nearest<'k>(wrong: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, near) = known.iter().map(|key| (distance(wrong, key), *key)).min()?;
    (distance <= (wrong.len() / 2).max(1)).then_some(near)
}

/// Letters to change, add or drop (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, letter) in a.chars().enumerate() {
        let mut corner = line;
        row[0] = line + 1;
        for (column, other) in b.iter().enumerate() {
            let replaced = corner + usize::from(letter != *other);
            corner = row[column + 1];
            row[column + 1] = replaced.min(corner + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        assert_eq!(bytes("512MiB"), Some(512 << 20));
        assert_eq!(bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(bytes("512"), None);
        assert_eq!(bytes("-1GiB"), None);
    }

    #[test]
    fn the_nearest_key_is_named_only_where_one_is_near() {
        let known = ["replicas", "labels", "memory"];
        assert_eq!(nearest("replcias", &known), Some("replicas"));
        assert_eq!(nearest("memroy", &known), Some("memory"));
        assert_eq!(nearest("zzzz", &known), None);
    }
}
