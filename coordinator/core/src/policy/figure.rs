//! What an order is to change, in figures that can be looked at again afterwards.

use swarmguard_common::{domain::NodeId, time::Time};

use super::{
    evidence::{self, Evidence},
    hot,
};
use crate::{
    action::Intent,
    swarm::Mode,
    view::{SPAN, View},
};

/// The figure that an order is to change, before it is carried out and as it will be: how busy the node is that is left,
/// or the replicas are, where 1.0 is all; and the cores that the service uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// As it is.
    pub is: f64,
    /// As it is predicted to be.
    pub predicted: f64,
    /// What the service uses, in thousandths of a CPU.
    pub used_millis: f64,
}

/// What an order is to change; `None` where it is no remedy, or unknown.
pub fn figure(view: &View, intent: &Intent, now: Time) -> Option<Figure> {
    let snapshot = view.snapshot.as_deref()?;
    let service = snapshot.services.get(intent.service()?)?;
    let policy = service.policy.as_ref().ok()?;
    let evidence = Evidence::of(view, service, policy, now, SPAN);
    let used_millis: f64 = evidence.witnesses.iter().map(evidence::Witness::used_millis).sum();
    let (is, predicted) = match intent {
        Intent::Migrate { source, .. } => {
            let is = node_use(view, source, now)?;
            let here = evidence.witnesses.iter().filter(|witness| witness.replica.node.id == *source);
            let own = here.map(evidence::Witness::used_millis).fold(0.0, f64::max);
            (is, (is - hot::share(own, f64::from(view.agents.get(source)?.hello.cpu_millis))).max(0.0))
        }
        Intent::ScaleOut { replicas, .. } => {
            let Mode::Replicated(before) = service.mode else { return None };
            let is = evidence.busy()?;
            (is, is * evidence::float(before) / evidence::float((*replicas).max(1)))
        }
        _ => return None,
    };
    Some(Figure { is, predicted, used_millis })
}

/// How busy a node is, where 1.0 is all.
fn node_use(view: &View, node: &NodeId, now: Time) -> Option<f64> {
    Some(view.agents.get(node)?.recent.settled(now, SPAN)?.cpu?.ratio())
}

/// How busy it is now that an order was to change: the node that was left, or the replicas.
pub fn figure_after(view: &View, intent: &Intent, now: Time) -> Option<Figure> {
    let snapshot = view.snapshot.as_deref()?;
    let service = snapshot.services.get(intent.service()?)?;
    let evidence = Evidence::of(view, service, service.policy.as_ref().ok()?, now, SPAN);
    let used_millis: f64 = evidence.witnesses.iter().map(evidence::Witness::used_millis).sum();
    let is = match intent {
        Intent::Migrate { source, .. } => node_use(view, source, now)?,
        _ => evidence.busy()?,
    };
    Some(Figure { is, predicted: is, used_millis })
}
