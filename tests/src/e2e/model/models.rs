//! The model's side: not one swarm but a crowd of them, because Swarm itself throws dice.
//!
//! Which of two equal nodes gets a task and which of two equal slots goes is chance. So as many models as there are
//! seeds play each step; a real engine is right if it did what some of them did. Those that did otherwise are dropped,
//! the others are multiplied to as many again: what the engine does later is compared with models that are where it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use swarmguard_common::domain::{NodeId, ServiceId};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    swarm::UpdateState,
};

use super::picture::{Painter, Picture, Raw};
use super::script::{Answer, Call, Cast, Fields, Until, fill, set};
use crate::swarm_model::{SwarmModel, TICK_MS, Workload};

/// How long a picture must stand on the model: longer than everything that it does by itself.
const QUIET: Duration = Duration::from_secs(3);
/// The same where a node falls silent and nothing is to come of it.
const LONG_QUIET: Duration = Duration::from_secs(20);
/// Longest that a model may take to settle.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct One {
    model: SwarmModel,
    service: Option<ServiceId>,
    version: u64,
    configs: BTreeMap<&'static str, u64>,
    painter: Painter,
}

/// The crowd.
#[derive(Clone)]
pub struct Models {
    all: Vec<One>,
    size: usize,
    rng: fastrand::Rng,
}

/// What the crowd did in a step.
pub struct Played {
    /// The answers, without repetition.
    pub answers: Vec<Answer>,
    /// Each outcome with the number of models that came to it.
    pub outcomes: BTreeMap<Picture, usize>,
    /// Some model had not settled after two minutes of its time.
    pub restless: Option<Picture>,
}

impl Models {
    /// So many swarms of one manager and two workers.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let one = |seed| One {
            model: SwarmModel::new(seed, 1, 2),
            service: None,
            version: 0,
            configs: BTreeMap::new(),
            painter: Painter::default(),
        };
        let all = (0..size).map(|_| one(rng.u64(..))).collect();
        Models { all, size, rng }
    }

    /// Plays one call on all of them.
    pub fn play(&mut self, call: &Call, cast: &Cast, until: Until) -> Played {
        let mut played = Played { answers: Vec::new(), outcomes: BTreeMap::new(), restless: None };
        for one in &mut self.all {
            // Before the call: what it changes at once is a change, too.
            one.painter.begin();
            one.paint();
            let answer = one.call(call, cast);
            if !played.answers.contains(&answer) {
                played.answers.push(answer);
            }
            if !call.moves_tasks() {
                continue;
            }
            match one.settle(until) {
                Some(picture) => *played.outcomes.entry(picture).or_default() += 1,
                None => played.restless = Some(one.painter.last()),
            }
        }
        played
    }

    /// Goes on with those that came to this outcome alone.
    pub fn follow(&mut self, picture: &Picture) {
        let kept: Vec<One> = self.all.drain(..).filter(|one| one.painter.last() == *picture).collect();
        for like in kept.iter().cycle().take(if kept.is_empty() { 0 } else { self.size }) {
            let mut one = like.clone();
            one.model = like.model.fork(self.rng.u64(..));
            self.all.push(one);
        }
    }
}

impl One {
    fn call(&mut self, call: &Call, cast: &Cast) -> Answer {
        match self.carry_out(call, cast) {
            Ok(()) => Answer::Done,
            Err(CommandError::Conflict(_)) => Answer::Conflict,
            Err(_) => Answer::Refused,
        }
    }

