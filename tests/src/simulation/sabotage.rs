//! Breaking the product on purpose, between it and what it talks to: each way must make one of the checkers speak. A
//! checker that nothing can make speak checks nothing.

use serde_json::{Value, json};
use swarmguard_common::domain::{BasisPoints, TaskId};
use swarmguard_core::{action::action_name, command::Command};

use crate::swarm_model::SwarmModel;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    None,
    /// Nodes are paused and never unpaused.
    KeepsPause,
    /// Nodes are drained instead of paused: their replicas stop before others run.
    Drains,
    /// Instead of marking a replica, fewer are asked for, whichever Swarm takes.
    SkipsTheMark,
    /// A constraint is added to every spec.
    LeavesConstraint,
    /// The mark stays in the previous spec, where a rollback would find it.
    LeavesPreviousSpec,
    /// A surge asks for many more replicas than one.
    Overshoots,
    /// The service is written after its lease is gone.
    WritesWithoutLease,
    /// The lease is never given back.
    KeepsLease,
    /// Nodes that all have left are never drained.
    NeverDrains,
    /// The balancers never hear that a replica stays after all.
    NeverResumes,
    /// Agents go on saying what has ended.
    NeverClears,
    /// There are no cooldowns, and nothing is waited for.
    Hasty,
    /// Nothing is ever done.
    Idle,
    /// Alerts are lost between ingest and the brain.
    LosesAlerts,
    /// Each alert reaches the brain twice, under two numbers.
    JudgesTwice,
    /// Reports are lost between ingest and the brain.
    LosesReports,
    /// What was reported last is said again and again, also of a silent node.
    RepeatsReports,
    /// Somebody else has a node's certificate.
    LendsCertificate,
}

impl Sabotage {
    /// Those that need no network, each with words from what the checker then says.
    pub const ALL: [(Self, &str); 13] = [
        (Self::KeepsPause, "is left Pause"),
        (Self::Drains, "serving replicas"),
        (Self::SkipsTheMark, "are allowed"),
        (Self::LeavesConstraint, "is left changed"),
        (Self::LeavesPreviousSpec, "a rollback of"),
        (Self::Overshoots, "are allowed"),
        (Self::WritesWithoutLease, "without an action lease"),
        (Self::KeepsLease, "is left unfinished"),
        (Self::NeverDrains, "the drain of"),
        (Self::NeverResumes, "is left draining"),
        (Self::NeverClears, "alerts stand"),
        (Self::Hasty, "after the last"),
        (Self::Idle, "nothing was done"),
    ];

    /// Those of what goes over QUIC, likewise.
    pub const OF_QUIC: [(Self, &str); 7] = [
        (Self::LosesAlerts, "and is lost"),
        (Self::JudgesTwice, "alerts were judged"),
        (Self::LosesReports, "though it spoke"),
        (Self::RepeatsReports, "renewed"),
        (Self::LendsCertificate, "somebody else"),
        (Self::KeepsPause, "is left Pause"),
        (Self::SkipsTheMark, "are allowed"),
    ];

    /// What reaches Swarm instead of a command; nothing where `None`, though it is answered as done.
    pub(super) fn of_command(self, command: &Command, swarm: &mut SwarmModel) -> Option<Command> {
        let mut command = command.clone();
        match (self, &mut command) {
            (Self::KeepsPause, Command::WriteNode { spec, .. }) if spec["Availability"] == "active" => None,
            (Self::Drains, Command::WriteNode { spec, .. }) if spec["Availability"] == "pause" => {
                spec["Availability"] = json!("drain");
                Some(command)
            }
            (Self::SkipsTheMark, Command::WriteService { spec, .. }) if is_marked(spec) => {
                let replicas = spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0);
                spec["Mode"]["Replicated"]["Replicas"] = json!(replicas.saturating_sub(2));
                spec["TaskTemplate"]["Placement"] = json!({});
                Some(command)
            }
            (Self::LeavesConstraint, Command::WriteService { spec, .. }) => {
                let constraints = &mut spec["TaskTemplate"]["Placement"]["Constraints"];
                if let Some(list) = constraints.as_array_mut().filter(|list| list.len() < 2) {
                    list.push(json!("node.hostname!=elsewhere"));
                }
                Some(command)
            }
            (Self::LeavesPreviousSpec, Command::WriteService { service, spec, .. }) => {
                // What the identical write is for.
                let now = swarm.services.get(service).map(|service| service.spec.clone());
                (now.as_ref() != Some(spec)).then_some(command)
            }
            (Self::Overshoots, Command::WriteService { service, spec, .. }) => {
                let now = swarm.services.get(service).map_or(0, crate::swarm_model::ModelService::replicas);
                let replicas = spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0);
                if replicas > now {
                    spec["Mode"]["Replicated"]["Replicas"] = json!(replicas + 5);
                }
                Some(command)
            }
            (Self::WritesWithoutLease, Command::WriteService { service, .. }) => {
                let name = action_name(service);
                swarm.configs.retain(|_, config| config.name != name);
                Some(command)
            }
            (Self::KeepsLease, Command::UpdateRecord { labels, .. })
                if labels["swarmguard.state"] == "over" =>
            {
                None
            }
            (Self::NeverDrains, Command::WriteNode { spec, .. }) if spec["Availability"] == "drain" => None,
            (Self::NeverResumes, Command::ResumeBalancers { .. }) => None,
            (Self::NeverResumes, Command::DrainBalancers { tasks, .. }) => {
                // Another replica dies just then, so that this one must stay: rare without help.
                let of = |task: &TaskId| Some(swarm.tasks.get(task)?.service.clone());
                let service = tasks.first().and_then(of);
                let other = service.and_then(|service| {
                    let mut others = swarm.serving(&service).filter(|task| !tasks.contains(&task.id));
                    others.next().map(|task| task.id.clone())
                });
                if let Some(other) = other {
                    swarm.kill_task(&other);
                }
                Some(command)
            }
            _ => Some(command),
        }
    }

    /// What an agent takes for the value of a condition that it has raised, the threshold being `high`.
    pub(super) fn of_raised(self, value: BasisPoints, high: BasisPoints) -> BasisPoints {
        if self == Self::NeverClears { value.max(high) } else { value }
    }

    /// Labels that services get besides the scenario's.
    pub(super) fn labels(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Hasty => vec![
                ("swarmguard.cooldown", "0s"),
                ("swarmguard.scale.up.cooldown", "0s"),
                ("swarmguard.act-after", "0s"),
            ],
            Self::Idle => vec![("swarmguard.observe", "true")],
            _ => Vec::new(),
        }
    }
}

fn is_marked(spec: &Value) -> bool {
    spec["TaskTemplate"]["Placement"]["Platforms"][0]["OS"] == "none"
}
