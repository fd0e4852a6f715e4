//! `explain`: why a service is or is not touched, and what would change it.

use std::{fmt::Write as _, time::Duration};

use swarmguard_common::{
    api::{Conclusion, Explanation, Judgement, Overview},
    journal::Entry,
};

use super::known_service;
use crate::{
    engine::http::escape,
    failure::{Exit, Outcome},
    out::{Style, Tone, age, clean, time_of_day},
    session::Session,
};

/// Prints it.
pub async fn explain(session: &Session, service: &str, since: Option<Duration>) -> Outcome<Exit> {
    let overview = session.overview().await?;
    let name = known_service(&overview, service)?;
    let coordinator = session.coordinator().await?;
    let found: Explanation = coordinator.get(&format!("/api/v1/explain?service={}", escape(&name))).await?;
    let mut earlier: Vec<Entry> = Vec::new();
    if let Some(since) = since {
        earlier = coordinator.get(&format!("/api/v1/decisions?limit=1000&service={}", escape(&name))).await?;
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        earlier.retain(|entry| entry.at_ms + since_ms >= overview.at_ms);
    }
    let mut value = serde_json::to_value(&found).unwrap_or_default();
    if since.is_some() {
        value["earlier"] = serde_json::to_value(&earlier).unwrap_or_default();
    }
    session.answer("Explanation", value, &name, || text(&found, &overview, &earlier, session.style))?;
    Ok(Exit::Done)
}

/// As people read it.
pub fn text(found: &Explanation, overview: &Overview, earlier: &[Entry], style: Style) -> String {
    let mut text = head(found, style);
    let mut line = |what: &str, words: &str| {
        let _ = writeln!(text, "  {what:<10} {}", clean(words));
    };
    for error in &found.label_errors {
        line("Labels:", error);
    }
    if let Some(judgement) = &found.verdict {
        line("Because:", &judgement.text);
        if !judgement.signals.is_empty() {
            line("Signals:", &signals(judgement));
        }
        if let Some(place) = place(judgement, overview) {
            line("Where:", &place);
        }
        if !judgement.otherwise.is_empty() {
            line("Otherwise:", &judgement.otherwise);
        }
        if let Some(what) = way_out(&judgement.rule, &found.name) {
            line("Do:", &what);
        }
    }
    if let Some(action) = found.action.as_ref().filter(|action| action.state != "over") {
        let waits =
            action.waits_for.as_deref().map_or_else(String::new, |waits| format!(", waits for {waits}"));
        line("Now:", &format!("{} {} for {}{waits}", action.kind, action.state, age(action.state_age_ms)));
    }
    for alert in &found.alerts {
        let stale = if alert.stale { ", stale" } else { "" };
        line(
            "Alert:",
            &format!(
                "{} {:.0}% on {} for {}{stale}",
                alert.condition,
                alert.percent,
                host(overview, alert.node.as_str()),
                age(alert.stands_ms)
            ),
        );
    }
    for (kind, left) in &found.cooldowns_ms {
        line("Cooldown:", &format!("{kind} for another {}", age(*left)));
    }
    if let Some(ms) = found.spare_ms {
        line("Spare:", &format!("one replica could go, for {} now", age(ms)));
    }
    for finding in &found.preflight {
        let what = if finding.refuses { "Forbids:" } else { "Weakens:" };
        line(what, &format!("{} ({}); otherwise: {}", finding.text, finding.code, finding.otherwise));
    }
    if found.observe || found.paused {
        line(
            "Mode:",
            if found.paused { "paused by an operator" } else { "observed only: nothing is changed" },
        );
    }
    for entry in earlier {
        let rule = entry.rule.as_deref().unwrap_or(&entry.code);
        line(&time_of_day(entry.at_ms), &format!("{rule}: {}", entry.text));
    }
    text
}

fn head(found: &Explanation, style: Style) -> String {
    let (word, tone) = match &found.verdict {
        _ if !found.label_errors.is_empty() => ("LEFT ALONE labels".to_owned(), Tone::Bad),
        _ if found.policy.as_ref().is_some_and(|policy| !policy.enabled) => {
            ("NOT PROTECTED".into(), Tone::Dim)
        }
        None => ("NO VERDICT YET".into(), Tone::Dim),
        Some(judgement) => match judgement.conclusion {
            Conclusion::Act => (format!("ACTS {}", judgement.rule), Tone::Good),
            Conclusion::Refuse => (format!("REFUSED {}", judgement.rule), Tone::Warn),
            Conclusion::Calm => ("CALM".into(), Tone::Good),
        },
    };
    let when = found.verdict_age_ms.map_or_else(String::new, |ms| format!(", {} ago", age(ms)));
    format!("{}  {}{when}\n", clean(&found.name), style.paint(tone, &word))
}

fn signals(judgement: &Judgement) -> String {
    let shown = judgement.signals.iter().map(|(name, figure)| match name.rsplit_once('_') {
        Some((name, "percent")) => format!("{} {figure:.0}%", name.replace('_', " ")),
        Some((name, "ms")) => format!("{} {:.1}s", name.replace('_', " "), figure / 1_000.0),
        _ => format!("{} {figure}", name.replace('_', " ")),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn place(judgement: &Judgement, overview: &Overview) -> Option<String> {
    let from = judgement.node.as_ref().map(|node| host(overview, node.as_str()));
    let to = judgement.target.as_ref().map(|node| host(overview, node.as_str()));
    match (from, to) {
        (Some(from), Some(to)) => Some(format!("{from} -> {to}")),
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) => None,
    }
}

fn host(overview: &Overview, id: &str) -> String {
    let node = overview.nodes.iter().find(|node| node.node.as_str() == id);
    node.map_or_else(|| id.into(), |node| node.hostname.clone())
}

/// The command that lifts a rule, where one does.
pub fn way_out(rule: &str, service: &str) -> Option<String> {
    match rule {
        "singleton" => Some(format!("swarmguard enable {service} --surge")),
        "scaling_off" | "limit_bound" | "nowhere_better" => {
            Some(format!("swarmguard enable {service} --min 1 --max 3"))
        }
        "paused" => Some(format!("swarmguard resume {service}")),
        "cooldown" => Some(format!("swarmguard migrate {service} (an operator's word does not wait)")),
        _ => None,
    }
}
