//! The durable state of an action as a Swarm config object: labels say where it stands, the immutable data says what
//! was there before.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};

use crate::{
    command::Command,
    swarm::{Availability, RecordObject},
};

const ACTION_PREFIX: &str = "swarmguard-act-";
const NODE_PREFIX: &str = "swarmguard-node-";
const DRAIN_PREFIX: &str = "swarmguard-drain-";
/// Prefix of every label in a record.
const LABEL: &str = "swarmguard.";
/// Longest text kept in a label, in bytes.
const MAX_TEXT_BYTES: usize = 200;

/// Name of the record that is the right to change a service.
pub fn action_name(service: &ServiceId) -> String {
    format!("{ACTION_PREFIX}{service}")
}

/// Name of the record that is the right to change a node's availability.
pub fn node_name(node: &NodeId) -> String {
    format!("{NODE_PREFIX}{node}")
}

/// Name of the record of a drain.
pub fn drain_name(node: &NodeId) -> String {
    format!("{DRAIN_PREFIX}{node}")
}

/// Whether a config object of this name is one of our records.
pub fn is_record(name: &str) -> bool {
    [ACTION_PREFIX, NODE_PREFIX, DRAIN_PREFIX].iter().any(|prefix| name.starts_with(prefix))
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Its word in labels.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words!(
    /// What a record is about.
    Kind {
        /// One replica leaves a node.
        Migrate = "migrate",
        /// More replicas.
        ScaleOut = "scale_out",
        /// A chosen node's replica fewer.
        ScaleIn = "scale_in",
        /// All services leave a node.
        Drain = "drain",
        /// The lease on a node's availability.
        Node = "node",
    }
);

words!(
    /// How far an action is: the phase that may have begun. What Swarm shows says whether it did.
    State {
        /// The lease is taken, nothing is written.
        Leased = "leased",
        /// More replicas are being asked for and started.
        Surging = "surging",
        /// The successors were seen running and healthy, and are to stay so.
        Settling = "settling",
        /// The replica that goes is being marked.
        Marking = "marking",
        /// The balancers are told which goes.
        Draining = "draining",
        /// Replicas and placement are being written back in one.
        Removing = "removing",
        /// The identical write that makes `PreviousSpec` true.
        Closing = "closing",
        /// The node gets its availability back.
        Releasing = "releasing",
        /// Everything of ours is taken back.
        Undoing = "undoing",
        /// A drain moves services, one after another.
        Moving = "moving",
        /// Over: a tombstone that keeps the cooldown.
        Over = "over",
    }
);

/// A record of ours that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "record {name}: {what}: leave it to the version that wrote it, or remove it by hand once the service is looked after"
)]
pub struct RecordError {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub what: String,
}

/// A task that was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskBefore {
    /// Its ID.
    pub id: TaskId,
    /// Number of the replica.
    pub slot: u64,
    /// Where.
    pub node: NodeId,
}

/// What was there before the action, and what it is about: the immutable data of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Before {
    /// The service's version when the lease was taken.
    pub version: u64,
    /// The service's whole spec; `null` where the record is not about a service.
    pub spec: Value,
    /// The `PreviousSpec` that the operator left, where there was one.
    pub previous_spec: Option<Value>,
    /// Replicas.
    pub replicas: u64,
    /// Most replicas while it runs.
    pub peak: u64,
    /// Replicas afterwards.
    pub after: u64,
    /// Its wanted tasks.
    pub tasks: Vec<TaskBefore>,
    /// Nodes that the successor is kept off by constraint, besides the paused source.
    pub steer_off: Vec<NodeId>,
    /// The node's availability; only in a node lease.
    pub availability: Option<Availability>,
    /// Why, for people.
    pub reason: String,
}

/// A record as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// ID of the config.
    pub id: String,
    /// Version of the config.
    pub version: u64,
    /// Name of the config.
    pub name: String,
    /// What it is about.
    pub kind: Kind,
    /// How far it is.
    pub state: State,
    /// Who acts.
    pub holder: String,
    /// Name of the action; in a node lease that of the action it serves.
    pub token: String,
    /// Service, where it is about one.
    pub service: Option<ServiceId>,
    /// Source node, where there is one.
    pub source: Option<NodeId>,
    /// Wished or real node of the successor.
    pub target: Option<NodeId>,
    /// The replica that goes, once it is known.
    pub victim: Option<TaskId>,
    /// Why it was undone, as code and sentence.
    pub undone: Option<(String, String)>,
    /// How often a new holder took it over.
    pub takeovers: u32,
    /// Replicas that are still to leave, as last seen; only in a drain. That it falls is progress.
    pub left: Option<u64>,
    /// How long the tombstone stays.
    pub cooldown: Duration,
    /// What was before.
    pub before: Before,
    data: Vec<u8>,
}

