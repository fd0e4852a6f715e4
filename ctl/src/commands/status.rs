//! `status` and `health`.

use std::{fmt::Write as _, time::Duration};

use serde_json::json;
use swarmguard_common::api::{ActionNow, Health, LeaseState, NodeRow, NodeWord, Overview, Severity};

use super::{again, line, lists};
use crate::{
    failure::{Exit, Outcome},
    out::{Style, Tone, age, clean, table::View},
    session::Session,
};

/// The swarm at a glance.
pub async fn status(session: &Session, watch: Option<Duration>) -> Outcome<Exit> {
    let Some(every) = watch else {
        let overview = session.overview().await?;
        let value = serde_json::to_value(&overview).unwrap_or_default();
        let name = swarm_name(&overview).to_owned();
        let text = text(&overview, session.style)?;
        session.answer("Status", value, &name, || text)?;
        return Ok(Exit::Done);
    };
    again(session, every, async || {
        let overview = session.overview().await?;
        if session.style.terminal {
            text(&overview, session.style)
        } else {
            Ok(line("Status", serde_json::to_value(&overview).unwrap_or_default()))
        }
    })
    .await
}

/// What the swarm is called.
pub fn swarm_name(overview: &Overview) -> &str {
    overview
        .swarm
        .name
        .as_deref()
        .unwrap_or_else(|| overview.swarm.id.get(..12).unwrap_or(&overview.swarm.id))
}

fn text(overview: &Overview, style: Style) -> Outcome<String> {
    let protected = overview.services.iter().filter(|service| service.protected).count();
    let ours = overview.services.iter().filter(|service| service.own).count();
    let (nodes, services) = (overview.nodes.len(), overview.services.len() - ours);
    let score = overview.health.score;
    let mut text = format!(
        "Swarm  {} ({nodes} {}, {services} {}, {protected} protected)   Health {}   {}\n",
        clean(swarm_name(overview)),
        plural(nodes, "node"),
        plural(services, "service"),
        style.paint(score_tone(score), &format!("{score}/100")),
        acting(overview, style),
    );
    for banner in &overview.banner {
        let (tone, word) = severity(banner.severity);
        let _ = writeln!(text, "{}  {}", style.paint(tone, word), clean(&banner.text));
    }
    text.push_str(&lists::nodes_of(overview).render(&View::default(), style)?);
    for action in &overview.actions {
        let _ = writeln!(text, "{}     {}", style.paint(Tone::Head, "NOW"), clean(&action_text(action)));
    }
    for deduction in &overview.health.deductions {
        let _ = writeln!(
            text,
            "{}  -{} {}",
            style.paint(Tone::Head, "HEALTH"),
            deduction.points,
            clean(&deduction.text)
        );
    }
    let day = &overview.last_day;
    let mttr = day.mttr_p90_ms.map_or_else(String::new, |ms| format!(", MTTR p90 {}", age(ms)));
    let _ = writeln!(
        text,
        "{}  {} moved, {} scaled, {} undone{mttr}",
        style.paint(Tone::Head, "LAST 24h"),
        day.moved,
        day.scaled,
        day.undone
    );
    Ok(text)
}

/// Who acts, in words.
pub fn acting(overview: &Overview, style: Style) -> String {
    let coordination = &overview.coordination;
    match &coordination.acts {
        _ if coordination.observe => style.paint(Tone::Warn, "observes only"),
        _ if coordination.paused => style.paint(Tone::Warn, "paused"),
        Some(node) => format!("Acting {}", clean(node)),
        None if coordination.leader.is_none() => style.paint(Tone::Bad, "nobody acts: no leader"),
        None => style.paint(Tone::Bad, "nobody acts"),
    }
}

/// What is under way, in one line.
pub fn action_text(action: &ActionNow) -> String {
    let what = action.service.as_deref().unwrap_or("");
    let mut text = format!("{} {what}", action.kind);
    match (&action.source, &action.target) {
        (Some(source), Some(target)) => text += &format!("  {source} -> {target}"),
        (Some(source), None) => text += &format!("  {source} ->"),
        (None, Some(target)) => text += &format!("  -> {target}"),
        (None, None) => {}
    }
    text += &format!("  {} {}", action.step, age(action.step_ms));
    if let Some(why) = &action.undone {
        text += &format!("  is being undone: {why}");
    } else if let Some(waits) = &action.waits_for {
        text += &format!("  waits for {waits}");
    }
    text
}

/// The state of a node in words, and how it is to be looked at.
pub fn node_state(node: &NodeRow) -> (String, Tone) {
    let words: Vec<&str> = node.state.iter().map(|word| word.text()).collect();
    let bad = |word: &NodeWord| {
        matches!(word, NodeWord::Down | NodeWord::Silent | NodeWord::NoAgent | NodeWord::Blind)
    };
    let fine = |word: &NodeWord| matches!(word, NodeWord::Ok | NodeWord::Leader | NodeWord::Manager);
    let tone = if node.state.iter().any(bad) {
        Tone::Bad
    } else if node.state.iter().all(fine) {
        Tone::Good
    } else {
        Tone::Warn
    };
    (words.join(" "), tone)
}

/// How a lease reads.
pub fn lease_text(lease: Option<LeaseState>) -> &'static str {
    match lease {
        None => "never",
        Some(LeaseState::Live) => "live",
        Some(LeaseState::Suspect) => "suspect",
        Some(LeaseState::Lapsed) => "lapsed",
    }
}

/// How a severity is said.
pub fn severity(severity: Severity) -> (Tone, &'static str) {
    match severity {
        Severity::Critical => (Tone::Bad, "CRITICAL"),
        Severity::Warning => (Tone::Warn, "WARNING"),
        Severity::Notice => (Tone::Dim, "NOTICE"),
    }
}

/// How a score is to be looked at.
pub fn score_tone(score: u8) -> Tone {
    match score {
        90.. => Tone::Good,
        70..90 => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// One or several.
pub fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.into() } else { format!("{word}s") }
}

/// The score, with each deduction.
pub async fn health(session: &Session, min: u8) -> Outcome<Exit> {
    let Health { score, deductions } = session.overview().await?.health;
    let enough = score >= min;
    let value = json!({"score": score, "min": min, "enough": enough, "deductions": deductions});
    session.answer("Health", value, &score.to_string(), || {
        let style = session.style;
        let mut text = format!("Health {}\n", style.paint(score_tone(score), &format!("{score}/100")));
        for deduction in &deductions {
            let _ = writeln!(text, "  -{:<3} {}", deduction.points, clean(&deduction.text));
            if !deduction.subjects.is_empty() {
                let _ = writeln!(text, "       {}", clean(&deduction.subjects.join(", ")));
            }
        }
        text
    })?;
    if !enough {
        session.note(&format!("health {score} is below {min}"));
        return Ok(Exit::BelowMark);
    }
    Ok(Exit::Done)
}
