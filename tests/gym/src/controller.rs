//! What decides in a run: SwarmGuard's brain, another project's rule, or nobody. And what is noted of its actions.

use std::collections::BTreeMap;

use swarmguard_tests::swarm_model::SwarmModel;

use crate::{Time, machines::Machines, scenario::What};

/// What a controller sees and does in a step.
pub struct Stage<'a> {
    /// Now.
    pub now: Time,
    /// Swarm, to be read and written.
    pub swarm: &'a mut SwarmModel,
    /// What runs.
    pub machines: &'a Machines,
    /// Which nodes have power.
    pub up: &'a [bool],
    /// Whether the machines have just gone a step on, so that there is something new to measure.
    pub measured: bool,
    /// What is done is noted here.
    pub acts: &'a mut Acts,
}

/// Decides.
pub trait Controller {
    /// One step of time.
    fn step(&mut self, stage: &mut Stage<'_>);

    /// Something happened that concerns the controller itself.
    fn happens(&mut self, _what: &What, _now: Time) {}
}

/// Does nothing.
pub struct Nothing;

impl Controller for Nothing {
    fn step(&mut self, _stage: &mut Stage<'_>) {}
}

/// What an action is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A replica goes to another node.
    Move,
    /// A replica goes to a node that came back, because the service's labels ask for it.
    Rebalance,
    /// A replica is replaced by a fresh one, wherever it goes.
    Replace,
    /// More replicas.
    Out,
    /// Fewer.
    In,
}

impl Kind {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Rebalance => "rebalance",
            Self::Replace => "replace",
            Self::Out => "scale out",
            Self::In => "scale in",
        }
    }
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As it was meant.
    Done,
    /// It was taken back.
    Undone,
}

/// One action.
#[derive(Clone, Debug)]
pub struct Act {
    /// What.
    pub kind: Kind,
    /// Of which service, by index.
    pub service: usize,
    /// The node that a replica leaves.
    pub source: Option<usize>,
    /// The node that one comes to.
    pub target: Option<usize>,
    /// Replicas before.
    pub from: u64,
    /// Replicas that were meant.
    pub to: u64,
    /// Asked for by an operator of the scenario: not the controller's own idea.
    pub asked: bool,
    /// Its reason.
    pub text: String,
    /// When it was decided.
    pub begun: Time,
    /// When and how it ended.
    pub ended: Option<(Time, End)>,
    /// Whether it helped; `None` until that is known.
    pub helped: Option<bool>,
    /// Why it is thought to have helped or not.
    pub judged: String,
}

/// All actions of a run.
#[derive(Clone, Debug, Default)]
pub struct Acts {
    /// By time.
    pub all: Vec<Act>,
    by_token: BTreeMap<String, usize>,
    /// Refusals and the like, for people: when and what.
    pub said: Vec<(Time, String)>,
}

/// Most lines that are kept of what was said.
const MOST_SAID: usize = 20_000;

impl Acts {
    /// An action begins.
    pub fn begin(&mut self, act: Act) -> usize {
        self.all.push(act);
        self.all.len() - 1
    }

    /// One that is known by a token begins.
    pub fn begin_token(&mut self, token: &str, act: Act) {
        if !self.by_token.contains_key(token) {
            let index = self.begin(act);
            self.by_token.insert(token.into(), index);
        }
    }

    /// An action that is known by a token.
    pub fn of_token(&mut self, token: &str) -> Option<&mut Act> {
        self.by_token.get(token).and_then(|index| self.all.get_mut(*index))
    }

    /// Keeps a line for people.
    pub fn say(&mut self, now: Time, text: String) {
        if self.said.len() < MOST_SAID {
            self.said.push((now, text));
        }
    }
}
