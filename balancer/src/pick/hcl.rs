//! Hot or cold by requests in flight, then latency: Prequal's lexicographic rule (Wydrowski et al., NSDI 2024), with a
//! veto by CPU and PSI.
//!
//! Not a weighted sum: latency says nothing about a replica that is already overloaded, and requests in flight say
//! little about one that is not. Prequal probes replicas for the latency they expect *at their present load*. Here it
//! is estimated from the balancer's own observations: smoothed time to the first byte with nothing in flight, times
//! the requests that would then be in flight. What is not hot and expects the least is picked.
//!
//! Hot is who has many requests in flight of anybody's, where agents count them: one balancer's own are a fraction only.
//! The latency is of this balancer's own requests by their own number. What others send makes it longer already, and an
//! estimate that knew of them would be wrong by a multiple in the moment in which the agents fall silent.

use fastrand::Rng;

use super::{Candidate, lowest};

/// A replica with more requests in flight than this quantile of all is hot.
const HOT_QUANTILE: f32 = 0.84;

/// Expectations closer than this (as a ratio) count as equal: differences that small are noise, and following noise
/// sends bursts to one replica. In a simulated queue (four replicas, exponential requests, 60 % load) the busiest of
/// equal ones had 12 % above the mean with 1.25 and 5 % with 2; with one at a quarter of the others' speed, or starved
/// for half a second out of two, p99 was 4 to 5 % less.
const NOISE: f32 = 2.0;

/// What is expected of a hot one: infinity, as bits.
const HOT: u32 = f32::INFINITY.to_bits();

/// The quantile is found by counting where it lies below this: among a hundred replicas in a fraction of the time that
/// selecting takes.
const COUNTED: usize = 64;

/// The cold candidate with the lowest expected latency, or the one with the fewest requests where all are hot.
/// `None` where fewer than half of the candidates were ever measured.
pub fn pick(candidates: &[Candidate], rng: &mut Rng) -> Option<usize> {
    let measured = candidates.iter().filter(|candidate| candidate.latency_us.is_some()).count();
    if measured == 0 || measured * 2 < candidates.len() {
        return None;
    }
    let limit = hot_above(candidates);
    coldest(candidates, limit, rng)
        .or_else(|| lowest(candidates, |candidate| Some(in_flight(candidate)), rng))
}

fn coldest(candidates: &[Candidate], limit: f32, rng: &mut Rng) -> Option<usize> {
    let cold = |candidate: &Candidate| !candidate.strained & (count(in_flight(candidate)) <= limit);
    // A replica that was never measured expects nothing: it is tried at once, as often as others tie with it.
    // Compared as bits, which order numbers that are not negative as the numbers themselves, and without a branch, which
    // a processor could not foresee.
    let expected = |candidate: &Candidate| {
        let latency = candidate.latency_us.unwrap_or(0.0) * (count(candidate.leases) + 1.0);
        if cold(candidate) { latency.to_bits() } else { HOT }
    };
    let least = candidates.iter().map(expected).fold(HOT, u32::min);
    let bound = (f32::from_bits(least) * NOISE).to_bits().min(HOT - 1);
    let near = |candidate: &Candidate| expected(candidate) <= bound;
    // Among those that expect the same, the fewest in flight.
    lowest(candidates, |candidate| near(candidate).then(|| in_flight(candidate)), rng)
}

/// The quantile of requests in flight, interpolated, so that it means something for three replicas too.
fn hot_above(candidates: &[Candidate]) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand replicas")]
    let position = HOT_QUANTILE * candidates.len().saturating_sub(1) as f32;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the slice")]
    let below = position.floor() as usize;
    let pair = by_counting(candidates, below).or_else(|| by_selecting(candidates, below));
    pair.map_or(0.0, |(at, next)| count(at) + position.fract() * count(next - at))
}

/// The requests in flight that are number `below` from the bottom, and the next above it (the same where there is none).
/// `None` where those are too many to be counted one by one.
fn by_counting(candidates: &[Candidate], below: usize) -> Option<(u32, u32)> {
    // Two counts in turns: to add to what was written an instant ago is slow.
    let mut replicas = [[0_u32; COUNTED]; 2];
    for (index, candidate) in candidates.iter().enumerate() {
        let leases = usize::try_from(in_flight(candidate)).unwrap_or(usize::MAX);
        replicas[index % 2][leases.min(COUNTED - 1)] += 1;
    }
    let [even, odd] = &replicas;
    let (mut seen, mut at) = (0_usize, None);
    // The last one stands for all above it, too.
    for (leases, (even, odd)) in (0_u32..).zip(even.iter().zip(odd)).take(COUNTED - 1) {
        seen += (even + odd) as usize;
        if seen > below {
            let at = *at.get_or_insert(leases);
            if seen > below + 1 || seen == candidates.len() {
                return Some((at, leases.max(at)));
            }
        }
    }
    None
}

