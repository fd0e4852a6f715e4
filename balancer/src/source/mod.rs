//! Where replicas come from: coordinators over QUIC, `tasks.<service>` in DNS, or a fixed list.
//!
//! Each source makes a [`Picture`]; [`crate::registry`] turns pictures into what workers see.

pub mod addresses;
pub mod agents;
pub mod best;
pub mod dns;
pub mod feed;
pub mod fixed;

use std::net::SocketAddr;

use swarmguard_common::{domain::TaskId, labels::RouteLabels, wire::routes::ReplicaLoad};

/// All balanced services as one source sees them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// Services in a stable order.
    pub services: Vec<ServicePicture>,
}

/// One service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePicture {
    /// Its ID, or its name where there is no other.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its labels say, or defaults.
    pub labels: RouteLabels,
    /// Its replicas.
    pub replicas: Vec<ReplicaPicture>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaPicture {
    /// Its task, or one made from the address.
    pub task: TaskId,
    /// Its node, or the name it was found under.
    pub node: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// Whether it may take requests.
    pub ready: bool,
    /// Whether it is about to be stopped.
    pub draining: bool,
    /// Its load, where known.
    pub load: Option<ReplicaLoad>,
}

/// Labels of a service that has none: everything to it, with defaults.
pub fn labels(port: u16) -> RouteLabels {
    RouteLabels::of_port(port)
}

/// A replica of which only the address is known: it counts as ready, health checks say otherwise if need be.
pub fn found_at(address: SocketAddr, node: &str) -> Option<ReplicaPicture> {
    let digits: String = address
        .to_string()
        .chars()
        .filter_map(|it| match it {
            '.' => Some('d'),
            ':' => Some('c'),
            it => it.is_ascii_alphanumeric().then_some(it),
        })
        .collect();
    let task = format!("at{digits}").parse().ok()?;
    Some(ReplicaPicture { task, node: node.into(), address, ready: true, draining: false, load: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_addresses_are_different_tasks() {
        let task = |text: &str| found_at(text.parse().expect("an address"), "n").expect("a task").task;
        assert_ne!(task("10.0.0.1:80"), task("10.0.0.18:0"));
        assert_ne!(task("[fd00::1]:80"), task("[fd00::18]:0"));
    }
}
