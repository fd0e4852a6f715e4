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
const PREVIOUS_PREFIX: &str = "swarmguard-prev-";
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

/// Name of the config object that keeps an operator's previous spec.
pub fn previous_name(service: &ServiceId) -> String {
    format!("{PREVIOUS_PREFIX}{service}")
}

/// Whether a config object of this name keeps an operator's previous spec.
pub(super) fn is_previous(name: &str) -> bool {
    name.starts_with(PREVIOUS_PREFIX)
}

/// Whether a config object of this name is one of our records.
pub fn is_record(name: &str) -> bool {
    [ACTION_PREFIX, NODE_PREFIX, DRAIN_PREFIX, PREVIOUS_PREFIX].iter().any(|prefix| name.starts_with(prefix))
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
        /// A service gets the spec back that its operator had before.
        Rollback = "rollback",
        /// All services leave a node.
        Drain = "drain",
        /// The lease on a node's availability.
        Node = "node",
    }
);

words!(
    /// Why an action was undone.
    Why {
        /// Swarm finds no node for the successor.
        NoNode = "no_node",
        /// The successor did not become healthy in time.
        NotHealthy = "not_healthy",
        /// The successor was placed on the node that its predecessor is to leave.
        OnSource = "on_source",
        /// Another replica than the one meant would go, or was touched.
        Collateral = "collateral",
        /// Somebody else changed the service.
        ForeignChange = "foreign_change",
        /// Somebody else set the number of replicas that was set already: theirs stays.
        ScaledByHand = "scaled_by_hand",
        /// Somebody else rolled the service back in the middle.
        RolledBack = "rolled_back",
        /// Not every slot came to have one healthy task.
        NotSettled = "not_settled",
        /// Swarm did not act on the mark.
        NotMarked = "not_marked",
        /// Too few other replicas serve.
        SuccessorLost = "successor_lost",
        /// The engine refused a write for what it says.
        Refused = "refused",
        /// Another action holds the node.
        NodeBusy = "node_busy",
        /// Somebody else set the node's availability: from then on the node is theirs.
        AvailabilityChanged = "availability_changed",
        /// The node left the swarm.
        NodeGone = "node_gone",
        /// The node is down.
        NodeDown = "node_down",
        /// The target fell silent: the reason is that node, not the service.
        TargetLost = "target_lost",
        /// Swarm placed the successor on another node than was meant, which is silent: Swarm would do the same again.
        ElsewhereLost = "elsewhere_lost",
        /// The action's record was removed by hand.
        RecordLost = "record_lost",
        /// The record lacks what its phase needs.
        BadRecord = "bad_record",
        /// The service was removed.
        ServiceGone = "service_gone",
        /// Its coordinators died again and again.
        TooManyTakeovers = "too_many_takeovers",
        /// An operator took it back.
        Cancelled = "cancelled",
        /// A service did not leave a node that was to be drained.
        ServiceStays = "service_stays",
        /// A word that another version wrote.
        Other = "other",
    }
);

impl Why {
    /// The node of the successor fell silent.
    pub fn is_silence(self) -> bool {
        matches!(self, Self::TargetLost | Self::ElsewhereLost)
    }
}

words!(
    /// How far an action is: the phase that may have begun. What Swarm shows says whether it did.
    State {
        /// The lease is taken, nothing is written.
        Leased = "leased",
        /// More replicas are being asked for and started.
        Surging = "surging",
        /// The successor was seen running and healthy; once it has stayed so, the replica that goes is marked.
        Marking = "marking",
        /// It is known which replica goes: the balancers drain it, then replicas and placement are written back in one,
        /// and once more so that `PreviousSpec` is true.
        Draining = "draining",
        /// The final spec is being written, twice, so that `PreviousSpec` is true.
        Closing = "closing",
        /// The node gets its availability back; only in a drain.
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
    /// Nodes that the successor is kept off by constraint, besides the source.
    pub steer_off: Vec<NodeId>,
    /// Swarm could place the successor on the source: that one is paused until the successor has a node.
    #[serde(default)]
    pub pauses: bool,
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
    pub undone: Option<(Why, String)>,
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
            state: known_state(state).ok_or_else(|| wrong(format!("unknown state {state:?}")))?,
            holder: need("holder")?.into(),
            token: need("token")?.into(),
            service: text("service")
                .map(str::parse)
                .transpose()
                .map_err(|error| wrong(format!("{error}")))?,
            source: id("source")?,
            target: id("target")?,
            victim: text("victim").map(str::parse).transpose().map_err(|error| wrong(format!("{error}")))?,
            undone: text("undone").map(|word| {
                (Why::from_word(word).unwrap_or(Why::Other), text("reason").unwrap_or_default().into())
            }),
            takeovers: u32::try_from(number("takeovers")?).unwrap_or(u32::MAX),
            left: text("left").map(|_| number("left")).transpose()?,
            cooldown: Duration::from_millis(number("cooldown-ms")?),
            before: serde_json::from_slice(&object.data)
                .map_err(|error| wrong(format!("its data is not ours: {error}")))?,
            data: object.data.clone(),
        })
    }

    /// Whether it is being undone already, or past the point where going on is the quickest way to leave nothing behind.
    pub fn is_late(&self) -> bool {
        self.state >= State::Closing && self.state != State::Moving
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
        record.undone = Some((Why::RecordLost, "the record was removed by hand in the middle".into()));
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
            ("undone", self.undone.as_ref().map(|(why, _)| why.word().into())),
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

/// States of earlier versions live on in the phase that took them over.
fn known_state(word: &str) -> Option<State> {
    match word {
        "settling" => Some(State::Marking),
        "removing" => Some(State::Draining),
        word => State::from_word(word),
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
