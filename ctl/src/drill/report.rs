//! What a drill has shown: for people (Markdown, HTML) and programs (JSON). Kept in the swarm itself, as a config object.

use std::fmt::Write as _;

use maud::{DOCTYPE, html};
use serde::{Deserialize, Serialize};

use crate::out::clean;

/// How reports are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Markdown.
    Md,
    /// JSON.
    Json,
    /// One page that needs nothing else.
    Html,
}

/// The requests of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Where they went.
    pub url: String,
    /// All.
    pub sent: u64,
    /// Without an answer below 500 in time.
    pub failed: u64,
    /// Longest time between two answers.
    pub longest_gap_ms: u64,
    /// Answered, in per cent.
    pub availability_percent: f64,
    /// The same, lower and upper bound with 95 % confidence.
    pub bounds_percent: (f64, f64),
    /// Why they failed, with how many.
    pub reasons: Vec<(String, u64)>,
}

/// What a drill has shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its ID.
    pub id: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The fault as it is typed.
    pub fault: String,
    /// What it is about: a service or a node.
    pub target: String,
    /// What was done, in words.
    pub what: String,
    /// What should come of it.
    pub expected: String,
    /// What came of it, in the order it was seen: milliseconds after the fault, and words.
    pub seen: Vec<(u64, String)>,
    /// How long the fault was held.
    pub held_ms: u64,
    /// Until the coordinator said something of it.
    pub detected_ms: Option<u64>,
    /// Until every service had its replicas again, after one had lost some.
    pub repaired_ms: Option<u64>,
    /// A service had fewer replicas than it wants, at some moment.
    pub was_short: bool,
    /// Tasks that were started meanwhile, those of the drill left out.
    pub restarts: u64,
    /// Requests, where some were sent.
    pub requests: Option<Requests>,
    /// Why it ended before its time.
    pub stopped: Option<String>,
    /// What is not as it was before.
    pub left_behind: Vec<String>,
    /// Whether it went as it should.
    pub passed: bool,
    /// Why not.
    pub failures: Vec<String>,
}

impl Report {
    /// As it is wanted.
    pub fn write(&self, form: Form) -> String {
        match form {
            Form::Md => self.markdown(),
            Form::Json => format!(
                "{:#}\n",
                crate::out::document("DrillReport", serde_json::to_value(self).unwrap_or_default())
            ),
            Form::Html => self.html(),
        }
    }

