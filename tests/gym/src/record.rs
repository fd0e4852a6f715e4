//! What happened in a run, second by second, as it really was: no agent's view of it.

use crate::{
    Time,
    machines::{Machines, Tally},
    number::{real, real_len},
};
use swarmguard_tests::swarm_model::{ModelService, SwarmModel};

/// A service in one second.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceSecond {
    /// Requests a second.
    pub rate: f64,
    /// CPUs asked for, whatever the number of replicas.
    pub offered: f64,
    /// What came of its requests.
    pub tally: Tally,
    /// Replicas that Swarm is asked for.
    pub replicas: u64,
    /// Containers, those that start or stop included.
    pub containers: u64,
}

/// A node in one second, as shares of what it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeSecond {
    /// CPU used.
    pub used: f64,
    /// CPU wanted.
    pub wanted: f64,
    /// Memory that cannot be had back.
    pub memory: f64,
}

/// The containers of a service on a node in one second.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Service by index.
    pub service: usize,
    /// Node by index.
    pub node: usize,
    /// CPUs that one of them wants, on average.
    pub wanted: f64,
    /// The largest share of its `memory.max` that one of them needs.
    pub need: f64,
}

/// One second.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// By service.
    pub services: Vec<ServiceSecond>,
    /// By node.
    pub nodes: Vec<NodeSecond>,
    /// Where containers were.
    pub places: Vec<Place>,
}

/// All seconds of a run.
#[derive(Clone, Debug)]
pub struct Record {
    /// The first instant.
    pub start: Time,
    /// In order.
    pub seconds: Vec<Second>,
    sums: Vec<NodeSecond>,
    steps: u32,
}

impl Record {
    /// Empty.
    pub fn new(start: Time, nodes: usize) -> Self {
        Self { start, seconds: Vec::new(), sums: vec![NodeSecond::default(); nodes], steps: 0 }
    }

    /// Which second an instant is in.
    pub fn second(&self, at: Time) -> usize {
        usize::try_from((at - self.start).as_secs()).unwrap_or(usize::MAX)
    }

    /// The machines went a step on.
    pub fn step(&mut self, machines: &mut Machines, swarm: &SwarmModel) {
        for ((sum, node), spec) in self.sums.iter_mut().zip(&machines.nodes).zip(&machines.scenario().nodes) {
            sum.used += node.used / spec.cpus;
            sum.wanted += node.wanted / spec.cpus;
            sum.memory += node.need / real(spec.memory);
        }
        self.steps += 1;
        if self.steps == 10 {
            self.close(machines, swarm);
        }
    }

    fn close(&mut self, machines: &mut Machines, swarm: &SwarmModel) {
        let steps = f64::from(std::mem::take(&mut self.steps));
        let mean = |sum: &NodeSecond| NodeSecond {
            used: sum.used / steps,
            wanted: sum.wanted / steps,
            memory: sum.memory / steps,
        };
        let mut second = Second { nodes: self.sums.iter().map(mean).collect(), ..Second::default() };
        self.sums.fill(NodeSecond::default());
        for index in 0..machines.services.len() {
            let service = &machines.services[index];
            let replicas = swarm.services.get(&service.id).map_or(0, ModelService::replicas);
            let (rate, offered) = (service.rate, service.offered);
            let containers = machines.replicas.values().filter(|replica| replica.service == index).count();
            let tally = machines.take_tally(index);
            let containers = u64::try_from(containers).unwrap_or(u64::MAX);
            second.services.push(ServiceSecond { rate, offered, tally, replicas, containers });
        }
        for replica in machines.replicas.values() {
            let limit = machines.spec(replica.service).memory.map_or(f64::INFINITY, real);
            let need = replica.need / limit;
            let (service, node) = (replica.service, replica.node);
            match second.places.iter_mut().find(|place| (place.service, place.node) == (service, node)) {
                Some(place) => {
                    place.wanted = place.wanted.midpoint(replica.wanted);
                    place.need = place.need.max(need);
                }
                None => second.places.push(Place { service, node, wanted: replica.wanted, need }),
            }
        }
        self.seconds.push(second);
    }

    /// Mean of a figure over seconds; 0 where there are none.
    pub fn mean(&self, from: usize, until: usize, of: impl Fn(&Second) -> f64) -> f64 {
        let until = until.min(self.seconds.len());
        let within = self.seconds.get(from.min(until)..until).unwrap_or_default();
        within.iter().map(of).sum::<f64>() / real_len(within.len().max(1))
    }

    /// What came of a service's requests over seconds.
    pub fn tally(&self, from: usize, until: usize, service: usize) -> Tally {
        let until = until.min(self.seconds.len());
        let mut all = Tally::default();
        for second in self.seconds.get(from.min(until)..until).unwrap_or_default() {
            all.add(&second.services[service].tally);
        }
        all
    }
}
