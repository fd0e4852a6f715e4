//! The swarm at a glance, made once a second by the loop and read by as many as like: no reader costs the loop anything.
//! And the last five minutes of every node and service, kept from the same figures.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use swarmguard_common::{
    api::{Balancers, Overview, Series, SeriesOf, SwarmName},
    domain::{NodeId, ServiceId},
};
use tokio::sync::watch;

use crate::proxies::{Askers, Backends};

/// Points kept of each node and service.
const POINTS: usize = 300;
/// Between two points.
const STEP_MS: u64 = 1_000;
/// Nodes and services whose points are kept; a point has 20 bytes.
const MAX_SERIES: usize = 4_000;

/// The newest overview, and what led to it.
#[derive(Debug)]
pub struct Glance {
    swarm: SwarmName,
    newest: watch::Sender<Option<Arc<Overview>>>,
    balancers: watch::Sender<Arc<Balancers>>,
    backends: watch::Sender<Arc<Backends>>,
    askers: OnceLock<Arc<Askers>>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    until_ms: u64,
    nodes: BTreeMap<NodeId, VecDeque<Point>>,
    services: BTreeMap<ServiceId, VecDeque<Point>>,
}

/// One second of a node or a service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    cpu: Option<u8>,
    memory: Option<u8>,
    network: Option<u8>,
    psi: Option<u8>,
    running: Option<u16>,
    in_flight: Option<u32>,
    latency_ms: Option<f32>,
}

impl Glance {
    /// Of a swarm, without anything seen yet.
    pub fn new(swarm: SwarmName) -> Arc<Self> {
        Arc::new(Self {
            swarm,
            newest: watch::Sender::new(None),
            balancers: watch::Sender::default(),
            backends: watch::Sender::default(),
            askers: OnceLock::new(),
            kept: Mutex::default(),
        })
    }

    /// Which swarm.
    pub fn swarm(&self) -> &SwarmName {
        &self.swarm
    }

    /// Takes in what the loop sees now, and answers it to be shared.
    pub fn publish(&self, overview: Overview) -> Arc<Overview> {
        self.keep(&overview);
        let overview = Arc::new(overview);
        self.newest.send_replace(Some(Arc::clone(&overview)));
        overview
    }

    /// Takes in what the balancers say.
    pub fn publish_balancers(&self, balancers: Balancers) {
        self.balancers.send_replace(Arc::new(balancers));
    }

    /// What the balancers said last.
    pub fn balancers(&self) -> Arc<Balancers> {
        Arc::clone(&self.balancers.borrow())
    }

    /// Takes in what proxies may ask about.
    pub fn publish_backends(&self, backends: Backends) {
        self.backends.send_replace(Arc::new(backends));
    }

    /// What proxies may ask about.
    pub fn backends(&self) -> Arc<Backends> {
        Arc::clone(&self.backends.borrow())
    }

    /// From now on proxies that ask are waited for before a replica is stopped.
    pub fn wait_for(&self, askers: Arc<Askers>) {
        // Once in a life.
        let _ = self.askers.set(askers);
    }

    /// The proxies that ask.
    pub fn askers(&self) -> Option<&Arc<Askers>> {
        self.askers.get()
    }

    /// The newest; `None` in the first second.
    pub fn newest(&self) -> Option<Arc<Overview>> {
        self.newest.borrow().clone()
    }

