//! What goes into the brain, and what comes out of it besides commands and journal entries.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
pub use swarmguard_common::api::Accepted;
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    labels::Thresholds,
};

use crate::{
    action::Tuning,
    agents::AgentInput,
    command::{CommandId, CommandResult},
    swarm::Snapshot,
};

/// How a brain is set up; constant for its life.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who acts: node ID and something that is new at every start, for instance `<node ID>.<start, ms since 1970>`.
    pub holder: String,
    /// Decide and explain, change nothing (`--observe`). Operators can also switch this on in Swarm, for all at once.
    pub observe: bool,
    /// Most actions under way in the cluster; at least 1.
    pub max_actions: usize,
    /// Most actions under way that leave the same node; at least 1.
    pub max_actions_per_node: usize,
    /// Thresholds for services whose labels say nothing.
    pub thresholds: Thresholds,
    /// Deadlines of actions.
    pub tuning: Tuning,
}

impl Settings {
    /// Defaults for a holder.
    pub fn new(holder: impl Into<String>) -> Self {
        Self {
            holder: holder.into(),
            observe: false,
            max_actions: 2,
            max_actions_per_node: 1,
            thresholds: Thresholds::default(),
            tuning: Tuning::default(),
        }
    }
}

/// Something happened. Any input may come at any time and as often as it likes; one that says nothing new is passed by.
#[derive(Clone, Debug)]
pub enum Input {
    /// A reading of Swarm. One that was begun earlier than the newest is dropped.
    Snapshot(Arc<Snapshot>),
    /// An agent spoke, came or went.
    Agent(AgentInput),
    /// How a command ended.
    Answer {
        /// Which, as from `poll_command`.
        id: CommandId,
        /// How.
        result: CommandResult,
    },
    /// Replicas that balancers got answers from, all that they know now: what was said before holds no longer.
    Answering(BTreeSet<TaskId>),
    /// Time passed: the deadline from `poll_timeout` is here.
    Tick,
}

/// What an operator asks for. Durable where it must outlive a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum OperatorCommand {
    /// Move one replica of a service. Cooldowns and thresholds do not hold, everything that protects data does.
    Migrate {
        /// Which service.
        service: ServiceId,
        /// The node to leave; needed where replicas run on several.
        #[serde(default)]
        source: Option<NodeId>,
        /// The node to go to; the one with most room where absent.
        #[serde(default)]
        target: Option<NodeId>,
    },
    /// Set the number of replicas; down goes one at a time.
    Scale {
        /// Which service.
        service: ServiceId,
        /// How many there shall be, at least 1 and within its bounds where it has some.
        replicas: u64,
        /// Scaling in: the node whose replica goes. Scaling out: where the new one is to run.
        #[serde(default)]
        node: Option<NodeId>,
    },
    /// The service gets the spec back that its operator had before, as `docker service rollback` does where no action of
    /// ours came in between.
    Rollback {
        /// Which service.
        service: ServiceId,
    },
    /// All replicated services leave the node, start first; then it is set to `drain`.
    Drain {
        /// Which node.
        node: NodeId,
    },
    /// Takes back what is under way: of a service, of all that leave a node, or one action. Exactly one of the three is
    /// named. Past the point where going on is the quickest way to leave nothing behind, it is not taken.
    Cancel {
        /// The service whose action is undone; steps of a scale-in that are still to come are forgotten.
        #[serde(default)]
        service: Option<ServiceId>,
        /// The node whose drain, and all other actions that leave it, are undone.
        #[serde(default)]
        node: Option<NodeId>,
        /// The token of the action, as the journal and the answer to its command have it.
        #[serde(default)]
        action: Option<String>,
    },
    /// No automation for one service, or for all; what is under way is finished.
    Pause {
        /// Which service; all where absent.
        #[serde(default)]
        service: Option<ServiceId>,
    },
    /// Takes a pause back.
    Resume {
        /// Which service; the pause of all where absent (pauses of single services stay).
        #[serde(default)]
        service: Option<ServiceId>,
    },
    /// Decide and explain without changing anything, or act again.
    Observe {
        /// On or off. Off has no effect against `--observe`.
        on: bool,
    },
}

/// An operator's command was not taken; nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{text}: {otherwise}")]
pub struct NotTaken {
    /// A stable word, for instance `not_leader`, `unknown_service`, `action_running`, `local_volumes`.
    pub code: String,
    /// One sentence.
    pub text: String,
    /// What would change it.
    pub otherwise: String,
}

/// How eagerly the next snapshot is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// The usual rhythm, about a second.
    Usual,
    /// An action is under way: this long after the last one began, at the latest.
    Within(Duration),
    /// At once: a command of an action was answered, and its next step waits for what Swarm shows.
    Now,
}
