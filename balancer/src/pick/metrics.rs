//! Lowest weighted sum of CPU, memory and network.
//!
//! The figures are renewed far less often than requests come. By figures alone all requests between two readings would go to
//! one replica; so what was sent there since counts too ([`crate::replica::Replica::candidate`]), and figures that differ by
//! no more than their error decide nothing.

use fastrand::Rng;

use super::{Candidate, lowest_figure, mean_score};

/// The candidate with the lowest score, or as good as that; `None` where fewer than half of them have one.
pub fn pick(candidates: &[Candidate], rng: &mut Rng) -> Option<usize> {
    let mean = mean_score(candidates)?;
    lowest_figure(candidates, |candidate| candidate.score.unwrap_or(mean), rng)
}

/// `cpu% x 0.5 + memory% x 0.3 + network% x 0.2`, with configurable weights: cpu, memory, network.
pub fn score(percent: [f64; 3], weights: [f64; 3]) -> f64 {
    percent.iter().zip(weights).map(|(percent, weight)| percent * weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_proposed_one() {
        assert!((score([80.0, 50.0, 10.0], [0.5, 0.3, 0.2]) - 57.0).abs() < 1e-9);
    }

    #[test]
    fn the_least_loaded_is_picked_and_an_unknown_one_counts_as_average() {
        let scored = |score| Candidate { score, ..Candidate::default() };
        let mut rng = Rng::with_seed(5);
        assert_eq!(pick(&[scored(Some(70.0)), scored(Some(20.0)), scored(None)], &mut rng), Some(1));
        assert_eq!(pick(&[scored(Some(70.0)), scored(None), scored(None)], &mut rng), None);
    }
}
