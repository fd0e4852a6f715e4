//! Taking an action back, from wherever it is, without costing a replica that serves.
//!
//! Where the spec is one of ours the way back is known. Where somebody else wrote on top of it, theirs stays and only
//! our own marks come off; a rollout of theirs is waited for before the replica count is touched, with the node given
//! back meanwhile.

use std::collections::BTreeSet;

use serde_json::Value;
use swarmguard_common::domain::NodeId;

use crate::swarm::{Task, UpdateState};

use super::{
    Next, Step,
    look::Look,
    plan::{after_spec, before_spec, frozen_spec, marked_spec, peak_spec, unmarked_spec},
    record::{Kind, State, Why},
    spec,
};

pub(super) fn step(look: &Look<'_>) -> Step {
    let (record, before) = (look.record, &look.record.before);
    if came_through(look) {
        let mut next = record.clone();
        (next.state, next.undone) = (State::Closing, None);
        return Step { next: Next::Do(next.update()), notes: Vec::new() };
    }
    if let Some(step) = look.resume() {
        return step;
    }
    let by_hand = record.undone.as_ref().is_some_and(|(why, _)| *why == Why::ScaledByHand);
    if record.source.as_ref().is_some_and(|source| look.is(&marked_spec(before, source))) {
        // The mark comes off; twins that no node can take vanish with it.
        return look.write(unmarked_spec(before));
    }
    if let Some(target) = &record.target
        && look.is(&drop_spec(look, target))
    {
        return dropping(look, target);
    }
    if look.is(&frozen_spec(before)) {
        return frozen(look);
    }
    let surged =
        before.peak > before.replicas && (look.is(&peak_spec(before)) || look.is(&unmarked_spec(before)));
    if surged && !by_hand {
        return shrink(look, before_spec(&look.record.before), true);
    }
    if look.is(&before.spec) { back(look) } else { theirs(look, by_hand) }
}

/// Whether the last write of the way forward came through, though it was thought lost or the action was taken back just
/// then: the replica that was marked is gone, and there is nothing to undo.
fn came_through(look: &Look<'_>) -> bool {
    let (record, before) = (look.record, &look.record.before);
    let after = after_spec(before);
    match record.kind {
        Kind::ScaleIn => look.is(&after),
        Kind::Migrate => {
            let marked = record.source.as_ref().is_some_and(|source| look.was(&marked_spec(before, source)));
            let victim = record.victim.as_ref();
            let gone = victim.is_some() && !look.slots.tasks().any(|task| Some(&task.id) == victim);
            look.is(&after) && marked && gone && !super::look::is_rollback(look.service)
        }
        _ => false,
    }
}

/// One replica fewer, the one that was added if it is not well, none that serves in any case unless all do.
fn shrink(look: &Look<'_>, smaller: Value, ours: bool) -> Step {
    if look.slots.any_doubled() {
        let unmarked = unmarked_spec(&look.record.before);
        if ours && !look.is(&unmarked) && look.slots.twins_have_no_node() {
            return look.write(unmarked);
        }
        return released_or_wait(look, "every slot to have one task");
    }
    let lost = lost_newcomer(look);
    if lost && !others_serve(look) {
        return released_or_wait(look, "the other replicas to be healthy: the silent one may be needed");
    }
    if !lost && (look.slots.can_lose_one() || look.slots.len() < look.record.before.peak) {
        return look.write(smaller);
    }
    if ours && let Some(node) = lonely_newcomer(look) {
        if look.record.target.as_ref() != Some(&node) {
            let mut next = look.record.clone();
            next.target = Some(node);
            return Step { next: Next::Do(next.update()), notes: Vec::new() };
        }
        return look.write(drop_spec(look, &node));
    }
    if lost && look.age() < look.context.tuning.removing {
        return released_or_wait(look, "Swarm to notice that the added replica's node is silent");
    }
    if lost && look.slots.can_lose_one() {
        return look.write(smaller);
    }
    if ours && look.age() < look.context.tuning.starting {
        return look.write(frozen_spec(&look.record.before));
    }
    released_or_wait(look, "the added replica to be healthy or to fail: Swarm would stop another one now")
}

/// No node takes anything new, so that the added replica is without one as soon as it fails. Not for long: the others
/// could not be restarted either.
fn frozen(look: &Look<'_>) -> Step {
    if look.slots.can_lose_one() {
        return look.write(before_spec(&look.record.before));
    }
    if look.age() > look.context.tuning.starting {
        return look.write(unmarked_spec(&look.record.before));
    }
    released_or_wait(look, "the added replica to be healthy or to fail")
}

/// The node of an added replica that is not well, if it is the only one of the service there: then a mark finds it.
fn lonely_newcomer(look: &Look<'_>) -> Option<NodeId> {
    let old: BTreeSet<u64> = look.record.before.tasks.iter().map(|task| task.slot).collect();
    let new: Vec<&Task> = look.slots.beyond(&old).into_iter().flat_map(|(_, tasks)| tasks.to_vec()).collect();
    let unwell = new.iter().find(|task| !task.is_serving() || is_lost(look, task))?;
    unwell.node.clone().filter(|node| look.slots.copies_on(node) == 1)
}

