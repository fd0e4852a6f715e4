//! From an order to an action: whether it can begin, what its record must remember, and the specs on its way.

use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId};

use crate::{
    command::Command,
    rule::Rule,
    swarm::{Availability, Mode, Node, Service, Snapshot},
};

use super::{
    Intent, Next, Note, Order, Refusal, Step, lease, previous,
    record::{Before, Kind, Record, State, TaskBefore, action_name, drain_name, shortened},
    slots::Slots,
    spec,
    steer::{KeepOff, Seen, Steering, avoidable, keep_off, steer, winners},
};

/// The spec while there are most replicas.
pub(super) fn peak_spec(before: &Before) -> Value {
    let spec = spec::with_replicas(before.spec.clone(), before.peak);
    spec::sendable(if before.steer_off.is_empty() { spec } else { spec::steered(spec, &before.steer_off) })
}

/// The spec at its peak with the source marked.
pub(super) fn marked_spec(before: &Before, source: &NodeId) -> Value {
    spec::marked(peak_spec(before), source)
}

/// The spec that an undone surge has on its way back: most replicas, everything else as before.
pub(super) fn unmarked_spec(before: &Before) -> Value {
    spec::sendable(spec::with_replicas(before.spec.clone(), before.peak))
}

/// The spec when all is as before.
pub(super) fn before_spec(before: &Before) -> Value {
    spec::sendable(before.spec.clone())
}

/// The spec when all is done.
pub(super) fn after_spec(before: &Before) -> Value {
    spec::sendable(spec::with_replicas(before.spec.clone(), before.after))
}

/// The spec that a rollback restores: all of it, the number of replicas included, as Swarm's own rollback does.
pub(super) fn rolled_back_spec(before: &Before) -> Value {
    spec::sendable(before.previous_spec.clone().unwrap_or_else(|| before.spec.clone()))
}

/// The spec with more replicas where none can be started any more: an added one that fails then has no node, and is
/// the one that Swarm removes first.
pub(super) fn frozen_spec(before: &Before) -> Value {
    spec::frozen(unmarked_spec(before))
}

/// Whether a spec is one that an action has on its way, neither its beginning nor its end.
pub(super) fn is_on_the_way(spec: &Value, before: &Before, source: &NodeId) -> bool {
    let ours = [peak_spec(before), marked_spec(before, source), unmarked_spec(before), frozen_spec(before)];
    !spec::same(spec, &before.spec) && ours.iter().any(|our| spec::same(spec, our))
}

fn refuse(code: Rule, text: String, otherwise: &str) -> Refusal {
    Refusal { code, text, otherwise: otherwise.into() }
}

/// The command that takes an action's lease, with the note that says so. A tombstone in the way is removed first: then
/// the command is [`Command::RemoveRecord`], and this is to be called again with the next snapshot.
///
/// Only what makes the steps themselves unsafe is refused here. Whether acting is wise (cooldown, headroom, volumes,
/// bounds, labels) is the policy's to judge, before.
///
/// # Errors
/// When the snapshot shows that it cannot be done, or not now.
pub fn begin(order: &Order, snapshot: &Snapshot) -> Result<Step, Refusal> {
    let (record, mut notes) = match &order.intent {
        Intent::Drain { node } => (drain(order, snapshot, node)?, Vec::new()),
        Intent::Migrate { service, source, target } => {
            let service = find(snapshot, service)?;
            let count = settled(snapshot, service)?;
            source_fits(snapshot, service, source)?;
            let mut before = before(order, snapshot, service, count, count + 1, count);
            let seen = Seen { snapshot, service, closed: &order.closed };
            let notes = choose(&mut before, seen, Some(source), target.as_ref(), order);
            before.pauses = pauses(seen, source, &before.steer_off)?;
            let mut record = Record::new(action_name(&service.id), Kind::Migrate, order, before);
            if !record.before.pauses {
                record.state = State::Surging;
            }
            (record.source, record.target) = (Some(source.clone()), target.clone());
            (record, notes)
        }
        Intent::ScaleOut { service, replicas, target } => {
            let service = find(snapshot, service)?;
            let count = undisturbed(snapshot, service)?;
            if *replicas <= count {
                let text = format!("{} has {count} replicas already", service.name);
                return Err(refuse(Rule::EnoughReplicas, text, "a higher number"));
            }
            let mut before = before(order, snapshot, service, count, *replicas, *replicas);
            // Several at once go where Swarm finds room: towards one target they would end on the nodes that host the service.
            let target = target.as_ref().filter(|_| *replicas == count + 1);
            let seen = Seen { snapshot, service, closed: &order.closed };
            let notes = choose(&mut before, seen, None, target, order);
            let mut record = Record::new(action_name(&service.id), Kind::ScaleOut, order, before);
            record.state = State::Surging;
            record.target = target.cloned();
            (record, notes)
        }
        Intent::ScaleIn { service, node } => {
            let service = find(snapshot, service)?;
            let count = settled(snapshot, service)?;
            if count < 2 {
                let text = format!("{} has {count} replicas", service.name);
                return Err(refuse(Rule::LastReplica, text, "at least two replicas"));
            }
            source_fits(snapshot, service, node)?;
            let before = before(order, snapshot, service, count, count, count - 1);
            let mut record = Record::new(action_name(&service.id), Kind::ScaleIn, order, before);
            record.source = Some(node.clone());
            record.state = State::Marking;
            (record, Vec::new())
        }
        Intent::Rollback { service } => {
            let service = find(snapshot, service)?;
            (rollback(order, snapshot, service)?, Vec::new())
        }
    };
    if let Some(object) = snapshot.records.get(&record.name) {
        return match Record::parse(object) {
            Ok(old) if old.is_over() => {
                let kept = previous::to_keep(&old, snapshot);
                let command = kept.unwrap_or(Command::RemoveRecord { id: old.id });
                Ok(Step { next: Next::Do(command), notes: Vec::new() })
            }
            Ok(old) => Err(refuse(
                Rule::Busy,
                format!("{} {} is under way ({})", old.kind, old.token, old.state),
                "the end of that action",
            )),
            Err(error) => Err(refuse(Rule::Busy, error.to_string(), "a record that can be read, or none")),
        };
    }
    notes.insert(0, note(&record, "leased", format!("{}: {}", record.kind, shortened(&order.reason))));
    Ok(Step { next: Next::Do(record.create()), notes })
}

