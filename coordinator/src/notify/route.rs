//! Which entries are told to which channels, and how much an entry matters. Pure.

use swarmguard_common::{
    api::Severity,
    journal::{Entry, Kind},
};

use super::settings::Channel;

/// Notices that say that users lose requests, or that nothing is protected.
const CRITICAL: [&str; 6] =
    ["swarm_unreadable", "no_leader", "no_witness", "deaf", "another_idle", "paused_itself"];
/// Notices of things that are as they should be again.
const GOOD: [&str; 5] = ["swarm_readable", "leads", "stands_in", "another_acts", "not_read"];

/// How much an entry matters; `None` for single steps, which are told only where their code is asked for.
pub fn severity(entry: &Entry) -> Option<Severity> {
    match (entry.kind, entry.code.as_str()) {
        (Kind::Notice, code) if CRITICAL.contains(&code) => Some(Severity::Critical),
        (Kind::Notice, code) if GOOD.contains(&code) => Some(Severity::Notice),
        (Kind::Notice, _) | (Kind::Action, "undone") | (Kind::Lease, "lease_lapsed") => {
            Some(Severity::Warning)
        }
        (Kind::Action, "done") | (Kind::Decision | Kind::Operator, _) => Some(Severity::Notice),
        (Kind::Lease, "lease_renewed") => Some(Severity::Notice),
        (Kind::Action | Kind::Refusal | Kind::Alert | Kind::Lease, _) => None,
    }
}

/// Whether a channel is told of an entry. `labelled` is the channel that the entry's service names, if it names one: then
/// that one is told, and of the others those that ask for it.
pub fn goes_to(channel: &Channel, entry: &Entry, labelled: Option<&str>, minute_of_day: u32) -> bool {
    let severity = severity(entry);
    let asked = channel.codes.contains(&entry.code);
    let matters = severity.is_some_and(|severity| severity <= channel.severity);
    if !asked && (!matters || !channel.codes.is_empty()) {
        return false;
    }
    if channel.quiet.is_some_and(|quiet| quiet.holds(minute_of_day)) && severity != Some(Severity::Critical) {
        return false;
    }
    let kind = channel.kinds.is_empty() || channel.kinds.contains(&entry.kind);
    kind && (labelled == Some(channel.name.as_str()) || service(channel, entry))
}

fn service(channel: &Channel, entry: &Entry) -> bool {
    let name = entry.service_name.as_deref();
    channel.services.is_empty()
        || name.is_some_and(|name| channel.services.iter().any(|pattern| matches(pattern, name)))
}

/// `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::settings::Settings;

    fn channel(rest: &str) -> Channel {
        let text = format!("[[channel]]\nname = \"c\"\nkind = \"slack\"\nurl = \"https://h/\"\n{rest}");
        Settings::parse(&text).expect("sensible").channels.remove(0)
    }

    fn entry(kind: Kind, code: &str, service: &str) -> Entry {
        let service_name = Some(service.to_owned());
        Entry { service_name, ..Entry::new(kind, code, "text") }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, wanted) in [
            ("shop_*", "shop_web", true),
            ("shop_*", "workshop_web", false),
            ("*_web", "shop_web", true),
            ("shop", "shop_web", false),
            ("s*p*b", "shop_web", true),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn channels_are_told_what_they_ask_for() {
        let undone = entry(Kind::Action, "undone", "shop_web");
        let done = entry(Kind::Action, "done", "shop_web");
        let step = entry(Kind::Action, "successor_healthy", "shop_web");
        let lost = entry(Kind::Notice, "no_leader", "shop_web");
        let told = |rest: &str, entry: &Entry| goes_to(&channel(rest), entry, None, 60);
        assert!(told("", &undone) && told("", &lost) && !told("", &done) && !told("", &step));
        assert!(told("severity = \"notice\"", &done) && !told("severity = \"notice\"", &step));
        assert!(!told("severity = \"critical\"", &undone));
        assert!(told("codes = [\"successor_healthy\"]", &step) && !told("codes = [\"done\"]", &undone));
        assert!(!told("kinds = [\"notice\"]", &undone));
        assert!(!told("services = [\"blog_*\"]", &undone));
        assert!(goes_to(&channel("services = [\"blog_*\"]"), &undone, Some("c"), 60), "the label says so");
        assert!(!told("quiet = \"00:00-06:00\"", &undone) && told("quiet = \"00:00-06:00\"", &lost));
    }
}
