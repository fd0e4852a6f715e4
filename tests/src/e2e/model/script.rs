//! The language of the scripts: what is done to a swarm, and what must come of it whoever plays it.
//!
//! Data rather than code, so that the model and a real engine are told the very same. A script names nodes by what they
//! are to it: `{source}` in a spec or a step stands for the node that an earlier [`Step::Cast`] chose.

use std::collections::BTreeMap;

use serde_json::Value;

/// Fields of a spec: JSON pointers and what stands there. Missing objects on their way are made.
pub type Fields = Vec<(&'static str, Value)>;

/// Which node, by its host name, plays which role.
pub type Cast = BTreeMap<&'static str, String>;

/// One scenario.
pub struct Script {
    /// Its name.
    pub name: &'static str,
    /// What swarm-facts it is about, for people.
    pub about: &'static str,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

impl Script {
    /// Whether a node loses its power in it.
    pub fn needs_power(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Call { call, .. } if call.is_power()))
    }
}

/// One thing done. After each that may move tasks both sides are left alone for a while, and compared.
#[derive(Clone, Debug)]
pub enum Step {
    /// Names a node.
    Cast {
        /// What later steps call it, in braces.
        role: &'static str,
        /// Which.
        pick: Pick,
    },
    /// A call, the answer that it must get, and what must come of it.
    Call {
        /// What is called.
        call: Call,
        /// What the engine says to it.
        answer: Answer,
        /// When the two sides are compared.
        until: Until,
        /// What must hold afterwards, on both sides.
        then: Vec<Then>,
    },
}

/// When a step is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nothing moves any more.
    Rest,
    /// Nothing moves any more after something did.
    Changed,
    /// Nothing moves for longer than Swarm takes to give a node up for lost.
    LongRest,
    /// A task that was given a node is on its way to run.
    Started,
}

/// How a script finds a node.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// Of those with most replicas, the first by name.
    Fullest,
    /// Of those with fewest replicas (none, too), the first by name.
    Emptiest,
    /// The node of the youngest wanted task that has one.
    Youngest,
}

/// One call. Nodes are named by their roles.
#[derive(Clone, Debug)]
pub enum Call {
    /// Makes the service.
    Create(Fields),
    /// Writes the service's spec with these fields set.
    Write(Fields),
    /// The same under the version that the service had when it was made.
    WriteStale(Fields),
    /// Writes a node's spec with these fields set.
    Node(&'static str, Fields),
    /// Ends the container of the one running task on a node, as a crash would.
    Crash(&'static str),
    /// Makes a config object.
    Config(&'static str),
    /// Replaces the labels of a config object under the version it has, or under the one it had when it was made.
    Label {
        /// The config's name.
        name: &'static str,
        /// Under the version that it had when it was made.
        stale: bool,
    },
    /// A node loses its power.
    PowerCut(&'static str),
    /// It comes back.
    PowerOn(&'static str),
}

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The object changed since, or the name is taken.
    Conflict,
    /// Refused otherwise.
    Refused,
}

/// What must hold after a step.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// So many tasks that served are wanted no longer, all of them on this node ...
    Died(usize, &'static str),
    /// ... or anywhere.
    DiedAnywhere(usize),
    /// So many slots have two wanted tasks.
    Doubled(usize),
    /// So many wanted tasks have no node.
    Waiting(usize),
    /// The service never had fewer serving replicas than this while the step lasted.
    NeverBelow(usize),
    /// It fell to so many at least once.
    FellTo(usize),
    /// So many wanted tasks are on this node in the end.
    On(usize, &'static str),
    /// `UpdateStatus.State`.
    Update(&'static str),
}

impl Call {
    /// Whether tasks may move for it.
    pub fn moves_tasks(&self) -> bool {
        !matches!(self, Call::Config(_) | Call::Label { .. })
    }

    /// Whether it is not Swarm that is called, but whoever made the nodes.
    pub fn is_power(&self) -> bool {
        matches!(self, Call::PowerCut(_) | Call::PowerOn(_))
    }
}

/// Sets these fields of a spec.
pub fn set(spec: &mut Value, fields: &Fields) {
    for (pointer, value) in fields {
        let mut place = &mut *spec;
        for key in pointer.trim_start_matches('/').split('/') {
            if !place.is_object() {
                *place = Value::Object(serde_json::Map::new());
            }
            place = &mut place[key];
        }
        place.clone_from(value);
    }
}

/// Puts what `id` makes of a node's host name for each `{role}` of the cast.
pub fn fill(fields: &Fields, cast: &Cast, id: impl Fn(&str) -> Option<String>) -> Fields {
    let mut fields = fields.clone();
    for (role, name) in cast {
        let Some(id) = id(name) else { continue };
        fields.iter_mut().for_each(|(_, value)| replace(value, &format!("{{{role}}}"), &id));
    }
    fields
}

/// Replaces every text `from` within the strings of a value.
fn replace(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text.contains(from) => *text = text.replace(from, to),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, from, to)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_set_where_nothing_was_and_names_are_filled_in() {
        let mut spec = json!({"Mode": {"Replicated": {"Replicas": 1}}, "UpdateConfig": null});
        let fields = vec![
            ("/Mode/Replicated/Replicas", json!(2)),
            ("/UpdateConfig/Order", json!("start-first")),
            ("/TaskTemplate/Placement/Constraints", json!(["node.id!={source}"])),
        ];
        let cast = Cast::from([("source", "node1".to_owned())]);
        set(&mut spec, &fill(&fields, &cast, |name| Some(name.replace("node", "n"))));
        let meant = json!({
            "Mode": {"Replicated": {"Replicas": 2}},
            "UpdateConfig": {"Order": "start-first"},
            "TaskTemplate": {"Placement": {"Constraints": ["node.id!=n1"]}},
        });
        assert_eq!(spec, meant);
    }
}
