//! Edits of service and node specs as raw JSON: only what is meant changes, whatever else is in there stays.
//!
//! Comparison is by meaning: the engine drops empty objects, lists and nulls when it stores a spec, so absent, `null`
//! and `{}` are the same (`Placement: null` is never *sent*: it panics managers up to 29.6).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use swarmguard_common::domain::NodeId;

use crate::swarm::Availability;

/// The operating system that no node has.
const NOWHERE: &str = "none";

/// Numbers of `UpdateConfig` and `RollbackConfig` that the engine adds as 0 where they were not sent. `Parallelism` is
/// none of them: 0 means unlimited there.
const ZERO_IS_ABSENT: [&str; 3] = ["Delay", "MaxFailureRatio", "Monitor"];

/// The spec without what means nothing: nulls, empty objects and empty lists at any depth, and zeros that the engine
/// adds to update settings.
pub fn normalised(spec: &Value) -> Value {
    match spec {
        Value::Object(fields) => {
            let settings = |key: &str| matches!(key, "UpdateConfig" | "RollbackConfig");
            let kept: Map<String, Value> = fields
                .iter()
                .map(|(key, value)| {
                    let value = normalised(value);
                    (key.clone(), if settings(key) { without_zeros(value) } else { value })
                })
                .filter(|(_, value)| !is_nothing(value))
                .collect();
            Value::Object(kept)
        }
        // Items of a list keep their places: an empty argument is an argument.
        Value::Array(items) => Value::Array(items.iter().map(normalised).collect()),
        other => other.clone(),
    }
}

