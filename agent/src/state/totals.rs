//! What containers have used since the agent watches them, for Prometheus: counters that a scrape every 15 s loses
//! nothing of. Of a service they only grow as long as it has a container here, whichever of its containers come and go.

use std::collections::BTreeMap;

use super::container::Container;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// CPU time, in microseconds.
    Cpu,
    /// Periods of `cpu.max` that passed.
    Periods,
    /// Of those, with the container held back.
    Throttled,
    /// Bytes received.
    Received,
    /// Bytes sent.
    Sent,
    /// Time in which some task waited for a CPU, in microseconds.
    StalledCpu,
    /// The same for memory.
    StalledMemory,
    /// The same for disks.
    StalledIo,
    /// Processes killed for want of memory.
    OomKills,
    /// Time that tasks together waited for a CPU, in nanoseconds.
    RunQueue,
}

const KINDS: usize = Counted::RunQueue as usize + 1;

/// A value of each; `None` is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([Option<u64>; KINDS]);

impl Totals {
    /// One of them.
    pub fn get(&self, what: Counted) -> Option<u64> {
        self.0[what as usize]
    }

    pub(super) fn set(&mut self, what: Counted, value: Option<u64>) {
        self.0[what as usize] = value;
    }

    /// Takes over what was not known before.
    pub(super) fn fill(&mut self, newest: &Self) {
        for (first, newest) in self.0.iter_mut().zip(newest.0) {
            *first = first.or(newest);
        }
    }

    /// What came since `first`. A counter that fell began anew, so all of it is new.
    fn since(&self, first: &Self) -> Self {
        let mut grown = *self;
        for (value, first) in grown.0.iter_mut().zip(first.0) {
            *value = value.zip(first).map(|(value, first)| value.checked_sub(first).unwrap_or(value));
        }
        grown
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).wrapping_add(more));
            }
        }
    }
}

impl Container {
    /// What it has used since it is watched.
    pub fn totals(&self) -> Totals {
        self.counters().since(&self.first)
    }
}

/// What ended containers had used, by the name of their service, for services of which others still run here.
#[derive(Debug, Default)]
pub(super) struct Ended(BTreeMap<String, Totals>);

impl Ended {
    /// A container of a service ended. `others` says whether the service has more of them here: without, its counters end,
    /// and may begin at nothing when it comes back, as Prometheus expects of counters.
    pub(super) fn add(&mut self, service: &str, totals: &Totals, others: bool) {
        if others {
            self.0.entry(service.to_owned()).or_default().add(totals);
        } else {
            self.0.remove(service);
        }
    }
}

/// The containers of one service together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceSums {
    /// How many.
    pub containers: u64,
    /// What they and those before them have used.
    pub totals: Totals,
    /// Working set of all of them, in bytes.
    pub memory_bytes: u64,
    /// Requests in flight at all of them, where the kernel follows requests.
    pub in_flight: Option<u64>,
    /// The highest CPU utilisation of one of them.
    pub cpu_most: Option<f64>,
    /// The highest memory utilisation.
    pub memory_most: Option<f64>,
}

impl super::Agent {
    /// The containers that run here, by the name of their service; empty for those of none.
    pub fn sums(&self) -> BTreeMap<String, ServiceSums> {
        let mut sums: BTreeMap<String, ServiceSums> = BTreeMap::new();
        for container in self.containers.values() {
            let service = self.service_of(container).unwrap_or_default();
            if !sums.contains_key(service) {
                let totals = self.ended.0.get(service).copied().unwrap_or_default();
                sums.insert(service.to_owned(), ServiceSums { totals, ..ServiceSums::default() });
            }
            let Some(sum) = sums.get_mut(service) else { continue };
            let figures = &container.figures;
            sum.containers += 1;
            sum.totals.add(&container.totals());
            sum.memory_bytes += figures.memory_bytes.unwrap_or(0);
            if let Some(in_flight) = figures.in_flight {
                *sum.in_flight.get_or_insert(0) += u64::from(in_flight);
            }
            sum.cpu_most = most(sum.cpu_most, figures.cpu);
            sum.memory_most = most(sum.memory_most, figures.memory);
        }
        sums
    }
}

fn most(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.into_iter().chain(other).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(cpu: u64) -> Totals {
        let mut totals = Totals::default();
        totals.set(Counted::Cpu, Some(cpu));
        totals
    }

    #[test]
    fn what_was_used_before_it_was_watched_does_not_count() {
        let mut first = Totals::default();
        first.fill(&totals(500));
        first.fill(&totals(700));
        assert_eq!(totals(800).since(&first).get(Counted::Cpu), Some(300));
        assert_eq!(totals(20).since(&first).get(Counted::Cpu), Some(20), "a counter that began anew");
        assert_eq!(Totals::default().since(&first).get(Counted::Cpu), None);
    }

    #[test]
    fn what_ended_containers_used_is_kept_as_long_as_others_run() {
        let mut ended = Ended::default();
        ended.add("web", &totals(5), true);
        ended.add("web", &totals(7), true);
        assert_eq!(ended.0["web"].get(Counted::Cpu), Some(12));
        ended.add("web", &totals(7), false);
        assert!(ended.0.is_empty());
    }
}
