//! A message to people: one entry, several that were folded, or a digest of many; and its shape for each kind of receiver.

use serde_json::{Value, json};
use swarmguard_common::{api::Severity, journal::Entry};

use super::{route::severity, settings::ReceiverKind};

/// Lines of a digest; how many more there are is said.
const MAX_LINES: usize = 15;

/// What is sent as one.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The same each time that it is sent: receivers drop doubles by it.
    pub id: String,
    /// Which swarm, as people call it.
    pub swarm: String,
    /// Entries, and how many like each there were.
    pub entries: Vec<(Entry, u64)>,
}

impl Message {
    /// The most that any of it matters.
    pub fn severity(&self) -> Severity {
        self.entries.iter().filter_map(|(entry, _)| severity(entry)).min().unwrap_or(Severity::Notice)
    }

    /// One line.
    pub fn title(&self) -> String {
        let word = match self.severity() {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "Warning",
            Severity::Notice => "Notice",
        };
        match self.entries.as_slice() {
            [(entry, _)] => {
                let about = entry.service_name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
                format!("{word}: {}{about} ({})", entry.code.replace('_', " "), self.swarm)
            }
            many => {
                let all: u64 = many.iter().map(|(_, times)| times).sum();
                format!("{word}: {all} messages ({})", self.swarm)
            }
        }
    }

    /// What happened, a line for each entry.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = self
            .entries
            .iter()
            .take(MAX_LINES)
            .map(|(entry, times)| {
                let about = entry.service_name.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
                let times = if *times > 1 { format!(" ({times} times)") } else { String::new() };
                format!("{about}{}{times}", entry.text)
            })
            .collect();
        if self.entries.len() > MAX_LINES {
            lines.push(format!("and {} more: swarmguard events", self.entries.len() - MAX_LINES));
        }
        lines.join("\n")
    }

    /// The body and its type for a receiver that is posted to.
    pub fn body(&self, receiver: ReceiverKind) -> (&'static str, String) {
        let (title, text) = (self.title(), self.text());
        let json = |value: Value| ("application/json", value.to_string());
        match receiver {
            ReceiverKind::Webhook => json(json!({
                "version": 1, "id": self.id, "swarm": self.swarm, "severity": self.severity(), "title": title,
                "text": text,
                "entries": self.entries.iter().map(|(entry, times)| json!({"times": times, "entry": entry}))
                    .collect::<Vec<_>>(),
            })),
            ReceiverKind::Slack => json(json!({"text": format!("*{}*\n{}", mrkdwn(&title), mrkdwn(&text))})),
            ReceiverKind::Teams => json(json!({
                "type": "message",
                "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard",
                    "version": "1.4",
                    "body": [
                        {"type": "TextBlock", "text": title, "weight": "bolder", "wrap": true},
                        {"type": "TextBlock", "text": text.replace('\n', "\n\n"), "wrap": true},
                    ],
                }}],
            })),
            ReceiverKind::Apprise => json(json!({
                "title": title, "body": text, "format": "text",
                "type": match self.severity() {
                    Severity::Critical => "failure",
                    Severity::Warning => "warning",
                    Severity::Notice => "info",
                },
            })),
            ReceiverKind::Ntfy | ReceiverKind::Smtp => ("text/plain; charset=utf-8", text),
        }
    }
}

/// Characters that mean something to Slack.
fn mrkdwn(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use swarmguard_common::journal::Kind;

    use super::*;

    fn message(entries: Vec<(Entry, u64)>) -> Message {
        Message { id: "m1-1-7".into(), swarm: "prod".into(), entries }
    }

    fn undone(text: &str) -> Entry {
        Entry { service_name: Some("web".into()), ..Entry::new(Kind::Action, "undone", text) }
    }

    #[test]
    fn one_entry_says_what_happened_and_where() {
        let one = message(vec![(undone("put back: w2 & <w3> are full"), 3)]);
        assert_eq!(one.title(), "Warning: undone web (prod)");
        assert_eq!(one.text(), "web: put back: w2 & <w3> are full (3 times)");
        let (_, slack) = one.body(ReceiverKind::Slack);
        assert!(slack.contains("w2 &amp; &lt;w3&gt;"), "{slack}");
        let (_, hook) = one.body(ReceiverKind::Webhook);
        let hook: Value = serde_json::from_str(&hook).expect("JSON");
        assert_eq!((&hook["id"], &hook["entries"][0]["times"]), (&json!("m1-1-7"), &json!(3)));
        assert_eq!(hook["entries"][0]["entry"]["service_name"], "web");
        for receiver in [ReceiverKind::Teams, ReceiverKind::Apprise] {
            serde_json::from_str::<Value>(&one.body(receiver).1).expect("JSON");
        }
    }

    #[test]
    fn a_digest_counts_and_is_bounded() {
        let mut entries = vec![(undone("x"), 2); 40];
        entries.push((Entry::new(Kind::Notice, "no_leader", "nobody acts"), 1));
        let digest = message(entries);
        assert_eq!(digest.title(), "CRITICAL: 81 messages (prod)");
        assert_eq!(digest.text().lines().count(), MAX_LINES + 1);
    }
}
