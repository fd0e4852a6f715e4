//! The algorithms that pick a replica: pure, one to a module, no clock, the randomness passed in.
//!
//! They see only replicas that may be used: health, drain, breaker, bounds and slow start were applied by
//! [`crate::choose`]. Of equal ones that is picked which has not been for longest: with "the first of the lowest" one of
//! several idle replicas would get all the traffic, and by lot some would get two requests in a row (in a simulated queue,
//! [`queue`], a tenth more at p99.9).

pub mod hcl;
pub mod hybrid;
pub mod lease;
pub mod metrics;
#[cfg(test)]
mod queue;
pub mod round_robin;

use fastrand::Rng;
use swarmguard_common::labels::Algorithm;

/// What an algorithm may know of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Requests in flight there from this balancer, leases that expired left out.
    pub leases: u32,
    /// Requests in flight there from elsewhere, as its node's agent counts them; 0 without fresh figures.
    pub others: u32,
    /// Weighted sum of CPU, memory and network, 0 to 100; `None` without fresh figures.
    pub score: Option<f32>,
    /// Expected time to the first byte of an answer with nothing else in flight, in microseconds; `None` before the
    /// first answer.
    pub latency_us: Option<f32>,
    /// CPU or PSI say that its node or its limit is exhausted.
    pub strained: bool,
    /// Picks of others since it was picked itself.
    pub rested: u32,
}

/// How a replica came to be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// By the algorithm asked for.
    Algorithm,
    /// By a simpler one, because figures were missing.
    Fallback(Algorithm),
    /// To learn how it does: nothing was heard from it for long.
    Exploration,
    /// By the client's cookie.
    Sticky,
}

/// What the algorithms are told besides the candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// Weight of one lease against a score point in [`Algorithm::Hybrid`].
    pub lease_weight: f32,
    /// Whether missing figures may be answered by a simpler algorithm.
    pub fallback: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { lease_weight: 10.0, fallback: true }
    }
}

/// Picks one of `candidates`; `turn` counts up from pick to pick. `None` where there are none, or where figures are
/// missing and fallback is switched off.
pub fn pick(
    algorithm: Algorithm,
    candidates: &[Candidate],
    tuning: Tuning,
    turn: u64,
    rng: &mut Rng,
) -> Option<(usize, Reason)> {
    let index = match algorithm {
        Algorithm::RoundRobin => round_robin::pick(candidates.len(), turn),
        Algorithm::Lease => lease::pick(candidates, rng),
        Algorithm::Metrics => metrics::pick(candidates, rng),
        Algorithm::Hybrid => hybrid::pick(candidates, tuning.lease_weight, rng),
        Algorithm::Hcl => hcl::pick(candidates, rng),
    };
    if let Some(index) = index {
        return Some((index, Reason::Algorithm));
    }
    // Figures are missing: requests in flight are always known, and where not even they were asked for, it is in turn.
    let (index, fallback) = match algorithm {
        _ if !tuning.fallback => return None,
        Algorithm::Hybrid | Algorithm::Hcl => (lease::pick(candidates, rng)?, Algorithm::Lease),
        _ => (round_robin::pick(candidates.len(), turn)?, Algorithm::RoundRobin),
    };
    Some((index, Reason::Fallback(fallback)))
}

/// Index of the candidate with the lowest key, of several the one that has rested longest, of those again any. Those
/// without a key are left out.
fn lowest<K: PartialOrd + Copy>(
    candidates: &[Candidate],
    key: impl Fn(&Candidate) -> Option<K>,
    rng: &mut Rng,
) -> Option<usize> {
    let mut best: Option<(usize, K, u32)> = None;
    let mut ties = 1_u32;
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(key) = key(candidate) else { continue };
        let rested = candidate.rested;
        match best {
            Some((_, least, most)) if key == least && rested == most => {
                // Reservoir sampling: the n-th equal one replaces the choice with probability 1/n.
                ties += 1;
                if rng.u32(..ties) == 0 {
                    best = Some((index, key, rested));
                }
            }
            Some((_, least, most)) if key > least || (key == least && rested < most) => {}
            _ => {
                ties = 1;
                best = Some((index, key, rested));
            }
        }
    }
    best.map(|(index, ..)| index)
}

/// Figures are as far off: over a second requests come unevenly, and CPU time with them. In a simulated queue ([`queue`])
/// half of it still sent bursts to whoever had looked idle.
const FIGURE_ERROR: f32 = 15.0;

