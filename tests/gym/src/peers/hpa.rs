//! Kubernetes' HorizontalPodAutoscaler v2 with its defaults: every 15 s, 10 % tolerance, up at most +100 % or 4 pods in 15 s,
//! down by the highest recommendation of 300 s; pods that are not ready or not yet measured are taken conservatively.

use std::{collections::VecDeque, time::Duration};

use super::{Every, Meter, bounds, replicas, requested, scale};
use crate::{
    Time,
    controller::{Controller, Stage},
    machines::Machines,
    number::{count, real},
};

const SYNC: Duration = Duration::from_secs(15);
const METRICS: Duration = Duration::from_secs(15);
const TOLERANCE: f64 = 0.1;
const DOWN_WINDOW: Duration = Duration::from_secs(300);
const UP_PERIOD: Duration = Duration::from_secs(15);
/// A pod's first measurement counts when it covers a time in which it was ready.
const MEASURED_AFTER: Duration = Duration::from_secs(15);

/// The rule, with its memory.
pub struct Hpa {
    sync: Every,
    scrape: Every,
    meter: Meter,
    phases: (f64, f64),
    services: Vec<Memory>,
}

#[derive(Default)]
struct Memory {
    recommended: VecDeque<(Time, u64)>,
    added: VecDeque<(Time, u64)>,
}

impl Hpa {
    /// Its loops begin at moments that the seed chooses.
    pub fn new(machines: &Machines, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x49);
        Self {
            sync: Every::new(SYNC),
            scrape: Every::new(METRICS),
            meter: Meter::default(),
            phases: (rng.f64(), rng.f64()),
            services: machines.services.iter().map(|_| Memory::default()).collect(),
        }
    }

    fn judge(&mut self, stage: &mut Stage<'_>, service: usize) {
        let Some((min, max)) = bounds(stage.machines, service) else { return };
        let current = replicas(stage, service);
        if current == 0 {
            return;
        }
        let Some((wanted, ratio)) = self.desired(stage, service, current) else { return };
        let memory = &mut self.services[service];
        let now = stage.now;
        memory.recommended.push_back((now, wanted));
        memory.recommended.retain(|(at, _)| now - *at <= DOWN_WINDOW);
        memory.added.retain(|(at, _)| now - *at <= UP_PERIOD);
        let highest = memory.recommended.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted);
        let stable = if wanted < current { highest.min(current) } else { wanted };
        let added: u64 = memory.added.iter().map(|(_, added)| added).sum();
        let before = current.saturating_sub(added);
        let limit = (before * 2).max(before + 4);
        let next = stable.min(limit.max(current)).clamp(min, max);
        if next > current {
            memory.added.push_back((now, next - current));
        }
        scale(stage, service, next, format!("use is {:.0} % of the target", ratio * 100.0));
    }

    fn desired(&self, stage: &Stage<'_>, service: usize, current: u64) -> Option<(u64, f64)> {
        let machines = stage.machines;
        let target = machines.spec(service).policy.thresholds.cpu_high.ratio() * requested(machines, service);
        let (mut used, mut measured, mut waiting) = (0.0, 0_u64, 0_u64);
        for replica in machines.replicas.values().filter(|replica| replica.service == service) {
            let ready = replica.serving_since.is_some_and(|since| stage.now - since >= MEASURED_AFTER);
            match self.meter.used.get(&replica.task).filter(|_| ready) {
                Some(cpus) => {
                    used += cpus;
                    measured += 1;
                }
                None => waiting += 1,
            }
        }
        if measured == 0 {
            return None;
        }
        let ratio = used / real(measured) / target;
        if waiting == 0 {
            let keeps = (ratio - 1.0).abs() <= TOLERANCE;
            return Some((if keeps { current } else { count((ratio * real(measured)).ceil()) }, ratio));
        }
        // Those that are not ready use nothing when more are wanted, and all they should when fewer are.
        let all = measured + waiting;
        let assumed = if ratio < 1.0 { real(waiting) * target } else { 0.0 };
        let again = (used + assumed) / real(all) / target;
        let flips = (ratio < 1.0) != (again < 1.0);
        let keeps = (again - 1.0).abs() <= TOLERANCE || flips;
        Some((if keeps { current } else { count((again * real(all)).ceil()) }, ratio))
    }
}

impl Controller for Hpa {
    fn step(&mut self, stage: &mut Stage<'_>) {
        if stage.measured && self.scrape.is_due(stage.now, self.phases.0) {
            self.meter.look(stage.now, stage.machines);
        }
        if self.sync.is_due(stage.now, self.phases.1) {
            for service in 0..stage.machines.services.len() {
                self.judge(stage, service);
            }
        }
    }
}
