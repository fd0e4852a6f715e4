//! Figures asked of the agents themselves (`GET /metrics/containers`), as the balancer was proposed: for a fixed list of
//! nodes, where no coordinator sends them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use swarmguard_common::{domain::BasisPoints, wire::routes::ReplicaLoad};
use tokio::net::TcpStream;

use super::Picture;

/// Longest answer read, in bytes.
const MAX_BYTES: usize = 1024 * 1024;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// Traffic that counts as 100 %, in megabits a second: what the proposal took for granted.
const LINK_MBPS: f64 = 100.0;

/// Asks the agent of every node once, all at the same time, and puts what they say into the picture. Nodes whose agent
/// does not answer are left without figures.
pub async fn fill(picture: &mut Picture, port: u16) {
    let mut asked = tokio::task::JoinSet::new();
    let replicas = picture.services.iter().flat_map(|service| &service.replicas);
    let nodes: std::collections::BTreeSet<_> = replicas.map(|replica| replica.address.ip()).collect();
    for node in nodes {
        asked.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, ask(SocketAddr::new(node, port))).await;
            (node, answer.ok().flatten())
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(answered) = asked.join_next().await {
        if let Ok((node, Some(answer))) = answered {
            answers.insert(node, answer);
        }
    }
    for service in &mut picture.services {
        for replica in &mut service.replicas {
            let answer = answers.get(&replica.address.ip());
            replica.load = answer.and_then(|answer| load(answer, &service.name));
        }
    }
}

async fn ask(address: SocketAddr) -> Option<Value> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/metrics/containers").header(header::HOST, address.to_string());
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await.ok()?;
    driver.abort();
    serde_json::from_slice(&body.to_bytes()).ok()
}

/// The mean over a node's containers of the service; over all of them where none bears its name.
fn load(answer: &Value, service: &str) -> Option<ReplicaLoad> {
    let containers = answer["containers"].as_array()?;
    let named: Vec<&Value> = containers.iter().filter(|it| it["service_name"] == service).collect();
    let counted = if named.is_empty() { containers.iter().collect() } else { named };
    let count = u32::try_from(counted.len()).ok().filter(|count| *count > 0)?;
    let mean = |of: &dyn Fn(&Value) -> f64| counted.iter().map(|it| of(it)).sum::<f64>() / f64::from(count);
    let number = |it: &Value, key: &str| it[key].as_f64().unwrap_or(0.0);
    let network = |it: &Value| (number(it, "network_rx_mbps") + number(it, "network_tx_mbps")) / LINK_MBPS;
    Some(ReplicaLoad {
        cpu: BasisPoints::from_ratio(mean(&|it| number(it, "cpu_percent")) / 100.0),
        memory: BasisPoints::from_ratio(mean(&|it| number(it, "memory_percent")) / 100.0),
        network: BasisPoints::from_ratio(mean(&network)),
        psi_cpu: BasisPoints::ZERO,
        // Figures of a node's containers together, which would be no replica's.
        in_flight: None,
        latency_us: None,
        age_ms: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proposed_json_becomes_a_load() {
        let answer = serde_json::json!({"node": "worker-1", "timestamp": 1, "containers": [
            {"service_name": "web", "cpu_percent": 40.0, "memory_percent": 10.0, "network_rx_mbps": 15.0, "network_tx_mbps": 5.0},
            {"service_name": "web", "cpu_percent": 60.0, "memory_percent": 30.0, "network_rx_mbps": 0.0, "network_tx_mbps": 0.0},
            {"service_name": "other", "cpu_percent": 99.0, "memory_percent": 99.0},
        ]});
        let web = load(&answer, "web").expect("known");
        assert_eq!((web.cpu.percent(), web.memory.percent(), web.network.percent()), (50.0, 20.0, 10.0));
        assert_eq!(load(&answer, "nameless").map(|it| it.memory), Some(BasisPoints::from_ratio(1.39 / 3.0)));
        assert_eq!(load(&serde_json::json!({"containers": []}), "web"), None);
        assert_eq!(load(&serde_json::json!([]), "web"), None);
    }
}
