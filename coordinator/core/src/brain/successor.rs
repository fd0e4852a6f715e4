//! What is known of the replicas that an action added, besides what Swarm says.

use swarmguard_common::{domain::NodeId, time::Time};

use super::Brain;
use crate::{
    action::{self, Kind, Record, State, Step},
    lease::LeaseState,
    swarm::{RecordObject, Snapshot},
};

impl Brain {
    /// Has a move undone whose successor's node fell silent: whether it serves there nobody knows, and the old replica is
    /// to go for it. The policy then picks another target. One more replica takes nothing away: there Swarm's own word is
    /// enough, and what it brings elsewhere stays.
    pub(super) fn target_lost(&self, now: Time, object: &RecordObject, snapshot: &Snapshot) -> Option<Step> {
        let record = Record::parse(object).ok()?;
        if record.kind != Kind::Migrate || record.holder != self.settings.holder {
            return None;
        }
        let lapsed = |node: &NodeId| self.view.lease(node, now) == Some(LeaseState::Lapsed);
        let node = action::targets(&record, snapshot).into_iter().find(lapsed)?;
        let reason = format!("the agent of {}, where the successor runs, is silent", self.hostname(&node));
        action::lose_target(object, &node, &reason)
    }

    /// Whether all that an action added was seen answering requests since: by its agent, or by balancers.
    pub(super) fn answers(&self, record: &Record, snapshot: &Snapshot, now: Time) -> bool {
        let Some(service) = record.service.as_ref().filter(|_| record.state == State::Marking) else {
            return false;
        };
        let old = |slot: u64| record.before.tasks.iter().any(|task| task.slot == slot);
        let mut added =
            snapshot.tasks_of(service).filter(|task| task.is_serving() && !old(task.slot)).peekable();
        added.peek().is_some()
            && added.all(|task| {
                let load = self.replica_load(now, &task.id);
                self.answering.contains(&task.id) || load.is_some_and(|load| load.latency_us.is_some())
            })
    }
}
