//! A fixed list of replicas (`WORKER_NODES`): no discovery, for trying the balancer alone.

use std::net::SocketAddr;

use super::{Picture, ServicePicture, dns::Names, dns::split, found_at, labels};

/// Resolves the list's names and makes one service of it that takes every request. A name that does not resolve is
/// left out until it does.
pub async fn picture(names: &Names, nodes: &[String], service: &str, port: u16) -> Picture {
    let mut replicas = Vec::new();
    for node in nodes {
        let (host, port) = split(node, port);
        for address in names.resolve(host).await.unwrap_or_default() {
            replicas.extend(found_at(SocketAddr::new(address, port), node));
        }
    }
    replicas.sort_by(|a, b| a.task.cmp(&b.task));
    replicas.dedup_by(|a, b| a.task == b.task);
    Picture {
        services: vec![ServicePicture {
            id: service.into(),
            name: service.into(),
            labels: labels(port),
            replicas,
        }],
    }
}
