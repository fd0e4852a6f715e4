//! One replica's requests: a queue before workers that share the CPU time the replica is given (M/G/k, k workers).
//!
//! Within a step the CPU time is constant, so what is worked at is kept by the *virtual* time at which it is done: virtual
//! time runs as fast as one request is worked at, so an event costs the logarithm of the requests at work.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::number::{count, real, real_len};

/// A request that has come and is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    arrived_us: u64,
    work_ns: u64,
}

/// What a station may do in a step.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Start and end, microseconds.
    pub from_us: u64,
    /// End.
    pub until_us: u64,
    /// CPUs that it may use.
    pub cpus: f64,
    /// CPUs of these that something else in the container wants all the time.
    pub burn: f64,
    /// Work done in a microsecond on a whole CPU, in microseconds of work.
    pub speed: f64,
    /// Requests at work at once.
    pub workers: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// A request that waited longer is given up.
    pub timeout_us: u64,
    /// How long each answer waits for the back end, if there is one.
    pub backend_us: Option<u64>,
}

/// What came of a step.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How long each answered request took, microseconds.
    pub answered_us: Vec<u64>,
    /// Requests refused or given up.
    pub failed: u64,
    /// Requests that began.
    pub started: u64,
    /// CPU time used, in CPUs times microseconds.
    pub used_us: f64,
    /// Calls of the back end.
    pub calls: u64,
}

/// A replica's requests.
#[derive(Clone, Debug, Default)]
pub struct Station {
    waiting: VecDeque<Request>,
    /// At work on the CPU: virtual time at which each is done, and when it came.
    working: BinaryHeap<Reverse<(u64, u64)>>,
    /// At the back end: when it answers, and when the request came.
    away: BinaryHeap<Reverse<(u64, u64)>>,
    /// Virtual time.
    virtual_ns: f64,
}

