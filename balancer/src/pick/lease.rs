//! Fewest requests in flight. Among several with equally few, those that have been about as quick as the quickest of them:
//! with few requests in flight most picks are such ties, and a slow replica ties as often as any other.

use fastrand::Rng;

use super::{Candidate, lowest};

/// Latencies closer than this (as a ratio) count as equal: differences that small are noise.
const NOISE: f32 = 2.0;

/// The candidate with the fewest leases; of several one of the quicker ones, of those the one that has rested longest.
pub fn pick(candidates: &[Candidate], rng: &mut Rng) -> Option<usize> {
    let fewest = candidates.iter().map(|candidate| candidate.leases).min()?;
    // One that was never measured is tried at once.
    let latency = |candidate: &Candidate| candidate.latency_us.unwrap_or(0.0);
    let tied = candidates.iter().filter(|candidate| candidate.leases == fewest);
    let quickest = tied.map(latency).fold(f32::INFINITY, f32::min);
    let near = |it: &Candidate| it.leases == fewest && latency(it) <= quickest * NOISE;
    lowest(candidates, |candidate| near(candidate).then_some(()), rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_one_is_picked() {
        let leases = |leases| Candidate { leases, ..Candidate::default() };
        assert_eq!(pick(&[leases(2), leases(0), leases(1)], &mut Rng::with_seed(3)), Some(1));
        assert_eq!(pick(&[], &mut Rng::with_seed(3)), None);
    }

    #[test]
    fn a_slow_one_is_left_alone_among_equals_and_noise_is_not_followed() {
        let of = |leases, latency| Candidate { leases, latency_us: Some(latency), ..Candidate::default() };
        let mut rng = Rng::with_seed(3);
        for _ in 0..50 {
            assert_eq!(pick(&[of(1, 9_000.0), of(1, 1_000.0)], &mut rng), Some(1));
            assert_eq!(pick(&[of(0, 9_000.0), of(1, 1_000.0)], &mut rng), Some(0), "in flight counts first");
        }
        let noisy = Candidate { rested: 5, ..of(1, 1_900.0) };
        assert_eq!(pick(&[of(1, 1_000.0), noisy], &mut rng), Some(1), "the one that has rested longest");
    }

    #[test]
    fn requests_that_take_equally_long_spread_evenly() {
        // 32 requests are always in flight; the oldest ends, the next begins.
        let mut rng = Rng::with_seed(11);
        let mut all = [Candidate::default(); 5];
        let mut flying = std::collections::VecDeque::new();
        let mut hits = [0_u32; 5];
        for _ in 0..20_000 {
            let index = pick(&all, &mut rng).expect("five");
            all[index].leases += 1;
            hits[index] += 1;
            flying.push_back(index);
            if flying.len() > 32 {
                all[flying.pop_front().expect("33")].leases -= 1;
            }
        }
        assert!(hits.iter().all(|hits| (3_800..4_200).contains(hits)), "{hits:?}");
    }
}
