//! A coordinator: the real ingest, loop and brain, beside a manager of the model.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use swarmguard_common::{api::SwarmName, domain::NodeId};
use swarmguard_coordinator::{
    glance::Glance,
    ingest::{Ingest, Limits, hub::Hub},
    journal,
    metrics::Metrics,
    run::{Parts, Runner},
    seam::SwarmApi,
};
use swarmguard_core::{
    brain::{Brain, Settings},
    command::{Command, CommandError, CommandResult},
    swarm::Snapshot,
};
use swarmguard_runtime::{
    clock,
    identity::{Identity, Source},
    transport,
};
use tokio::sync::{oneshot, watch};

use super::{
    super::{checks::MAX_ACTIONS, coordinator::Call},
    CLUSTER, Common,
    eyes::Probe,
    socket, tap,
};

/// Where agents find coordinators.
pub(super) const PORT: u16 = 7443;
/// How often the checkers look into the brain.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// What a coordinator is started with; the same at each start.
#[derive(Clone)]
pub(super) struct Plan {
    pub node: NodeId,
    pub certificate: PathBuf,
    pub own: SocketAddr,
    pub seed: u64,
}

/// One start of the coordinator, to its end: which is that of its host.
///
/// # Errors
/// When it cannot start, which no fault of the simulation may bring about.
pub(super) async fn run(common: Arc<Common>, plan: Plan) -> turmoil::Result {
    let life = common.world().coordinator_starts(&plan.node);
    let identity = Identity::load(&Source::Files(plan.certificate.clone()))?;
    let config = transport::server_config(identity.server_config()?)?;
    let seed = plan.seed.wrapping_add(life << 32);
    let endpoint = socket::endpoint(&common.wire, plan.own.ip(), plan.own.port(), Some(config), seed)?;
    let metrics = Metrics::new();
    let (journal, notices) = journal::open(&journal::Settings::default(), Arc::clone(&metrics));
    common.eyes().starts(&plan.node, life, journal.subscribe());
    let hub = Arc::new(Hub::default());
    let (ingest, inputs) =
        Ingest::new(Limits::default(), CLUSTER.into(), None, Arc::clone(&hub), Arc::clone(&metrics));
    let mut settings = Settings::new(format!("{}.{life}", plan.node));
    settings.max_actions = MAX_ACTIONS;
    let (runner, handle) = Runner::new(Parts {
        brain: Brain::new(settings),
        swarm: Arc::new(Beside::new(Arc::clone(&common), plan.node.clone())),
        inputs: tap::between(&common, &plan.node, inputs),
        hub,
        journal,
        notices,
        metrics,
        glance: Glance::new(SwarmName { id: CLUSTER.into(), name: None }),
    });
    tokio::spawn(ingest.serve(endpoint));
    let (_running, stop) = watch::channel(false);
    tokio::spawn(runner.run(stop));
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        let asked = handle.ask(|brain, facts| Probe {
            now: facts.now,
            leases: brain.leases(facts.now),
            alerts: brain.alerts(facts.now),
            taken_in: brain.statistics().alerts,
        });
        let Ok(probe) = asked.await else { return Err("the loop does not answer".into()) };
        common.eyes().probed(&plan.node, probe);
    }
}

/// The manager beside a coordinator: slow, and silent while it is cut off.
struct Beside {
    common: Arc<Common>,
    node: NodeId,
    changes: watch::Sender<u64>,
}

impl Beside {
    fn new(common: Arc<Common>, node: NodeId) -> Self {
        Self { common, node, changes: watch::Sender::new(0) }
    }
}

impl SwarmApi for Beside {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async move {
            let taken = clock::now();
            let read = {
                let mut world = self.common.world();
                let takes = Duration::from_millis(world.rng.u64(5..200));
                let answers = !world.network.is_blind(&self.node);
                answers.then(|| (takes, world.swarm.snapshot(&self.node)))
            };
            let Some((takes, snapshot)) = read else { return std::future::pending().await };
            tokio::time::sleep(takes).await;
            // On the clock of the coordinator that reads, as its client has it.
            Ok(Snapshot { taken, ..snapshot })
        })
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            {
                let mut world = self.common.world();
                let acts_at = world.now + Duration::from_millis(world.rng.u64(1..150));
                let answers_at = acts_at + Duration::from_millis(world.rng.u64(1..150));
                world.call(&self.node, Call::from_outside(command, acts_at, answers_at, reply));
            }
            let result = answer.await;
            self.changes.send_modify(|count| *count += 1);
            result.unwrap_or_else(|_| Err(CommandError::Unavailable("lost".into())))
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
