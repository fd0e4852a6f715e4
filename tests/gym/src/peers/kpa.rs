//! Knative's pod autoscaler with its defaults: requests in flight over 60 s, over 6 s in panic (from twice what the ready
//! pods can take), 70 % of what a pod may have at once, at most a thousandfold up and halved down, every 2 s.

use std::{collections::VecDeque, time::Duration};

use super::{Every, bounds, replicas, scale};
use crate::{
    Time,
    controller::{Controller, Stage},
    machines::Machines,
    number::{count, real_len},
};

const TICK: Duration = Duration::from_secs(2);
const SCRAPE: Duration = Duration::from_secs(1);
const STABLE: Duration = Duration::from_secs(60);
const PANIC: Duration = Duration::from_secs(6);
const PANIC_FROM: f64 = 2.0;
const UTILISATION: f64 = 0.7;
const MOST_UP: f64 = 1_000.0;
const MOST_DOWN: f64 = 2.0;

/// The rule, with its memory.
pub struct Kpa {
    tick: Every,
    scrape: Every,
    services: Vec<Memory>,
}

#[derive(Default)]
struct Memory {
    in_flight: VecDeque<(Time, f64)>,
    panics_since: Option<Time>,
    most_in_panic: u64,
}

impl Memory {
    fn mean(&self, now: Time, window: Duration) -> f64 {
        let within: Vec<f64> =
            self.in_flight.iter().filter(|(at, _)| now - *at <= window).map(|(_, it)| *it).collect();
        if within.is_empty() { 0.0 } else { within.iter().sum::<f64>() / real_len(within.len()) }
    }
}

impl Kpa {
    /// One that has seen nothing.
    pub fn new(machines: &Machines) -> Self {
        Self {
            tick: Every::new(TICK),
            scrape: Every::new(SCRAPE),
            services: machines.services.iter().map(|_| Memory::default()).collect(),
        }
    }

    fn judge(&mut self, stage: &mut Stage<'_>, service: usize) {
        let (now, machines) = (stage.now, stage.machines);
        let Some((min, max)) = bounds(machines, service) else { return };
        let spec = machines.spec(service);
        let current = replicas(stage, service);
        if current == 0 || spec.demand.is_nothing() {
            return;
        }
        let of_service = || machines.replicas.values().filter(|replica| replica.service == service);
        let ready = of_service().filter(|replica| replica.serving_since.is_some()).count();
        let ready = real_len(ready).max(1.0);
        // What a pod may have at once (containerConcurrency) is what it can work at.
        let node_cpus = |node: usize| machines.scenario().nodes[node].cpus;
        let Some(at_once) = of_service().map(|it| it.workers(spec, node_cpus(it.node))).min() else { return };
        let target = real_len(at_once) * UTILISATION;
        let memory = &mut self.services[service];
        let held = |wanted: f64| wanted.clamp((ready / MOST_DOWN).floor(), (ready * MOST_UP).ceil());
        let (stable, panic) = (memory.mean(now, STABLE), memory.mean(now, PANIC));
        let over = (panic / target).ceil() / ready >= PANIC_FROM;
        if over {
            memory.panics_since = Some(now);
        } else if memory.panics_since.is_some_and(|since| now - since > STABLE) {
            memory.panics_since = None;
            memory.most_in_panic = 0;
        }
        let mut wanted = count(held((stable / target).ceil()));
        if memory.panics_since.is_some() {
            wanted = wanted.max(count(held((panic / target).ceil())));
            memory.most_in_panic = memory.most_in_panic.max(wanted);
            wanted = memory.most_in_panic;
        }
        let text =
            format!("{stable:.1} requests in flight in a minute, {panic:.1} in 6 s, {target:.1} for each");
        scale(stage, service, wanted.clamp(min, max), text);
    }
}

impl Controller for Kpa {
    fn step(&mut self, stage: &mut Stage<'_>) {
        if self.scrape.is_due(stage.now, 0.0) {
            for (service, memory) in self.services.iter_mut().enumerate() {
                let of_service = stage.machines.replicas.values().filter(|it| it.service == service);
                let in_flight = of_service.map(|replica| replica.station.in_flight()).sum();
                memory.in_flight.push_back((stage.now, real_len(in_flight)));
                memory.in_flight.retain(|(at, _)| stage.now - *at <= STABLE);
            }
        }
        if self.tick.is_due(stage.now, 0.5) {
            for service in 0..stage.machines.services.len() {
                self.judge(stage, service);
            }
        }
    }
}