    fn keep(&self, overview: &Overview) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Seconds that the loop missed are unknown, not the same as those beside them.
        let missed = overview.at_ms.saturating_sub(kept.until_ms + STEP_MS / 2) / STEP_MS;
        let missed =
            if kept.until_ms == 0 { 0 } else { usize::try_from(missed).unwrap_or(POINTS).min(POINTS) };
        kept.until_ms = overview.at_ms;
        let Kept { nodes, services, .. } = &mut *kept;
        let of_nodes = overview.nodes.iter().map(|row| {
            let running = Some(u16::try_from(row.replicas).unwrap_or(u16::MAX));
            let (cpu, memory) = (row.cpu_percent, row.memory_percent);
            let (network, psi) = (row.network_percent, row.psi_percent);
            (&row.node, Point { cpu, memory, network, psi, running, ..Point::default() })
        });
        append(nodes, of_nodes, missed);
        #[expect(clippy::cast_possible_truncation, reason = "a latency in milliseconds, to be drawn")]
        let of_services = overview.services.iter().map(|row| {
            let point = Point {
                cpu: row.cpu_percent,
                memory: row.memory_percent,
                running: Some(u16::try_from(row.running).unwrap_or(u16::MAX)),
                in_flight: row.in_flight.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
                latency_ms: row.latency_ms.map(|ms| ms as f32),
                ..Point::default()
            };
            (&row.service, point)
        });
        append(services, of_services, missed);
    }

    /// The last five minutes of a node or service; `None` where it is not known.
    pub fn series(&self, of: SeriesOf) -> Option<Series> {
        let overview = self.newest()?;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, points) = match &of {
            SeriesOf::Node(node) => {
                let row = overview.nodes.iter().find(|row| row.node == *node)?;
                (row.hostname.clone(), kept.nodes.get(node)?)
            }
            SeriesOf::Service(service) => {
                let row = overview.services.iter().find(|row| row.service == *service)?;
                (row.name.clone(), kept.services.get(service)?)
            }
        };
        let share =
            |of: fn(&Point) -> Option<u8>| points.iter().map(|point| of(point).map(f32::from)).collect();
        Some(Series {
            of,
            name,
            until_ms: kept.until_ms,
            step_ms: STEP_MS,
            cpu_percent: share(|point| point.cpu),
            memory_percent: share(|point| point.memory),
            network_percent: share(|point| point.network),
            psi_percent: share(|point| point.psi),
            running: points.iter().map(|point| point.running.map(u32::from)).collect(),
            in_flight: points.iter().map(|point| point.in_flight).collect(),
            latency_ms: points.iter().map(|point| point.latency_ms).collect(),
        })
    }
}

/// Adds one point to each; what is gone is forgotten.
fn append<'a, Id: Ord + Clone + 'a>(
    kept: &mut BTreeMap<Id, VecDeque<Point>>,
    points: impl Iterator<Item = (&'a Id, Point)>,
    missed: usize,
) {
    let mut before = std::mem::take(kept);
    for (id, point) in points.take(MAX_SERIES / 2) {
        let mut ring = before.remove(id).unwrap_or_default();
        if !ring.is_empty() {
            ring.extend(std::iter::repeat_n(Point::default(), missed));
        }
        ring.push_back(point);
        while ring.len() > POINTS {
            ring.pop_front();
        }
        kept.insert(id.clone(), ring);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview(at_ms: u64, cpu: Option<u8>) -> Overview {
        let node = serde_json::json!({
            "node": "n1", "hostname": "m1", "state": ["ok"], "cpu_percent": cpu, "reserved_cpu_millis": 0,
            "cpu_millis": 4000, "reserved_memory_bytes": 0, "memory_bytes": 1, "replicas": 2
        });
        let overview = serde_json::json!({
            "api_version": "v", "version": "v", "at_ms": at_ms, "swarm": {"id": "c"},
            "coordination": {"acting": true, "observe": false, "paused": false, "balancers": 0},
            "health": {"score": 100, "deductions": []}, "banner": [], "nodes": [node], "services": [],
            "actions": [], "alerts": [], "last_day": {"moved": 0, "scaled": 0, "undone": 0}
        });
        serde_json::from_value(overview).expect("an overview")
    }

    #[test]
    fn five_minutes_are_kept_and_seconds_that_were_missed_are_unknown() {
        let glance = Glance::new(SwarmName { id: "c".into(), name: None });
        let node = || SeriesOf::Node("n1".parse().expect("an ID"));
        assert_eq!(glance.series(node()), None);
        glance.publish(overview(10_000, Some(1)));
        glance.publish(overview(11_020, Some(2)));
        // Late by three seconds.
        glance.publish(overview(15_010, Some(3)));
        let series = glance.series(node()).expect("known");
        assert_eq!(series.cpu_percent, [Some(1.0), Some(2.0), None, None, None, Some(3.0)]);
        assert_eq!((series.until_ms, series.name.as_str()), (15_010, "m1"));
        for second in 0..400 {
            glance.publish(overview(16_000 + second * 1_000, Some(9)));
        }
        let series = glance.series(node()).expect("known");
        assert_eq!(series.cpu_percent.len(), 300);
        assert!(series.cpu_percent.iter().all(|cpu| *cpu == Some(9.0)));
        glance.publish(Overview { nodes: Vec::new(), ..overview(500_000, None) });
        assert_eq!(glance.series(node()), None, "what is gone is forgotten");
    }

    #[test]
    fn ages_are_no_news() {
        let (one, mut other) = (overview(1, Some(5)), overview(2, Some(5)));
        other.nodes[0].lease_age_ms = Some(77);
        assert_eq!(one.without_ages(), other.without_ages());
        other.nodes[0].cpu_percent = Some(6);
        assert_ne!(one.without_ages(), other.without_ages());
    }
}