/// A note about an action, with what its record knows.
pub(super) fn note(record: &Record, code: &'static str, text: impl Into<String>) -> Note {
    Note {
        code,
        text: text.into(),
        action: record.token.clone(),
        service: record.service.clone(),
        task: record.victim.clone(),
        node: record.source.clone(),
        target: record.target.clone(),
        figures: Default::default(),
    }
}

fn find<'a>(snapshot: &'a Snapshot, service: &ServiceId) -> Result<&'a Service, Refusal> {
    snapshot.services.get(service).ok_or_else(|| {
        refuse(Rule::NoService, format!("there is no service {service}"), "an existing service")
    })
}

/// The number of replicas of a service that stands still, each of them running.
fn settled(snapshot: &Snapshot, service: &Service) -> Result<u64, Refusal> {
    let count = undisturbed(snapshot, service)?;
    let serving = Slots::of(snapshot, &service.id).serving();
    if serving != count {
        let text = format!("{} has {serving} of {count} replicas running and healthy", service.name);
        return Err(refuse(Rule::NotSettled, text, "all replicas running and healthy"));
    }
    Ok(count)
}

/// The number of replicas of a service that nobody is at work on: replicated, no update under way, every slot with one
/// task of which some serve, and no mark of ours left by hand. A replica that fails its checks under load does not keep
/// another from being added.
fn undisturbed(snapshot: &Snapshot, service: &Service) -> Result<u64, Refusal> {
    let name = &service.name;
    let Mode::Replicated(count) = service.mode else {
        return Err(refuse(
            Rule::NotReplicated,
            format!("{name} is not a replicated service"),
            "a replicated service",
        ));
    };
    if let Some(state) = service.update_state.filter(|state| state.is_unfinished()) {
        let text = format!("{name} has a rollout under way ({})", state.word());
        return Err(refuse(Rule::ForeignRollout, text, "the end of the rollout"));
    }
    if spec::is_marked(&service.spec) {
        let text = format!("{name} has platforms that no node has: a mark of which no record is left");
        return Err(refuse(Rule::StrayMark, text, "its placement put right by hand"));
    }
    let slots = Slots::of(snapshot, &service.id);
    if slots.len() != count || slots.any_doubled() || slots.serving() == 0 {
        let text = format!("{name} has {} of {count} replicas running and healthy", slots.serving());
        return Err(refuse(Rule::NotSettled, text, "all replicas running and healthy"));
    }
    Ok(count)
}

/// The node that a replica is to leave: there, not drained, and hosting one.
fn source_fits<'a>(snapshot: &'a Snapshot, service: &Service, source: &NodeId) -> Result<&'a Node, Refusal> {
    let node = usable(snapshot, source)?;
    if Slots::of(snapshot, &service.id).copies_on(source) == 0 {
        let text = format!("{} has no replica on {}", service.name, node.hostname);
        return Err(refuse(Rule::Stale, text, "a replica on that node"));
    }
    Ok(node)
}

fn usable<'a>(snapshot: &'a Snapshot, node: &NodeId) -> Result<&'a Node, Refusal> {
    let node = snapshot
        .nodes
        .get(node)
        .ok_or_else(|| refuse(Rule::NoNode, format!("there is no node {node}"), "an existing node"))?;
    if !node.ready || node.availability == Availability::Drain {
        let text = format!("node {} is down or drained: Swarm moves its tasks itself", node.hostname);
        return Err(refuse(Rule::NodeLeaving, text, "a node that is ready and not drained"));
    }
    Ok(node)
}

