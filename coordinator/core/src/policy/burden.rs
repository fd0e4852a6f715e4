//! What one more replica brings along to a node.

use swarmguard_common::domain::{NodeId, ServiceId};

use super::{Arrival, Round};

/// What a replica brings along to a node, as absolute figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Burden {
    /// CPU in thousandths of one.
    pub cpu_millis: f64,
    /// Working set in bytes.
    pub memory_bytes: f64,
}

impl Round<'_> {
    /// The heaviest of a service's replicas on a node; `None` where there are none, or not all of them are known.
    pub(super) fn burden_on(&self, service: &ServiceId, node: &NodeId) -> Option<Burden> {
        let here = self.uses(service).filter(|(on, _)| on == node).map(|(_, used)| used);
        here.reduce(|heaviest, used| {
            let (heaviest, used) = (heaviest?, used?);
            Some(Burden {
                cpu_millis: heaviest.cpu_millis.max(used.cpu_millis),
                memory_bytes: heaviest.memory_bytes.max(used.memory_bytes),
            })
        })?
    }

    /// The mean of a service's replicas whose use is known; `None` where none is.
    pub(super) fn mean_burden(&self, service: &ServiceId) -> Option<Burden> {
        let known: Vec<Burden> = self.uses(service).filter_map(|(_, used)| used).collect();
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 replicas")]
        let count = known.len() as f64;
        (!known.is_empty()).then(|| Burden {
            cpu_millis: known.iter().map(|used| used.cpu_millis).sum::<f64>() / count,
            memory_bytes: known.iter().map(|used| used.memory_bytes).sum::<f64>() / count,
        })
    }

    /// What an action under way brings to its target: as much as the replica that it moves, or about the mean.
    pub(super) fn brought_by(&self, arrival: &Arrival) -> Option<Burden> {
        let service = &arrival.service;
        let moved = arrival.source.as_ref().and_then(|source| self.burden_on(service, source));
        moved.or_else(|| self.mean_burden(service))
    }

    /// Where a service's replicas are, and what each uses as far as it is known.
    fn uses(&self, service: &ServiceId) -> impl Iterator<Item = (NodeId, Option<Burden>)> {
        self.view.replicas(service, self.now).into_iter().map(|replica| {
            let used = replica.load.map(|load| Burden {
                cpu_millis: f64::from(load.cpu_millis),
                memory_bytes: f64::from(load.memory_kib) * 1_024.0,
            });
            (replica.node.id.clone(), used)
        })
    }
}
