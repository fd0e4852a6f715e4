//! A program's figures as OpenMetrics text. Each program describes its families once (`families!`): the names, types and
//! words that a scrape shows, that `docs/metrics.md` lists and that alert rules may use are the same by construction.
//!
//! Small types of our own and no crate: figures are mostly read from what the program knows anyway at the moment of the
//! scrape, and every set of labels here is bounded.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// What `/metrics` is answered as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Most sets of label values in one family that counts by itself; what comes later is counted under `other`.
const MAX_SERIES: usize = 256;

/// How a family behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds, with sum and count.
    Histogram,
    /// Sum and count.
    Summary,
}

impl Kind {
    /// Prometheus' word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

/// One family of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The whole name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
}

/// Describes a program's families: a constant for each, and all of them as `FAMILIES`.
#[macro_export]
macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $id: $crate::exposition::Family = $crate::exposition::Family {
                name: $name,
                kind: $crate::exposition::Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )+
        /// Everything that this program shows, but for `process_*`.
        pub const FAMILIES: &[$crate::exposition::Family] = &[$($id),+];
    };
}

/// The text of one scrape while it is written. Each family is written once.
#[derive(Debug, Default)]
pub struct Scrape(String);

impl Scrape {
    /// Nothing yet.
    pub fn new() -> Self {
        Self(String::with_capacity(16 * 1_024))
    }

    /// Begins a family: its samples follow.
    pub fn family(&mut self, family: Family) -> Samples<'_> {
        // OpenMetrics names a counter's family without the suffix of its samples.
        let name = match family.kind {
            Kind::Counter => family.name.strip_suffix("_total").unwrap_or(family.name),
            Kind::Gauge | Kind::Histogram | Kind::Summary => family.name,
        };
        let (text, kind, help) = (&mut self.0, family.kind.word(), family.help);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Samples { text, family }
    }

    /// A family with one sample that has no labels.
    pub fn one(&mut self, family: Family, value: impl Display) {
        self.family(family).put(&[], value);
    }

    /// The same, left out where it is not known.
    pub fn known(&mut self, family: Family, value: Option<impl Display>) {
        let mut samples = self.family(family);
        if let Some(value) = value {
            samples.put(&[], value);
        }
    }

    /// The whole text.
    pub fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// Where samples of one family are put.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    family: Family,
}

impl Samples<'_> {
    /// One sample; `values` belong to the family's labels, in their order.
    pub fn put(&mut self, values: &[&str], value: impl Display) {
        self.line("", values, None, value);
    }

    /// A histogram: `counts` has one more than `bounds`, and is not cumulative.
    pub fn histogram(&mut self, values: &[&str], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut below = 0;
        for (at, count) in counts.iter().enumerate() {
            below += count;
            let bound = bounds.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line("_bucket", values, Some(&bound), below);
        }
        self.summary(values, sum, below);
    }

    /// Sum and count.
    pub fn summary(&mut self, values: &[&str], sum: f64, count: u64) {
        self.line("_sum", values, None, sum);
        self.line("_count", values, None, count);
    }

    fn line(&mut self, suffix: &str, values: &[&str], bound: Option<&str>, value: impl Display) {
        debug_assert_eq!(values.len(), self.family.labels.len(), "{}", self.family.name);
        let named = self.family.labels.iter().copied().zip(values.iter().copied());
        let mut before = '{';
        let _ = write!(self.text, "{}{suffix}", self.family.name);
        for (label, value) in named.chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.text, "{before}{label}=\"");
            escape(self.text, value);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