/// The same, whatever the numbers are.
fn by_selecting(candidates: &[Candidate], below: usize) -> Option<(u32, u32)> {
    let mut leases: Vec<u32> = candidates.iter().map(in_flight).collect();
    if below >= leases.len() {
        return None;
    }
    let (_, at, above) = leases.select_nth_unstable(below);
    Some((*at, above.iter().min().copied().unwrap_or(*at)))
}

fn in_flight(candidate: &Candidate) -> u32 {
    candidate.leases.saturating_add(candidate.others)
}

fn count(leases: u32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "16 million requests in flight are exact in an f32")]
    let leases = leases as f32;
    leases
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{prop_assert, prop_assert_eq, prop_oneof, proptest},
    };

    use super::*;

    fn of(leases: u32, latency_us: f32) -> Candidate {
        Candidate { leases, latency_us: Some(latency_us), ..Candidate::default() }
    }

    #[test]
    fn among_cold_ones_the_faster_is_picked() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(pick(&[of(1, 9_000.0), of(1, 1_000.0), of(1, 9_000.0)], &mut rng), Some(1));
    }

    #[test]
    fn what_differs_by_noise_only_is_shared_by_requests_in_flight() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(pick(&[of(2, 1_000.0), of(1, 2_200.0), of(2, 1_000.0)], &mut rng), Some(1));
        // A difference that is none of noise outweighs a request in flight.
        assert_eq!(pick(&[of(1, 1_000.0), of(0, 5_000.0), of(2, 1_000.0)], &mut rng), Some(0));
    }

    #[test]
    fn a_fast_one_that_is_hot_is_left_alone() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(pick(&[of(9, 10.0), of(1, 1_000.0), of(1, 2_900.0)], &mut rng), Some(1));
    }

    #[test]
    fn what_other_balancers_have_there_counts_too() {
        let mut rng = Rng::with_seed(1);
        let busy_for_others = Candidate { others: 12, ..of(0, 1_000.0) };
        assert_eq!(pick(&[busy_for_others, of(1, 1_000.0), of(2, 1_000.0)], &mut rng), Some(1));
        let hot = |leases, others| Candidate { strained: true, others, ..of(leases, 1_000.0) };
        assert_eq!(pick(&[hot(0, 9), hot(4, 0)], &mut rng), Some(1), "where all are hot, too");
    }

    #[test]
    fn strain_vetoes_and_where_all_are_strained_the_fewest_in_flight_wins() {
        let mut rng = Rng::with_seed(1);
        let strained = |leases, latency| Candidate { strained: true, ..of(leases, latency) };
        assert_eq!(pick(&[strained(0, 10.0), of(0, 1_000.0)], &mut rng), Some(1));
        assert_eq!(pick(&[strained(4, 10.0), strained(3, 99.0)], &mut rng), Some(1));
    }

    proptest! {
        #[test]
        fn counting_and_selecting_find_the_same(leases in vec(prop_oneof![0_u32..8, 0_u32..200], 1..200)) {
            let all: Vec<Candidate> = leases.iter().map(|leases| of(*leases, 1.0)).collect();
            for below in [0, leases.len() / 2, leases.len() - 1] {
                let selected = by_selecting(&all, below);
                match by_counting(&all, below) {
                    Some(counted) => prop_assert_eq!(Some(counted), selected),
                    None => prop_assert!(selected.is_some_and(|(_, next)| next as usize >= COUNTED - 1)),
                }
            }
        }
    }

    #[test]
    fn the_quantile_is_interpolated() {
        let leases: Vec<Candidate> = [0, 1, 1, 3].map(|leases| of(leases, 1.0)).into();
        // Position 0.84 x 3 = 2.52, between 1 and 3.
        assert!((hot_above(&leases) - 2.04).abs() < 0.01);
        assert!((hot_above(&[of(5, 1.0)]) - 5.0).abs() < 0.01);
        assert!(hot_above(&[]) < 0.01);
        let many: Vec<Candidate> = (0..1_001).map(|leases| of(leases, 1.0)).collect();
        assert!((hot_above(&many) - 840.0).abs() < 0.01);
    }
}