    /// Rows of figures: name and value.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let span = |ms: Option<u64>| ms.map_or_else(|| "–".to_owned(), seconds);
        let repaired = match (self.was_short, self.repaired_ms) {
            (false, _) => "nothing was short".to_owned(),
            (true, None) => "not while it was watched".to_owned(),
            (true, Some(ms)) => seconds(ms),
        };
        let mut rows = vec![
            ("fault held", seconds(self.held_ms)),
            ("detected after", span(self.detected_ms)),
            ("repaired after", repaired),
            ("tasks started anew", self.restarts.to_string()),
        ];
        if let Some(requests) = &self.requests {
            rows.push(("requests", format!("{} to {}", requests.sent, requests.url)));
            rows.push(("failed", requests.failed.to_string()));
            rows.push(("longest gap", seconds(requests.longest_gap_ms)));
            let (low, high) = requests.bounds_percent;
            rows.push((
                "availability",
                format!("{:.3} % (95 %: {low:.3} to {high:.3})", requests.availability_percent),
            ));
        }
        let left =
            if self.left_behind.is_empty() { "nothing".to_owned() } else { self.left_behind.join("; ") };
        rows.push(("left behind", left));
        rows
    }

    fn verdict(&self) -> &'static str {
        if self.passed { "passed" } else { "failed" }
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# Drill {}: {}\n\n**{}**: {}\n\n",
            self.id,
            self.fault,
            self.verdict(),
            clean(&self.what)
        );
        let _ = writeln!(text, "Expected: {}.\n\n| | |\n|---|---|", self.expected);
        for (name, value) in self.figures() {
            let _ = writeln!(text, "| {name} | {} |", clean(&value).replace('|', "\\|"));
        }
        text.push_str("\n## Seen\n\n");
        for (ms, what) in &self.seen {
            let _ = writeln!(text, "- {}: {}", seconds(*ms), clean(what));
        }
        for (title, lines) in
            [("Failed because", &self.failures), ("Ended early", &self.stopped.iter().cloned().collect())]
        {
            if !lines.is_empty() {
                let _ = writeln!(text, "\n## {title}\n");
                for line in lines {
                    let _ = writeln!(text, "- {}", clean(line));
                }
            }
        }
        text
    }

    fn html(&self) -> String {
        let stopped: Vec<&String> = self.stopped.iter().collect();
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { "Drill " (self.id) ": " (self.fault) }
                    style { (maud::PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Drill " (self.id) ": " (self.fault) " " (self.target) }
                    p { b class=(self.verdict()) { (self.verdict()) } ": " (self.what) "." }
                    p { "Expected: " (self.expected) "." }
                    table {
                        @for (name, value) in self.figures() { tr { th scope="row" { (name) } td { (value) } } }
                    }
                    h2 { "Seen" }
                    ul { @for (ms, what) in &self.seen { li { b { (seconds(*ms)) } " " (what) } } }
                    @if !self.failures.is_empty() {
                        h2 { "Failed because" }
                        ul { @for line in &self.failures { li { (line) } } }
                    }
                    @if !stopped.is_empty() {
                        h2 { "Ended early" }
                        ul { @for line in stopped { li { (line) } } }
                    }
                }
            }
        }
        .into_string()
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}th,td{text-align:left;padding:.25rem 1.5rem .25rem 0;border-bottom:1px solid #8884;vertical-align:top}\
.passed{color:#17722f}.failed{color:#b3261e}@media(prefers-color-scheme:dark){.passed{color:#6fd08c}.failed{color:#ff8a80}}";

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            id: "d1".into(),
            at_ms: 1,
            fault: "kill-task".into(),
            target: "web".into(),
            what: "kill the replica of web on <w1>".into(),
            expected: "another starts".into(),
            seen: vec![(1_200, "web: 1 of 2 | run".into())],
            held_ms: 0,
            detected_ms: Some(400),
            repaired_ms: Some(2_500),
            was_short: true,
            restarts: 1,
            requests: Some(Requests {
                url: "http://web".into(),
                sent: 1_000,
                failed: 1,
                longest_gap_ms: 40,
                availability_percent: 99.9,
                bounds_percent: (99.4, 99.98),
                reasons: Vec::new(),
            }),
            stopped: None,
            left_behind: Vec::new(),
            passed: true,
            failures: Vec::new(),
        }
    }

    #[test]
    fn all_three_forms_say_the_same() {
        let report = report();
        let text = report.write(Form::Md);
        assert!(text.contains("**passed**") && text.contains("| repaired after | 2.5 s |"), "{text}");
        assert!(text.contains("99.900 % (95 %: 99.400 to 99.980)"), "{text}");
        let page = report.write(Form::Html);
        assert!(page.contains("&lt;w1&gt;") && !page.contains("<w1>"), "names cannot become markup: {page}");
        assert!(
            page.contains("2.5 s") && !page.contains("http://www") && !page.contains("<script"),
            "{page}"
        );
        let back: serde_json::Value = serde_json::from_str(&report.write(Form::Json)).expect("JSON");
        assert_eq!((back["kind"].as_str(), back["restarts"].as_u64()), (Some("DrillReport"), Some(1)));
    }

    #[test]
    fn what_was_not_repaired_is_not_a_dash() {
        let report =
            Report { repaired_ms: None, passed: false, failures: vec!["web stays short".into()], ..report() };
        let text = report.write(Form::Md);
        assert!(text.contains("not while it was watched") && text.contains("- web stays short"), "{text}");
    }
}
