//! A coordinator as far as a balancer can tell: real QUIC, a real token, and whatever a test wants said.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::mpsc,
};

use swarmguard_common::{
    domain::TaskId,
    labels::RouteLabels,
    wire::routes::{
        BalancerStats, FromRouteSource, ReplicaLoad, RoutedReplica, RoutedService, Routes, ToRouteSource,
    },
};
use swarmguard_runtime::{
    frame,
    identity::{Identity, Source, Unit, issue::Authority},
    transport,
};

use super::PATIENCE;

/// What balancers must say.
const TOKEN: &str = "open sesame";

/// See the module. Dropping it kills it.
pub struct Coordinator {
    pub address: SocketAddr,
    directory: tempfile::TempDir,
    say: tokio::sync::mpsc::UnboundedSender<FromRouteSource>,
    drained: mpsc::Receiver<Vec<TaskId>>,
    stats: mpsc::Receiver<BalancerStats>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Coordinator {
    /// Listens; says nothing yet.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create("testcluster").unwrap();
        authority.issue("manager1", Unit::Manager, directory.path()).unwrap();
        std::fs::write(directory.path().join("token"), TOKEN).unwrap();
        let identity = Identity::load(&Source::Files(directory.path().into())).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = runtime.block_on(async {
            let config = transport::server_config(identity.server_config().unwrap()).unwrap();
            transport::bind("127.0.0.1:0".parse().unwrap(), Some(config)).unwrap()
        });
        let address = endpoint.local_addr().unwrap();
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let (drained_in, drained) = mpsc::channel();
        let (stats_in, stats) = mpsc::channel();
        runtime.spawn(serve(endpoint, said, drained_in, stats_in));
        Self { address, directory, say, drained, stats, runtime: Some(runtime) }
    }

    /// What a balancer needs to find it.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            format!("--coordinators={}", self.address),
            format!("--token-file={}", self.file("token").display()),
            format!("--roots={}", self.file("ca.pem").display()),
        ]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Says it to the balancer.
    pub fn say(&self, message: FromRouteSource) {
        self.say.send(message).unwrap();
    }

    /// One service with replicas `(task, address)`, all ready, of unknown load.
    pub fn routes(&self, labels: &RouteLabels, replicas: &[(&str, IpAddr)]) {
        let unknown: Vec<_> = replicas.iter().map(|(task, address)| (*task, *address, None)).collect();
        self.routes_with_load(labels, &unknown);
    }

    /// The same with what agents say of their load.
    pub fn routes_with_load(&self, labels: &RouteLabels, replicas: &[(&str, IpAddr, Option<ReplicaLoad>)]) {
        let replicas = replicas.iter().map(|(task, address, load)| RoutedReplica {
            task: task.parse().unwrap(),
            node: format!("node-of-{task}"),
            addresses: vec![*address],
            ready: true,
            draining: false,
            load: *load,
        });
        let service =
            RoutedService { name: "web".into(), labels: labels.clone(), replicas: replicas.collect() };
        let services = BTreeMap::from([("serviceid1".parse().unwrap(), service)]);
        self.say(FromRouteSource::Routes(Routes { revision: 1, age_ms: 0, acting: true, services }));
    }

    /// The next "drained" of the balancer.
    pub fn drained(&self) -> Vec<TaskId> {
        self.drained.recv_timeout(PATIENCE).unwrap()
    }

    /// The balancer's next figures.
    pub fn stats(&self) -> BalancerStats {
        self.stats.recv_timeout(PATIENCE).unwrap()
    }

    /// Whether there is one already.
    pub fn drained_already(&self) -> bool {
        self.drained.try_recv().is_ok()
    }

    /// Dies without a word.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    endpoint: quinn::Endpoint,
    mut said: tokio::sync::mpsc::UnboundedReceiver<FromRouteSource>,
    drained: mpsc::Sender<Vec<TaskId>>,
    stats: mpsc::Sender<BalancerStats>,
) {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let hello = frame::read::<ToRouteSource>(&mut receive).await.unwrap();
    assert!(matches!(hello, Some(ToRouteSource::Hello { token, .. }) if token == TOKEN));
    tokio::spawn(async move {
        while let Ok(Some(message)) = frame::read::<ToRouteSource>(&mut receive).await {
            let sent = match message {
                ToRouteSource::Drained { tasks } => drained.send(tasks).is_ok(),
                ToRouteSource::Stats(figures) => stats.send(figures).is_ok(),
                ToRouteSource::Hello { .. } => panic!("a second hello"),
            };
            assert!(sent, "the test has ended");
        }
    });
    while let Some(message) = said.recv().await {
        frame::write(&mut send, &message).await.unwrap();
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}