/// Whether an added replica is on the node that fell silent in the middle. Swarm still takes it for running, and would
/// rather stop another.
fn lost_newcomer(look: &Look<'_>) -> bool {
    let old: BTreeSet<u64> = look.record.before.tasks.iter().map(|task| task.slot).collect();
    look.slots.beyond(&old).iter().any(|(_, tasks)| tasks.iter().any(|task| is_lost(look, task)))
}

/// Whether as many replicas as there were before serve without the added one that fell silent. An old one on the same
/// node counts as it did before the action.
fn others_serve(look: &Look<'_>) -> bool {
    let old: BTreeSet<u64> = look.record.before.tasks.iter().map(|task| task.slot).collect();
    let lost = |task: &Task| is_lost(look, task) && !old.contains(&task.slot);
    let others = look.slots.tasks().filter(|task| task.is_serving() && !lost(task));
    others.count() as u64 >= look.record.before.replicas
}

fn is_lost(look: &Look<'_>, task: &Task) -> bool {
    let lost = look.record.undone.as_ref().is_some_and(|(why, _)| why.is_silence());
    lost && task.node.is_some() && task.node == look.record.target
}

/// The spec that marks an added replica which is not well. Its node is not paused: should Swarm stop the replica at
/// once, so much the better.
fn drop_spec(look: &Look<'_>, node: &NodeId) -> Value {
    spec::marked(unmarked_spec(&look.record.before), node)
}

fn dropping(look: &Look<'_>, target: &NodeId) -> Step {
    let well = look.slots.serving() == look.slots.len() && !lost_newcomer(look);
    let old: BTreeSet<u64> = look.record.before.tasks.iter().map(|task| task.slot).collect();
    let found = look.slots.doomed();
    let right = !found.is_empty() && found.iter().all(|(slot, _)| !old.contains(slot));
    let needed = lost_newcomer(look) && !others_serve(look);
    if !needed && (right || well || look.slots.copies_on(target) == 0) {
        return look.write(before_spec(&look.record.before));
    }
    if !found.is_empty() || look.age() > look.context.tuning.marking {
        return look.write(unmarked_spec(&look.record.before));
    }
    look.wait("Swarm to act on the mark")
}

/// The spec is as before. `PreviousSpec` must not hold anything of ours either.
fn back(look: &Look<'_>) -> Step {
    let untouched = match (&look.service.previous_spec, &look.record.before.previous_spec) {
        (Some(now), Some(was)) => spec::same(now, was),
        (None, None) => true,
        _ => false,
    };
    if untouched || look.was(&look.record.before.spec) {
        return look.finish(Vec::new());
    }
    if look.slots.any_doubled() && look.age() < look.context.tuning.removing {
        return look.wait("every slot to have one task");
    }
    look.write(before_spec(&look.record.before))
}

/// Somebody else's spec: our marks come off it, nothing else.
fn theirs(look: &Look<'_>, by_hand: bool) -> Step {
    let (record, before) = (look.record, &look.record.before);
    let spec = &look.service.spec;
    let rolling = is_rolling(look);
    let nodes: Vec<NodeId> =
        before.steer_off.iter().chain(&record.source).chain(&record.target).cloned().collect();
    let cleaned = spec::without_marks(spec, &before.spec, &nodes);
    if !spec::same(&cleaned, spec) {
        // A mark holds their rollout up, and its twins have no node: taking it off is safe at any time.
        if spec::is_marked(spec) || !rolling {
            return look.write(spec::sendable(cleaned));
        }
        return released_or_wait(look, "the rollout of somebody else to end");
    }
    let surge = record.kind == Kind::Migrate && !by_hand;
    // Their write kept our number, and did not ask for just that many itself.
    let ours = |spec: &Value| spec::replicas(spec) == Some(before.peak);
    let carried = surge && ours(spec) && look.service.previous_spec.as_ref().is_none_or(ours);
    let stale = look.service.previous_spec.as_ref().is_some_and(|previous| {
        let more = surge && spec::same(previous, &spec::with_replicas(spec.clone(), before.peak));
        let marked = !spec::same(&spec::without_marks(previous, &before.spec, &nodes), previous);
        !spec::same(previous, spec) && (more || marked || is_ours(look, previous))
    });
    if (carried || stale) && rolling {
        return released_or_wait(look, "the rollout of somebody else to end");
    }
    if carried {
        return shrink(look, spec::sendable(spec::with_replicas(spec.clone(), before.replicas)), false);
    }
    if stale {
        // A rollback would bring our mark back to life.
        return look.write(spec::sendable(spec.clone()));
    }
    look.finish(Vec::new())
}

fn is_ours(look: &Look<'_>, spec: &Value) -> bool {
    let before = &look.record.before;
    let surged = before.peak > before.replicas && spec::same(spec, &unmarked_spec(before));
    let steered = !before.steer_off.is_empty() && spec::same(spec, &peak_spec(before));
    spec::is_marked(spec) || surged || steered
}

/// A rollout that is going on, or stands half done: a write now would restart it.
fn is_rolling(look: &Look<'_>) -> bool {
    look.service.update_state.is_some_and(UpdateState::is_unfinished) || look.slots.any_doubled()
}

/// Long waits do not keep the node: nothing of ours in the spec forbids it any more.
fn released_or_wait(look: &Look<'_>, why: &str) -> Step {
    look.release().unwrap_or_else(|| {
        let text = format!("it holds no node, and others may act meanwhile; it waits for {why}");
        Step { notes: vec![look.note("undo_waits", text)], ..look.wait(why) }
    })
}