impl Station {
    /// Requests that have come and are not answered.
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + self.working.len() + self.away.len()
    }

    /// Requests that want the CPU now, as far as there are workers.
    pub fn wants(&self, workers: usize) -> usize {
        (self.working.len() + self.waiting.len())
            .min(workers.saturating_sub(self.away.len()).max(self.working.len()))
    }

    /// CPUs that could be used within a step of so many nanoseconds of work: what is at work may be done before its end.
    pub fn claims(&self, workers: usize, step_ns: f64) -> f64 {
        let mut left_ns: f64 = self
            .working
            .iter()
            .map(|Reverse((done, _))| (real(*done) - self.virtual_ns).clamp(0.0, step_ns))
            .sum();
        let free = real_len(workers.saturating_sub(self.working.len() + self.away.len())) * step_ns;
        let mut waiting_ns = 0.0;
        for request in &self.waiting {
            waiting_ns += real(request.work_ns);
            if waiting_ns >= free {
                break;
            }
        }
        left_ns += waiting_ns.min(free);
        left_ns / step_ns
    }

    /// How long the request that waits longest has waited, microseconds.
    pub fn longest_wait_us(&self, now_us: u64) -> u64 {
        self.waiting.front().map_or(0, |request| now_us.saturating_sub(request.arrived_us))
    }

    /// Everything that was here is lost.
    pub fn lose_all(&mut self) -> u64 {
        let lost = self.in_flight();
        *self = Self::default();
        u64::try_from(lost).unwrap_or(u64::MAX)
    }

    /// Works through a step; `arrivals` are (time, nanoseconds of work), in order.
    pub fn run(&mut self, allowed: &Allowance, arrivals: &[(u64, u64)], out: &mut Outcome) {
        let mut t = real(allowed.from_us);
        let until = real(allowed.until_us);
        let mut next = 0;
        self.admit(allowed, count(t), out);
        loop {
            let rate = self.rate(allowed);
            let at_arrival = arrivals.get(next).map_or(f64::INFINITY, |(at, _)| real(*at).max(t));
            let at_answer = self.away.peek().map_or(f64::INFINITY, |Reverse((at, _))| real(*at).max(t));
            let at_done = match self.working.peek() {
                Some(Reverse((done, _))) if rate > 0.0 => {
                    t + (real(*done) - self.virtual_ns).max(0.0) / (rate * 1_000.0)
                }
                _ => f64::INFINITY,
            };
            let event = at_arrival.min(at_answer).min(at_done).min(until);
            out.used_us += (event - t) * self.busy(allowed);
            self.virtual_ns += (event - t) * rate * 1_000.0;
            t = event;
            if t >= until {
                return;
            }
            let now = count(t);
            if at_done <= t {
                if let Some(Reverse((_, arrived))) = self.working.pop() {
                    match allowed.backend_us {
                        Some(wait) => {
                            out.calls += 1;
                            self.away.push(Reverse((now + wait, arrived)));
                        }
                        None => out.answered_us.push(now.saturating_sub(arrived)),
                    }
                }
            } else if at_answer <= t {
                if let Some(Reverse((_, arrived))) = self.away.pop() {
                    out.answered_us.push(now.saturating_sub(arrived));
                }
            } else {
                let (at, work_ns) = arrivals[next];
                next += 1;
                out.started += 1;
                if self.waiting.len() >= allowed.queue {
                    out.failed += 1;
                } else {
                    self.waiting.push_back(Request { arrived_us: at, work_ns });
                }
            }
            self.admit(allowed, now, out);
        }
    }

    fn admit(&mut self, allowed: &Allowance, now_us: u64, out: &mut Outcome) {
        while self.working.len() + self.away.len() < allowed.workers
            && let Some(request) = self.waiting.pop_front()
        {
            if now_us.saturating_sub(request.arrived_us) > allowed.timeout_us {
                out.failed += 1;
                continue;
            }
            let done = count(self.virtual_ns + real(request.work_ns));
            self.working.push(Reverse((done, request.arrived_us)));
        }
        if self.working.is_empty() {
            // Nothing refers to it: back to where it is exact.
            self.virtual_ns = 0.0;
        }
    }

    /// Work done on each request in a microsecond, in microseconds.
    fn rate(&self, allowed: &Allowance) -> f64 {
        let wanted = real_len(self.working.len()) + allowed.burn;
        if wanted <= 0.0 { 0.0 } else { (allowed.cpus / wanted).min(1.0) * allowed.speed }
    }

    fn busy(&self, allowed: &Allowance) -> f64 {
        (real_len(self.working.len()) + allowed.burn).min(allowed.cpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(from_us: u64, cpus: f64, workers: usize) -> Allowance {
        Allowance {
            from_us,
            until_us: from_us + 100_000,
            cpus,
            burn: 0.0,
            speed: 1.0,
            workers,
            queue: 1_000,
            timeout_us: 10_000_000,
            backend_us: None,
        }
    }

    /// Plays a stream of requests of exponential work against one replica; answers the mean time to an answer, in ms.
    fn mean_ms(rate: f64, work_ms: f64, cpus: f64, workers: usize) -> f64 {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut station, mut out) = (Station::default(), Outcome::default());
        let mut next = 0.0;
        for step in 0..60_000_u64 {
            let from = step * 100_000;
            let mut arrivals = Vec::new();
            while next < real(from + 100_000) {
                arrivals.push((count(next), count(-work_ms * 1e6 * (1.0 - rng.f64()).ln())));
                next += -(1.0 - rng.f64()).ln() / rate * 1e6;
            }
            station.run(&allowed(from, cpus, workers), &arrivals, &mut out);
        }
        out.answered_us.iter().map(|us| real(*us)).sum::<f64>() / real_len(out.answered_us.len()) / 1_000.0
    }

    #[test]
    fn one_worker_waits_as_queueing_theory_says() {
        // M/M/1 at 80 %: 1 / (mu - lambda) = 1 / (100 - 80) s.
        let mean = mean_ms(80.0, 10.0, 1.0, 1);
        assert!((mean - 50.0).abs() < 4.0, "{mean} ms");
    }

    #[test]
    fn four_workers_on_four_cpus_wait_less() {
        // M/M/4 at 80 %: Erlang C is 0.596, so 10 + 0.596 x 10 / (4 x 0.2) ms.
        let mean = mean_ms(320.0, 10.0, 4.0, 4);
        assert!((mean - 17.45).abs() < 1.5, "{mean} ms");
    }

    #[test]
    fn a_limit_makes_everything_slower_and_shared_work_is_as_long_on_average() {
        // M/M/1 with processor sharing has the mean of M/M/1.
        let mean = mean_ms(80.0, 10.0, 1.0, 64);
        assert!((mean - 50.0).abs() < 5.0, "{mean} ms");
    }

    #[test]
    fn cpu_use_is_what_was_worked() {
        let (mut station, mut out) = (Station::default(), Outcome::default());
        station.run(&allowed(0, 2.0, 4), &[(0, 30_000_000), (0, 50_000_000)], &mut out);
        assert_eq!(out.answered_us, [30_000, 50_000]);
        assert!((out.used_us - 80_000.0).abs() < 1.0, "{}", out.used_us);
    }

    #[test]
    fn the_back_end_holds_a_worker_and_no_cpu() {
        let (mut station, mut out) = (Station::default(), Outcome::default());
        let one = Allowance { backend_us: Some(50_000), ..allowed(0, 1.0, 1) };
        station.run(&one, &[(0, 10_000_000), (1_000, 10_000_000)], &mut out);
        assert_eq!(out.answered_us, [60_000]);
        assert_eq!(station.in_flight(), 1);
        assert!((out.used_us - 20_000.0).abs() < 1.0, "{}", out.used_us);
    }

    #[test]
    fn what_cannot_wait_is_refused_and_what_waits_too_long_given_up() {
        let (mut station, mut out) = (Station::default(), Outcome::default());
        let small = Allowance { queue: 1, timeout_us: 50_000, ..allowed(0, 1.0, 1) };
        station.run(&small, &[(0, 90_000_000), (1, 1_000), (2, 1_000)], &mut out);
        assert_eq!((out.failed, out.answered_us.len()), (2, 1), "one had no place, one waited 90 ms");
    }
}