fn without_zeros(mut settings: Value) -> Value {
    if let Some(fields) = settings.as_object_mut() {
        fields.retain(|key, value| !(ZERO_IS_ABSENT.contains(&key.as_str()) && value.as_f64() == Some(0.0)));
    }
    settings
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether two specs mean the same.
pub fn same(a: &Value, b: &Value) -> bool {
    a == b || normalised(a) == normalised(b)
}

/// Where two specs differ, as paths two levels deep, at most eight.
pub fn differences(a: &Value, b: &Value) -> Vec<String> {
    const MOST: usize = 8;
    let (a, b) = (normalised(a), normalised(b));
    let mut paths = Vec::new();
    for key in keys(&a, &b) {
        let (left, right) = (&a[key.as_str()], &b[key.as_str()]);
        if left == right {
            continue;
        }
        if left.is_object() && right.is_object() {
            let deeper =
                keys(left, right).into_iter().filter(|inner| left[inner.as_str()] != right[inner.as_str()]);
            paths.extend(deeper.map(|inner| format!("{key}.{inner}")));
        } else {
            paths.push(key);
        }
    }
    paths.truncate(MOST);
    paths
}

fn keys(a: &Value, b: &Value) -> BTreeSet<String> {
    [a, b].into_iter().filter_map(Value::as_object).flat_map(|fields| fields.keys().cloned()).collect()
}

/// First 16 hexadecimal digits of SHA-256 over the normalised spec: equal for specs that mean the same.
pub fn fingerprint(spec: &Value) -> String {
    // serde_json's maps are sorted by key, so equal values have equal texts.
    let digest = Sha256::digest(normalised(spec).to_string().as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// `Mode.Replicated.Replicas`; `None` for other modes. Swarm takes an absent number for 1.
pub fn replicas(spec: &Value) -> Option<u64> {
    let replicated = spec.pointer("/Mode/Replicated")?.as_object()?;
    Some(replicated.get("Replicas").and_then(Value::as_u64).unwrap_or(1))
}

/// The spec with this many replicas; unchanged where it is not replicated.
pub fn with_replicas(mut spec: Value, count: u64) -> Value {
    if let Some(Value::Object(replicated)) = spec.pointer_mut("/Mode/Replicated") {
        replicated.insert("Replicas".into(), count.into());
    }
    spec
}

/// `TaskTemplate.Placement`; an empty object where there is none.
pub fn placement(spec: &Value) -> Value {
    match spec.pointer("/TaskTemplate/Placement") {
        Some(Value::Object(fields)) => Value::Object(fields.clone()),
        _ => json!({}),
    }
}

/// `Placement.Constraints`, as they stand.
pub fn constraints(spec: &Value) -> Vec<String> {
    let list = spec.pointer("/TaskTemplate/Placement/Constraints").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
}

/// The constraint that keeps tasks off a node.
pub fn off(node: &NodeId) -> String {
    format!("node.id!={node}")
}

/// The spec with a placement that keeps new tasks off these nodes, and an updater that does no harm should any task
/// turn out dirty: one at a time, start first, stop at a failure.
pub fn steered(spec: Value, off_nodes: &[NodeId]) -> Value {
    let mut spec = careful(spec);
    edit_placement(&mut spec, |placement| {
        for node in off_nodes {
            add_constraint(placement, &off(node));
        }
    });
    spec
}

/// The spec with the mark: tasks on this node no longer fit, and no node takes their successors, so that exactly one
/// slot gets a twin that waits for ever. Swarm removes that slot first.
pub fn marked(spec: Value, node: &NodeId) -> Value {
    let mut spec = frozen(spec);
    edit_placement(&mut spec, |placement| add_constraint(placement, &off(node)));
    spec
}

/// The spec with platforms that no node has: what runs stays, nothing new finds a node.
pub fn frozen(spec: Value) -> Value {
    let mut spec = careful(spec);
    edit_placement(&mut spec, |placement| {
        placement.insert("Platforms".into(), json!([{ "Architecture": NOWHERE, "OS": NOWHERE }]));
    });
    spec
}

/// Whether the platforms of a spec are those of [`marked`].
pub fn is_marked(spec: &Value) -> bool {
    let list = spec.pointer("/TaskTemplate/Placement/Platforms").and_then(Value::as_array);
    list.is_some_and(|list| list.len() == 1 && list[0].get("OS").and_then(Value::as_str) == Some(NOWHERE))
}

/// What [`careful`] sets in `UpdateConfig`.
const CAREFUL: [(&str, CarefulValue); 3] = [
    ("Parallelism", CarefulValue::One),
    ("Order", CarefulValue::Text("start-first")),
    ("FailureAction", CarefulValue::Text("pause")),
];

enum CarefulValue {
    One,
    Text(&'static str),
}

impl CarefulValue {
    fn json(&self) -> Value {
        match self {
            Self::One => 1.into(),
            Self::Text(text) => (*text).into(),
        }
    }
}

fn careful(mut spec: Value) -> Value {
    if let Some(config) = object_in(&mut spec, "UpdateConfig") {
        for (key, value) in &CAREFUL {
            config.insert((*key).into(), value.json());
        }
    }
    spec
}

/// Edits `TaskTemplate.Placement`, which is made an object where it is none.
fn edit_placement(spec: &mut Value, edit: impl FnOnce(&mut Map<String, Value>)) {
    object_in(spec, "TaskTemplate");
    if let Some(template) = spec.get_mut("TaskTemplate")
        && let Some(placement) = object_in(template, "Placement")
    {
        edit(placement);
    }
}

/// A field that is to be an object; made one where it is absent or anything else.
fn object_in<'a>(parent: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let child = parent.as_object_mut()?.entry(key).or_insert_with(|| json!({}));
    if !child.is_object() {
        *child = json!({});
    }
    child.as_object_mut()
}

fn add_constraint(placement: &mut Map<String, Value>, constraint: &str) {
    let list = placement.entry("Constraints").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|item| item.as_str() == Some(constraint))
    {
        list.push(constraint.into());
    }
}

/// `spec` made fit to be sent: `Placement` is an object, never `null` or absent.
pub fn sendable(mut spec: Value) -> Value {
    edit_placement(&mut spec, |_| {});
    spec
}

/// A spec that somebody else wrote over ours, with only our marks taken off: constraints against these nodes that were
/// not there before, the platforms that no node has, and update settings that still say what we set. Everything else
/// is theirs.
pub fn without_marks(theirs: &Value, before: &Value, nodes: &[NodeId]) -> Value {
    let mut spec = theirs.clone();
    let had = constraints(before);
    let ours: Vec<String> = nodes.iter().map(off).filter(|constraint| !had.contains(constraint)).collect();
    let marked = is_marked(&spec);
    let mut touched = marked;
    edit_placement(&mut spec, |placement| {
        if let Some(Value::Array(list)) = placement.get_mut("Constraints") {
            let length = list.len();
            list.retain(|item| !item.as_str().is_some_and(|text| ours.iter().any(|our| our == text)));
            touched |= list.len() != length;
            if list.is_empty() {
                placement.remove("Constraints");
            }
        }
        if marked {
            match before.pointer("/TaskTemplate/Placement/Platforms") {
                Some(platforms) => placement.insert("Platforms".into(), platforms.clone()),
                None => placement.remove("Platforms"),
            };
        }
    });
    if touched { with_update_config_of(spec, before) } else { spec }
}

/// Puts back each update setting that still says what [`careful`] set.
fn with_update_config_of(mut spec: Value, before: &Value) -> Value {
    let was = before.get("UpdateConfig").cloned();
    let carefully = careful(json!({ "UpdateConfig": was.clone().unwrap_or_else(|| json!({})) }));
    let Some(fields) = spec.as_object_mut() else { return spec };
    let now = json!({ "UpdateConfig": fields.get("UpdateConfig") });
    if same(&now, &carefully) {
        match was {
            Some(was) => fields.insert("UpdateConfig".into(), was),
            None => fields.remove("UpdateConfig"),
        };
        return spec;
    }
    if let Some(Value::Object(config)) = fields.get_mut("UpdateConfig") {
        for (key, value) in &CAREFUL {
            if config.get(*key) == Some(&value.json()) {
                match was.as_ref().and_then(|was| was.get(*key)) {
                    Some(old) => config.insert((*key).into(), old.clone()),
                    None => config.remove(*key),
                };
            }
        }
    }
    spec
}

/// A node's spec with this availability.
pub fn with_availability(mut spec: Value, availability: Availability) -> Value {
    if let Some(fields) = spec.as_object_mut() {
        let word = match availability {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        };
        fields.insert("Availability".into(), word.into());
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker 20.10.24 gave it (`GET /v1.41/services/…`), created with constraint, preference and update settings.
    const RICH: &str = r#"{"Name":"rich","Labels":{"a":"b"},"TaskTemplate":{"ContainerSpec":{"Image":"sha256:cbe6",
        "Args":["/bin/sh","-c",""],"Env":["X=1"],"Init":false,"StopGracePeriod":3000000000,
        "Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":1000000000},"DNSConfig":{},"Isolation":"default"},
        "Resources":{"Limits":{"NanoCPUs":500000000},"Reservations":{}},
        "RestartPolicy":{"Condition":"any","Delay":1000000000,"MaxAttempts":0},
        "Placement":{"Constraints":["node.platform.os==linux"],
        "Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}]},"ForceUpdate":0,"Runtime":"container"},
        "Mode":{"Replicated":{"Replicas":3}},"UpdateConfig":{"Parallelism":2,"Delay":3000000000,
        "FailureAction":"pause","Monitor":5000000000,"MaxFailureRatio":0,"Order":"start-first"},
        "EndpointSpec":{"Mode":"vip"}}"#;

    /// As Docker 20.10.24 gave it for a service created without any of that.
    const PLAIN: &str = r#"{"Name":"web","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"sha256:cbe6",
        "Init":false,"DNSConfig":{},"Isolation":"default"},"Resources":{"Limits":{},"Reservations":{}},
        "Placement":{},"ForceUpdate":0,"Runtime":"container"},"Mode":{"Replicated":{"Replicas":1}},
        "EndpointSpec":{"Mode":"vip"}}"#;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).expect("captured from an engine")
    }

    fn node() -> NodeId {
        "wyouy2bc03rpl3beo89i872xy".parse().expect("an ID")
    }

    #[test]
    fn a_mark_changes_placement_and_update_settings_and_nothing_else() {
        for text in [RICH, PLAIN] {
            let before = parse(text);
            let after = marked(before.clone(), &node());
            let allowed = ["TaskTemplate.Placement", "UpdateConfig"];
            for path in differences(&before, &after) {
                assert!(allowed.iter().any(|allowed| path.starts_with(allowed)), "{path} changed");
            }
            assert!(is_marked(&after) && !is_marked(&before));
            assert_eq!(constraints(&after).len(), constraints(&before).len() + 1);
            assert_eq!(after["UpdateConfig"]["Order"], "start-first");
            assert_eq!(after["UpdateConfig"]["Parallelism"], 1);
            assert_eq!(after["UpdateConfig"]["FailureAction"], "pause");
            assert_eq!(after["UpdateConfig"]["Delay"], before["UpdateConfig"]["Delay"]);
        }
    }

    #[test]
    fn what_the_engine_adds_when_it_stores_a_spec_is_no_difference() {
        let sent = marked(parse(PLAIN), &node());
        let mut stored = sent.clone();
        stored["UpdateConfig"]["MaxFailureRatio"] = json!(0);
        assert!(same(&sent, &stored), "20.10 adds it");
        let mut stored = parse(PLAIN);
        stored["TaskTemplate"]["Placement"] = Value::Null;
        assert!(same(&parse(PLAIN), &stored));
        assert_eq!(fingerprint(&parse(PLAIN)), fingerprint(&stored));
        assert_eq!(sendable(stored)["TaskTemplate"]["Placement"], json!({}), "null would panic the leader");
    }

    #[test]
    fn what_an_operator_can_mean_is_a_difference() {
        let before = parse(RICH);
        let changes: [(&str, Value); 6] = [
            ("/UpdateConfig/Parallelism", json!(0)),
            ("/UpdateConfig/Delay", json!(0)),
            ("/Mode/Replicated/Replicas", json!(0)),
            ("/TaskTemplate/ContainerSpec/Init", json!(true)),
            ("/TaskTemplate/ContainerSpec/Args", json!(["/bin/sh", "-c"])),
            ("/TaskTemplate/ForceUpdate", json!(1)),
        ];
        for (path, value) in changes {
            let mut after = before.clone();
            *after.pointer_mut(path).expect("there") = value;
            assert!(!same(&before, &after), "{path}");
            assert_ne!(fingerprint(&before), fingerprint(&after), "{path}");
            assert_eq!(differences(&before, &after).len(), 1, "{path}");
        }
    }

    #[test]
    fn only_our_marks_come_off_what_somebody_else_wrote_over_them() {
        for text in [RICH, PLAIN] {
            let before = parse(text);
            let mut theirs = marked(with_replicas(before.clone(), 4), &node());
            theirs["TaskTemplate"]["ContainerSpec"]["Image"] = json!("web:2");
            theirs["UpdateConfig"]["MaxFailureRatio"] = json!(0);
            let mut expected = with_replicas(before.clone(), 4);
            expected["TaskTemplate"]["ContainerSpec"]["Image"] = json!("web:2");
            let cleaned = without_marks(&theirs, &before, &[node()]);
            assert!(same(&cleaned, &expected), "{:?}", differences(&cleaned, &expected));
            assert!(same(&without_marks(&cleaned, &before, &[node()]), &cleaned), "twice is once");
        }
    }

    #[test]
    fn a_constraint_or_setting_that_the_operator_had_stays() {
        let mut before = parse(RICH);
        before["TaskTemplate"]["Placement"]["Constraints"] = json!([off(&node())]);
        let marked = marked(before.clone(), &node());
        assert_eq!(constraints(&marked).len(), 1, "it is not there twice");
        let mut theirs = marked.clone();
        theirs["UpdateConfig"]["Parallelism"] = json!(7);
        let cleaned = without_marks(&theirs, &before, &[node()]);
        assert_eq!(constraints(&cleaned), constraints(&before));
        assert_eq!(cleaned["UpdateConfig"]["Parallelism"], 7);
        assert!(!is_marked(&cleaned));
    }
}
