//! What an operator must see as long as it is so.

use swarmguard_common::api::{Banner, BannerCode, NodeWord, Overview, ServiceMode, Severity};

use super::{health::list, overview::Beside};

/// All lines, the most severe first.
pub(super) fn of(overview: &Overview, beside: &Beside) -> Vec<Banner> {
    let mut lines = Vec::new();
    let mut add = |severity, code, text: String| lines.push(Banner { severity, code, text });
    if let Some(trouble) = &beside.trouble {
        let text = format!("Swarm cannot be read, so nothing is decided: {trouble}");
        add(Severity::Critical, BannerCode::SwarmUnreadable, text);
    } else if overview.coordination.leader.is_none() {
        let text =
            "no manager holds the raft leadership, so nobody acts: look at docker node ls on the managers";
        add(Severity::Critical, BannerCode::NoLeader, text.into());
    }
    let with = |words: &[NodeWord]| -> Vec<String> {
        let rows = overview.nodes.iter().filter(|row| row.state.iter().any(|word| words.contains(word)));
        rows.map(|row| row.hostname.clone()).collect()
    };
    let is_manager = |word: &NodeWord| matches!(word, NodeWord::Manager | NodeWord::Leader);
    let managers = overview.nodes.iter().filter(|row| row.state.iter().any(is_manager));
    let (mut all, mut ready) = (0, 0);
    for row in managers {
        all += 1;
        ready += usize::from(!row.state.contains(&NodeWord::Down));
    }
    if all > 1 && ready < all && ready <= all / 2 + 1 {
        let text = format!(
            "{ready} of {all} managers are up: with one fewer the swarm cannot be changed any more; bring a manager back"
        );
        add(Severity::Critical, BannerCode::QuorumAtRisk, text);
    }
    let down = with(&[NodeWord::Down]);
    if !down.is_empty() {
        add(Severity::Critical, BannerCode::NodesDown, format!("down: {}", list(&down, down.len())));
    }
    services(overview, &mut add);
    let silent = with(&[NodeWord::Silent, NodeWord::NoAgent, NodeWord::Blind]);
    let silent: Vec<String> = silent.into_iter().filter(|name| !down.contains(name)).collect();
    if !silent.is_empty() {
        let text = format!("not protected, because no agent reports from {}", list(&silent, silent.len()));
        add(Severity::Warning, BannerCode::NodesSilent, text);
    }
    let mut unhelped: Vec<String> = overview
        .alerts
        .iter()
        .filter_map(|alert| Some(format!("{} ({})", alert.service.as_ref()?, alert.unhelped.as_ref()?)))
        .collect();
    unhelped.dedup();
    if !unhelped.is_empty() {
        let text = format!("hot, and the rules keep it as it is: {}", list(&unhelped, unhelped.len()));
        add(Severity::Warning, BannerCode::HotNotHelped, text);
    }
    if overview.coordination.paused {
        let text = "automation is paused for all services: nothing is moved or scaled until it is resumed";
        add(Severity::Warning, BannerCode::Paused, text.into());
    }
    if overview.coordination.observe {
        let text = "observe mode: decisions are shown, nothing is changed";
        add(Severity::Notice, BannerCode::Observe, text.into());
    }
    lines.sort_by_key(|line| line.severity);
    lines
}

fn services(overview: &Overview, add: &mut impl FnMut(Severity, BannerCode, String)) {
    let rows = || overview.services.iter().filter(|row| row.mode != ServiceMode::Job);
    let names = |short: &dyn Fn(u64, u64) -> bool| -> Vec<String> {
        let found = rows().filter(|row| row.wanted.is_some_and(|wanted| short(row.running, wanted)));
        found.map(|row| format!("{} ({}/{})", row.name, row.running, row.wanted.unwrap_or(0))).collect()
    };
    let down = names(&|running, wanted| running == 0 && wanted > 0);
    if !down.is_empty() {
        let text = format!("no replica runs: {}", list(&down, down.len()));
        add(Severity::Critical, BannerCode::ServicesShort, text);
    }
    let short = names(&|running, wanted| running > 0 && running < wanted);
    if !short.is_empty() {
        let text = format!("fewer replicas than wanted: {}", list(&short, short.len()));
        add(Severity::Warning, BannerCode::ServicesShort, text);
    }
    let pending: Vec<String> =
        rows().filter(|row| row.pending > 0).map(|row| format!("{} ({})", row.name, row.pending)).collect();
    if !pending.is_empty() {
        let text = format!("tasks wait for a node that can take them: {}", list(&pending, pending.len()));
        add(Severity::Warning, BannerCode::TasksPending, text);
    }
    let invalid: Vec<String> =
        overview.services.iter().filter(|row| row.labels_invalid).map(|row| row.name.clone()).collect();
    if !invalid.is_empty() {
        let text = format!("not protected, because labels make no sense: {}", list(&invalid, invalid.len()));
        add(Severity::Warning, BannerCode::LabelsInvalid, text);
    }
}