/// The table of `docs/metrics.md` for a program.
pub fn table(families: &[Family]) -> String {
    let mut text = String::from("| name | type | labels | what |\n|---|---|---|---|\n");
    for Family { name, kind, labels, help } in families {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = help.replace('|', "\\|");
        let _ = writeln!(text, "| `{name}` | {} | {} | {help} |", kind.word(), labels.join(", "));
    }
    text
}

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// So many more.
    pub fn inc_by(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One fewer.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that may not be known yet.
#[derive(Debug, Default)]
pub struct Gauge(Mutex<Option<f64>>);

impl Gauge {
    /// From now on it is this.
    pub fn set(&self, value: f64) {
        *locked(&self.0) = Some(value);
    }

    /// What it is; `None` before it was set.
    pub fn get(&self) -> Option<f64> {
        *locked(&self.0)
    }
}

/// Counts by the values of `N` labels.
#[derive(Debug)]
pub struct Counters<const N: usize>(Mutex<BTreeMap<[String; N], u64>>);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<const N: usize> Counters<N> {
    /// One more of these.
    pub fn inc(&self, values: [&str; N]) {
        self.inc_by(values, 1);
    }

    /// So many more of these. Where there are too many sets of values already, the further ones are counted as `other`.
    pub fn inc_by(&self, values: [&str; N], count: u64) {
        let mut all = locked(&self.0);
        let mut key = values.map(str::to_owned);
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            key = std::array::from_fn(|_| "other".to_owned());
        }
        *all.entry(key).or_default() += count;
    }

    /// How many of these.
    pub fn get(&self, values: [&str; N]) -> u64 {
        locked(&self.0).get(&values.map(str::to_owned)).copied().unwrap_or(0)
    }

    /// Forgets all that are not to be kept: what they were about is gone.
    pub fn retain(&self, keep: impl Fn(&[String; N]) -> bool) {
        locked(&self.0).retain(|values, _| keep(values));
    }

    /// Puts all of them.
    pub fn write(&self, mut samples: Samples<'_>) {
        for (values, count) in &*locked(&self.0) {
            samples.put(&values.each_ref().map(String::as_str), count);
        }
    }
}

/// Counts by bound, and the sum.
type Counted = (Vec<u64>, f64);

/// Times by the values of `N` labels; with none it is one histogram.
#[derive(Debug)]
pub struct Histograms<const N: usize> {
    bounds: &'static [f64],
    all: Mutex<BTreeMap<[&'static str; N], Counted>>,
}

impl<const N: usize> Histograms<N> {
    /// With these upper bounds.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, all: Mutex::default() }
    }

    /// Counts one. Labels are words of the program, so there are few.
    pub fn observe(&self, values: [&'static str; N], value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        let mut all = locked(&self.all);
        let (counts, sum) = all.entry(values).or_insert_with(|| (vec![0; self.bounds.len() + 1], 0.0));
        counts[at] += 1;
        *sum += value;
    }

    /// Puts all of them.
    pub fn write(&self, mut samples: Samples<'_>) {
        for (values, (counts, sum)) in &*locked(&self.all) {
            samples.histogram(values, self.bounds, counts, *sum);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    mod described {
        crate::families! {
            SEEN = Counter "x_seen_total" ["who", "how"] "what was seen";
            HEAT = Gauge "x_heat_ratio" [] "how hot";
            TOOK = Histogram "x_took_seconds" ["kind"] "how long";
        }
    }
    use described::{FAMILIES, HEAT, SEEN, TOOK};

    #[test]
    fn a_scrape_is_as_openmetrics_wants_it() {
        let (seen, took, heat) = (Counters::default(), Histograms::new(&[0.1, 1.0]), Gauge::default());
        seen.inc(["a \"b\"\\\n", "c"]);
        seen.inc_by(["a \"b\"\\\n", "c"], 2);
        took.observe(["k"], 0.1);
        took.observe(["k"], 5.0);
        let mut scrape = Scrape::new();
        seen.write(scrape.family(SEEN));
        scrape.known(HEAT, heat.get());
        heat.set(0.5);
        took.write(scrape.family(TOOK));
        let wanted = "# HELP x_seen what was seen\n# TYPE x_seen counter\n\
                      x_seen_total{who=\"a \\\"b\\\"\\\\\\n\",how=\"c\"} 3\n\
                      # HELP x_heat_ratio how hot\n# TYPE x_heat_ratio gauge\n\
                      # HELP x_took_seconds how long\n# TYPE x_took_seconds histogram\n\
                      x_took_seconds_bucket{kind=\"k\",le=\"0.1\"} 1\n\
                      x_took_seconds_bucket{kind=\"k\",le=\"1\"} 1\n\
                      x_took_seconds_bucket{kind=\"k\",le=\"+Inf\"} 2\n\
                      x_took_seconds_sum{kind=\"k\"} 5.1\nx_took_seconds_count{kind=\"k\"} 2\n# EOF\n";
        assert_eq!(scrape.end(), wanted, "what is not known has no sample");
        assert_eq!((FAMILIES.len(), heat.get()), (3, Some(0.5)));
        assert!(table(FAMILIES).contains("| `x_seen_total` | counter | `who`, `how` | what was seen |\n"));
    }

    #[test]
    fn words_are_bounded() {
        let seen = Counters::default();
        for number in 0..MAX_SERIES + 10 {
            seen.inc([&number.to_string()]);
        }
        seen.inc(["0"]);
        assert_eq!((seen.get(["0"]), seen.get(["other"]), seen.get(["300"])), (2, 10, 0));
    }
}
