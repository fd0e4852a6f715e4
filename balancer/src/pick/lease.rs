//! Fewest requests in flight.

use fastrand::Rng;

use super::{Candidate, lowest};

/// The candidate with the fewest leases; any of them where several have equally few.
pub fn pick(candidates: &[Candidate], rng: &mut Rng) -> Option<usize> {
    lowest(candidates.iter().map(|candidate| candidate.leases), rng)
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
