//! Balancing at `connect()`, once in every tick: whether routes or containers have changed, and then a new plan.

use std::{collections::BTreeMap, path::Path, time::Duration};

use swarmguard_common::{domain::ContainerId, time::Time};

use super::Sampler;
use crate::connect::Planner;

/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// What is balanced now.
#[derive(Debug, Default)]
pub(super) struct Balancing {
    planner: Planner,
    /// Counts up with each container that came or went.
    pub(super) changes: u64,
    /// Version of the routes and changes that the kernel was told.
    told: (u64, u64),
    retry_at: Option<Time>,
}

impl Sampler {
    /// Brings the kernel's tables to what the coordinators say, where either has changed.
    pub(super) fn balance(&mut self, now: Time) {
        let routes = {
            let mut agent = self.shared.lock();
            let version = agent.connect.version(now);
            let due = self.balancing.retry_at.is_some_and(|at| at <= now);
            // Nobody has ever spoken of it: the usual case.
            if version == 0 || ((version, self.balancing.changes) == self.balancing.told && !due) {
                return;
            }
            self.balancing.told = (version, self.balancing.changes);
            agent.connect.routes()
        };
        let cgroups: BTreeMap<ContainerId, u64> =
            self.watched.iter().map(|(id, it)| (id.clone(), it.group.id())).collect();
        let plan = self.balancing.planner.plan(routes.as_ref(), &cgroups);
        let dirs: BTreeMap<u64, &Path> =
            self.watched.values().map(|it| (it.group.id(), it.group.dir())).collect();
        let Some(programs) = self.networks.programs() else { return };
        self.balancing.retry_at = match programs.balance(&plan, &|id| dirs.get(&id).copied()) {
            Ok(_) => None,
            Err(error) => {
                if self.reported.insert("connect") {
                    tracing::warn!("some connections are left to Swarm's own balancing: {error}");
                }
                Some(now + RETRY)
            }
        };
    }
}
