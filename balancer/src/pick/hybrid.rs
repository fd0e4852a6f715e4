//! Requests in flight and load in one sum: `leases x 10 + score`, as proposed.

use fastrand::Rng;

use super::{Candidate, lowest_figure, mean_score};

/// The candidate with the lowest sum, or as good as that; `None` where fewer than half of them have a score.
pub fn pick(candidates: &[Candidate], lease_weight: f32, rng: &mut Rng) -> Option<usize> {
    let mean = mean_score(candidates)?;
    #[expect(clippy::cast_precision_loss, reason = "16 million requests in flight are exact in an f32")]
    let sum =
        |candidate: &Candidate| candidate.leases as f32 * lease_weight + candidate.score.unwrap_or(mean);
    lowest_figure(candidates, sum, rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_weighs_ten_points() {
        let of = |leases, score| Candidate { leases, score: Some(score), ..Candidate::default() };
        let mut rng = Rng::with_seed(5);
        assert_eq!(pick(&[of(2, 20.0), of(0, 39.0)], 10.0, &mut rng), Some(1));
        assert_eq!(pick(&[of(1, 20.0), of(0, 46.0)], 10.0, &mut rng), Some(0));
        // As near as this the figures say nothing.
        assert_eq!(pick(&[of(1, 20.0), of(0, 44.0)], 10.0, &mut rng), Some(1));
    }
}