    fn carry_out(&mut self, call: &Call, cast: &Cast) -> CommandResult {
        let missing = || CommandError::Gone("no such thing in this script".into());
        let node = |role: &str| node_id(cast.get(role)?);
        match call {
            Call::Create(fields) => {
                let mut spec = json!({});
                set(&mut spec, &filled(fields, cast));
                let service = self.model.create_service_of(spec.clone(), workload(&spec));
                self.version = self.model.services[&service].version;
                self.service = Some(service);
                Ok(())
            }
            Call::Write(fields) | Call::WriteStale(fields) => {
                let service = self.service.clone().ok_or_else(missing)?;
                let found = &self.model.services[&service];
                let stale = matches!(call, Call::WriteStale(_));
                let version = if stale { self.version } else { found.version };
                let mut spec = found.spec.clone();
                set(&mut spec, &filled(fields, cast));
                self.model.execute(&Command::WriteService { service, version, spec })
            }
            Call::Node(role, fields) => {
                let node = node(role).ok_or_else(missing)?;
                self.model.operator_node(&node, |spec| set(spec, fields))
            }
            Call::Crash(role) => {
                let node = node(role).ok_or_else(missing)?;
                let service = self.service.clone().ok_or_else(missing)?;
                let task = self.model.serving(&service).find(|task| task.node.as_ref() == Some(&node));
                let task = task.map(|task| task.id.clone()).ok_or_else(missing)?;
                self.model.kill_task(&task);
                Ok(())
            }
            Call::Config(name) => {
                let data = b"data".to_vec();
                self.model.execute(&Command::CreateRecord {
                    name: (*name).to_owned(),
                    labels: BTreeMap::new(),
                    data,
                })?;
                let made = self.model.configs.values().find(|config| config.name == *name);
                self.configs.extend(made.map(|config| (*name, config.version)));
                Ok(())
            }
            Call::Label { name, stale } => {
                let config = self.model.configs.values().find(|config| config.name == *name);
                let config = config.ok_or_else(missing)?;
                let made = self.configs.get(name).copied().unwrap_or_default();
                let labels = BTreeMap::from([("state".to_owned(), "next".to_owned())]);
                let version = if *stale { made } else { config.version };
                let (id, name, data) = (config.id.clone(), config.name.clone(), config.data.clone());
                self.model.execute(&Command::UpdateRecord { id, version, name, labels, data })
            }
            Call::PowerCut(role) => {
                self.model.power_cut(&node(role).ok_or_else(missing)?);
                self.painter.power(&cast[role], false);
                Ok(())
            }
            Call::PowerOn(role) => {
                self.model.power_on(&node(role).ok_or_else(missing)?);
                self.painter.power(&cast[role], true);
                Ok(())
            }
        }
    }

    fn settle(&mut self, until: Until) -> Option<Picture> {
        let quiet = if until == Until::LongRest { LONG_QUIET } else { QUIET };
        let end = self.model.now + LIMIT;
        while self.model.now < end {
            self.paint();
            if let Some(picture) = self.painter.settled(until, quiet, self.model.now) {
                return Some(picture.clone());
            }
            let next = self.model.now + Duration::from_millis(TICK_MS);
            self.model.advance(next);
        }
        None
    }

    fn paint(&mut self) {
        let Some(service) = &self.service else { return };
        let tasks = self.model.tasks.values().filter(|task| task.service == *service);
        let raw = tasks.map(|task| Raw {
            id: task.id.to_string(),
            slot: task.slot,
            created: format!("{:020}", task.number),
            node: task.node.as_ref().map(|node| self.model.hostname(node)),
            desired: task.desired,
            state: task.state,
        });
        let update =
            self.model.services[service].update_state.map(UpdateState::word).unwrap_or_default().into();
        self.painter.paint(raw.collect(), update, self.model.now);
    }
}

/// Containers that are healthy after their first check, as the engine's are; those with a command of their own do
/// something short instead of serving.
fn workload(spec: &Value) -> Workload {
    let container = &spec["TaskTemplate"]["ContainerSpec"];
    let interval = container["Healthcheck"]["Interval"].as_u64().unwrap_or(0);
    let runs_ms = (!container["Command"].is_null()).then_some(100);
    Workload { healthy_ms: interval / 1_000_000, runs_ms, ..Workload::default() }
}

fn node_id(name: &str) -> Option<NodeId> {
    name.strip_prefix("node")?.parse().ok().map(SwarmModel::node_id)
}

/// Fields with the model's IDs of the nodes in the cast.
fn filled(fields: &Fields, cast: &Cast) -> Fields {
    fill(fields, cast, |name| node_id(name).map(|id| id.to_string()))
}