/// Who has the lowest of these figures, or as good as that: of them the fewest in flight.
fn lowest_figure(
    candidates: &[Candidate],
    figure: impl Fn(&Candidate) -> f32,
    rng: &mut Rng,
) -> Option<usize> {
    let least = candidates.iter().map(&figure).fold(f32::INFINITY, f32::min);
    let near = |candidate: &Candidate| figure(candidate) <= least + FIGURE_ERROR;
    lowest(candidates, |candidate| near(candidate).then_some(candidate.leases), rng)
}

/// Mean of the scores that are there; `None` where fewer than half of the candidates have one. A replica without a
/// figure counts as average: it is neither flooded nor starved for being unknown.
fn mean_score(candidates: &[Candidate]) -> Option<f32> {
    let (mut sum, mut known) = (0.0_f32, 0_u16);
    for score in candidates.iter().filter_map(|candidate| candidate.score) {
        sum += score;
        known = known.saturating_add(1);
    }
    let enough = known > 0 && usize::from(known) * 2 >= candidates.len();
    enough.then(|| sum / f32::from(known))
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{Algorithm, Candidate, Reason, Tuning, lease, pick};

    fn candidate() -> impl Strategy<Value = Candidate> {
        let score = prop::option::of(0.0_f32..100.0);
        let latency = prop::option::of(1.0_f32..1e7);
        (0_u32..50, 0_u32..50, score, latency, any::<bool>()).prop_map(
            |(leases, others, score, latency_us, strained)| Candidate {
                leases,
                others,
                score,
                latency_us,
                strained,
                rested: 0,
            },
        )
    }

    proptest! {
        #[test]
        fn every_algorithm_picks_one_that_is_there(
            candidates in prop::collection::vec(candidate(), 0..40), seed: u64, turn: u64,
        ) {
            let mut rng = Rng::with_seed(seed);
            for (_, algorithm) in Algorithm::ALL {
                let picked = pick(algorithm, &candidates, Tuning::default(), turn, &mut rng);
                prop_assert_eq!(picked.is_some(), !candidates.is_empty());
                prop_assert!(picked.is_none_or(|(index, _)| index < candidates.len()));
            }
        }

        #[test]
        fn lease_never_picks_more_loaded_than_the_least(
            candidates in prop::collection::vec(candidate(), 1..40), seed: u64,
        ) {
            let index = lease::pick(&candidates, &mut Rng::with_seed(seed)).expect("there are some");
            let least = candidates.iter().map(|candidate| candidate.leases).min();
            prop_assert_eq!(Some(candidates[index].leases), least);
        }
    }

    /// How 10,000 picks spread when each request ends before the next begins, so that everything is always a tie.
    fn spread(algorithm: Algorithm, candidates: &[Candidate]) -> Vec<u32> {
        let mut rng = Rng::with_seed(7);
        let mut hits = vec![0; candidates.len()];
        for turn in 0..10_000 {
            let (index, _) = pick(algorithm, candidates, Tuning::default(), turn, &mut rng).expect("some");
            hits[index] += 1;
        }
        hits
    }

    #[test]
    fn equal_replicas_share_equally_under_every_algorithm() {
        let equal = Candidate { score: Some(20.0), latency_us: Some(900.0), ..Candidate::default() };
        for (word, algorithm) in Algorithm::ALL {
            let hits = spread(algorithm, &[equal; 4]);
            assert!(hits.iter().all(|hits| (2_200..2_800).contains(hits)), "{word}: {hits:?}");
        }
    }

    #[test]
    fn without_figures_each_falls_back_as_documented() {
        let blind = [Candidate::default(); 3];
        let reason = |algorithm| {
            pick(algorithm, &blind, Tuning::default(), 0, &mut Rng::with_seed(1)).map(|(_, reason)| reason)
        };
        assert_eq!(reason(Algorithm::Metrics), Some(Reason::Fallback(Algorithm::RoundRobin)));
        assert_eq!(reason(Algorithm::Hybrid), Some(Reason::Fallback(Algorithm::Lease)));
        assert_eq!(reason(Algorithm::Hcl), Some(Reason::Fallback(Algorithm::Lease)));
        assert_eq!(reason(Algorithm::Lease), Some(Reason::Algorithm));
        let strict = Tuning { fallback: false, ..Tuning::default() };
        assert_eq!(pick(Algorithm::Metrics, &blind, strict, 0, &mut Rng::with_seed(1)), None);
    }
}