impl Record {
    /// A record that does not exist yet; [`Self::create`] makes it.
    pub(super) fn new(name: String, kind: Kind, order: &super::Order, before: Before) -> Self {
        Self {
            id: String::new(),
            version: 0,
            name,
            kind,
            state: State::Leased,
            holder: order.holder.clone(),
            token: order.token.clone(),
            service: order.intent.service().cloned(),
            source: None,
            target: None,
            victim: None,
            undone: None,
            takeovers: 0,
            left: None,
            cooldown: order.cooldown,
            data: serde_json::to_vec(&before).unwrap_or_default(),
            before,
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When a label is missing or unknown, or the data is not ours: written by another version, or by hand.
    pub fn parse(object: &RecordObject) -> Result<Self, RecordError> {
        let wrong = |what: String| RecordError { name: object.name.clone(), what };
        let text = |key: &str| object.labels.get(&format!("{LABEL}{key}")).map(String::as_str);
        let need = |key: &str| text(key).ok_or_else(|| wrong(format!("the label {LABEL}{key} is missing")));
        let id = |key: &str| -> Result<Option<NodeId>, RecordError> {
            text(key).map(str::parse).transpose().map_err(|error| wrong(format!("{error}")))
        };
        let number = |key: &str| -> Result<u64, RecordError> {
            text(key).map_or(Ok(0), |value| {
                value.parse().map_err(|_| wrong(format!("the label {LABEL}{key} is {value:?}, not a number")))
            })
        };
        let kind = need("kind")?;
        let state = need("state")?;
        Ok(Self {
            id: object.id.clone(),
            version: object.version,
            name: object.name.clone(),
            kind: Kind::from_word(kind).ok_or_else(|| wrong(format!("unknown kind {kind:?}")))?,
            state: State::from_word(state).ok_or_else(|| wrong(format!("unknown state {state:?}")))?,
            holder: need("holder")?.into(),
            token: need("token")?.into(),
            service: text("service")
                .map(str::parse)
                .transpose()
                .map_err(|error| wrong(format!("{error}")))?,
            source: id("source")?,
            target: id("target")?,
            victim: text("victim").map(str::parse).transpose().map_err(|error| wrong(format!("{error}")))?,
            undone: text("undone").map(|code| (code.into(), text("reason").unwrap_or_default().into())),
            takeovers: u32::try_from(number("takeovers")?).unwrap_or(u32::MAX),
            left: text("left").map(|_| number("left")).transpose()?,
            cooldown: Duration::from_millis(number("cooldown-ms")?),
            before: serde_json::from_slice(&object.data)
                .map_err(|error| wrong(format!("its data is not ours: {error}")))?,
            data: object.data.clone(),
        })
    }

    /// Whether the action is over and only its cooldown is left.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// A record beside this one, for the same action.
    pub(super) fn lease_for(&self, name: String, kind: Kind, state: State, before: Before) -> Self {
        let data = serde_json::to_vec(&before).unwrap_or_default();
        Self { id: String::new(), version: 0, name, kind, state, undone: None, data, before, ..self.clone() }
    }

    /// The action of which only the node lease is left, to be undone.
    pub(super) fn revived(&self, name: String) -> Self {
        let kind = if self.before.after < self.before.replicas { Kind::ScaleIn } else { Kind::Migrate };
        let mut record = self.lease_for(name, kind, State::Undoing, self.before.clone());
        // Which replica the balancers were told goes stood in that record: one there stands for all of them.
        let here = self.before.tasks.iter().find(|task| Some(&task.node) == self.source.as_ref());
        record.victim = here.map(|task| task.id.clone());
        record.undone = Some(("record_lost".into(), "the record was removed by hand in the middle".into()));
        record
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let mut put = |key: &str, value: String| {
            labels.insert(format!("{LABEL}{key}"), value);
        };
        put("kind", self.kind.word().into());
        put("state", self.state.word().into());
        put("holder", self.holder.clone());
        put("token", self.token.clone());
        put("cooldown-ms", self.cooldown.as_millis().to_string());
        put("takeovers", self.takeovers.to_string());
        let optional = [
            ("service", self.service.as_ref().map(ToString::to_string)),
            ("source", self.source.as_ref().map(ToString::to_string)),
            ("target", self.target.as_ref().map(ToString::to_string)),
            ("victim", self.victim.as_ref().map(ToString::to_string)),
            ("left", self.left.map(|left| left.to_string())),
            ("undone", self.undone.as_ref().map(|(code, _)| code.clone())),
            ("reason", self.undone.as_ref().map(|(_, reason)| shortened(reason))),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                put(key, value);
            }
        }
        labels
    }

    pub(super) fn create(&self) -> Command {
        Command::CreateRecord { name: self.name.clone(), labels: self.labels(), data: self.data.clone() }
    }

    pub(super) fn update(&self) -> Command {
        Command::UpdateRecord {
            id: self.id.clone(),
            version: self.version,
            name: self.name.clone(),
            labels: self.labels(),
            data: self.data.clone(),
        }
    }

    pub(super) fn remove(&self) -> Command {
        Command::RemoveRecord { id: self.id.clone() }
    }
}

/// At most [`MAX_TEXT_BYTES`] of a text, cut between characters.
pub(super) fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}
