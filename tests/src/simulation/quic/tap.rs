//! Between ingest and the brain: everything that passes is looked at, and where something is to be broken on purpose,
//! broken.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use swarmguard_common::{
    domain::{Edge, NodeId},
    wire::agent::{Report, ToCoordinator},
};
use swarmguard_coordinator::ingest::{Event, Inputs};
use swarmguard_core::brain::{AgentEvent, AgentInput};
use swarmguard_runtime::clock;
use tokio::sync::mpsc;

use super::{super::Sabotage, Common};

/// Inputs that wait; as many as ingest itself keeps would hide a slow loop from it.
const QUEUE: usize = 64;
/// How long after a start reports are swallowed by [`Sabotage::LosesReports`].
const LOSES_AFTER: Duration = Duration::from_secs(20);
/// How often [`Sabotage::RepeatsReports`] says again what was said.
const REPEAT: Duration = Duration::from_millis(250);

/// Passes `inputs` on.
pub(super) fn between(common: &Arc<Common>, coordinator: &NodeId, inputs: Inputs) -> Inputs {
    let (events_in, events) = mpsc::channel(QUEUE);
    let (reports_in, reports) = mpsc::channel(QUEUE);
    tokio::spawn(pass_events(Arc::clone(common), coordinator.clone(), inputs.events, events_in));
    tokio::spawn(pass_reports(Arc::clone(common), coordinator.clone(), inputs.reports, reports_in));
    Inputs { events, reports, roster: inputs.roster }
}

async fn pass_events(
    common: Arc<Common>,
    coordinator: NodeId,
    mut from: mpsc::Receiver<Event>,
    to: mpsc::Sender<Event>,
) {
    while let Some(event) = from.recv().await {
        let input = match &event {
            Event::Up { input, .. } | Event::Input(input) => input,
        };
        common.eyes().heard(&coordinator, input, clock::now());
        let (passes, again) = broken(common.sabotage, input);
        if passes && to.send(event).await.is_err() {
            return;
        }
        if let Some(again) = again
            && to.send(Event::Input(again)).await.is_err()
        {
            return;
        }
    }
}

/// Whether an input passes, and what is said besides.
fn broken(sabotage: Sabotage, input: &AgentInput) -> (bool, Option<AgentInput>) {
    let AgentEvent::Message(ToCoordinator::Alert(alert)) = &input.what else { return (true, None) };
    match sabotage {
        Sabotage::LosesAlerts => (alert.edge == Edge::Clear as u8, None),
        Sabotage::JudgesTwice => {
            let mut twice = *alert;
            twice.seq += 1 << 40;
            let what = AgentEvent::Message(ToCoordinator::Alert(twice));
            (true, Some(AgentInput { what, ..input.clone() }))
        }
        _ => (true, None),
    }
}

async fn pass_reports(
    common: Arc<Common>,
    coordinator: NodeId,
    mut from: mpsc::Receiver<AgentInput>,
    to: mpsc::Sender<AgentInput>,
) {
    let began = clock::now();
    let mut last: BTreeMap<NodeId, AgentInput> = BTreeMap::new();
    let repeats = common.sabotage == Sabotage::RepeatsReports;
    let mut ticks = tokio::time::interval(REPEAT);
    loop {
        tokio::select! {
            biased;
            input = from.recv() => {
                let Some(input) = input else { return };
                common.eyes().heard(&coordinator, &input, clock::now());
                let lost = common.sabotage == Sabotage::LosesReports
                    && clock::now().since(began) > LOSES_AFTER;
                if repeats {
                    last.insert(input.node.clone(), input.clone());
                }
                if !lost && to.send(input).await.is_err() {
                    return;
                }
            }
            _ = ticks.tick(), if repeats => {
                for input in last.values_mut() {
                    if let AgentEvent::Report(Report { seq, .. }) = &mut input.what {
                        *seq += 1;
                    }
                    if to.send(input.clone()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