fn before(
    order: &Order,
    snapshot: &Snapshot,
    service: &Service,
    replicas: u64,
    peak: u64,
    after: u64,
) -> Before {
    let tasks = Slots::of(snapshot, &service.id)
        .tasks()
        .filter_map(|task| {
            Some(TaskBefore { id: task.id.clone(), slot: task.slot, node: task.node.clone()? })
        })
        .collect();
    Before {
        version: service.version,
        spec: service.spec.clone(),
        previous_spec: previous::operators(snapshot, service),
        replicas,
        peak,
        after,
        tasks,
        steer_off: Vec::new(),
        pauses: false,
        availability: None,
        reason: shortened(&order.reason),
    }
}

/// Whether the source must be paused until the successor is assigned.
fn pauses(seen: Seen<'_>, source: &NodeId, off: &[NodeId]) -> Result<bool, Refusal> {
    if keep_off(seen, source, off) == KeepOff::Order {
        return Ok(false);
    }
    if !lease::is_only_manager(seen.snapshot, source) {
        return Ok(true);
    }
    // It may not be paused, so Swarm's order has to do, ties included: a successor that lands on the source after all is
    // taken back at once.
    if winners(seen, off).into_iter().any(|node| node != source) {
        return Ok(false);
    }
    let name = seen.snapshot.nodes.get(source).map_or(source.as_str(), |node| node.hostname.as_str());
    let text = format!(
        "{name} is the only manager, which is never paused, and Swarm would place another replica of {} there",
        seen.service.name
    );
    Err(refuse(Rule::OnlyManager, text, "a second manager, or a node with fewer tasks"))
}

/// The way back to the spec that the operator had before: one write.
fn rollback(order: &Order, snapshot: &Snapshot, service: &Service) -> Result<Record, Refusal> {
    let Some(target) = previous::to_roll_back_to(snapshot, service) else {
        let text = format!("{} has no earlier spec", service.name);
        return Err(refuse(Rule::NoPreviousSpec, text, "an update of the service before"));
    };
    if target.pointer("/TaskTemplate").is_none() {
        let text = format!("the earlier spec of {} is not one of a service", service.name);
        return Err(refuse(Rule::NoPreviousSpec, text, "docker service rollback"));
    }
    if let Some(state) = service.update_state.filter(|state| state.is_unfinished()) {
        let text = format!("{} has a rollout under way ({})", service.name, state.word());
        return Err(refuse(Rule::ForeignRollout, text, "the end of the rollout"));
    }
    let count = spec::replicas(&service.spec).unwrap_or(0);
    let mut before = before(order, snapshot, service, count, count, count);
    before.previous_spec = Some(target);
    let mut record = Record::new(action_name(&service.id), Kind::Rollback, order, before);
    record.state = State::Closing;
    Ok(record)
}

/// Settles the steering in `before`; says so, or why not.
fn choose(
    before: &mut Before,
    seen: Seen<'_>,
    source: Option<&NodeId>,
    target: Option<&NodeId>,
    order: &Order,
) -> Vec<Note> {
    let Seen { snapshot, service, .. } = seen;
    let steering = target.map(|target| steer(seen, source, target));
    let (off, text) = match steering {
        Some(Steering::NotNeeded) => return Vec::new(),
        Some(Steering::Off(off)) => (off, "kept off {} so that Swarm picks the target".to_owned()),
        Some(Steering::NotPossible(why)) => {
            let off = avoidable(seen, source, &order.avoid);
            let kept = if off.is_empty() { "" } else { "; kept off {}, which is silent" };
            (off, format!("Swarm picks the node: {why}{kept}"))
        }
        None => (avoidable(seen, source, &order.avoid), "kept off {}, which is silent".into()),
    };
    if target.is_none() && off.is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> =
        off.iter().filter_map(|id| Some(snapshot.nodes.get(id)?.hostname.as_str())).collect();
    let mut text = text.replace("{}", &names.join(", "));
    if !off.is_empty() {
        text.push_str("; Swarm's updates of published ports alone will pass this replica by");
    }
    before.steer_off = off;
    vec![Note {
        code: "steered",
        text,
        action: order.token.clone(),
        service: Some(service.id.clone()),
        task: None,
        node: source.cloned(),
        target: target.cloned(),
        figures: Default::default(),
    }]
}

fn drain(order: &Order, snapshot: &Snapshot, node: &NodeId) -> Result<Record, Refusal> {
    usable(snapshot, node)?;
    let before = Before {
        version: 0,
        spec: Value::Null,
        previous_spec: None,
        replicas: 0,
        peak: 0,
        after: 0,
        tasks: Vec::new(),
        steer_off: Vec::new(),
        pauses: false,
        availability: None,
        reason: shortened(&order.reason),
    };
    let mut record = Record::new(drain_name(node), Kind::Drain, order, before);
    record.source = Some(node.clone());
    record.state = State::Leased;
    Ok(record)
}
