//! Numbers drawn at random: arrivals and the work of a request.

use crate::{number::count, scenario::ServiceSpec};

/// A number of events of which `mean` are expected.
pub(super) fn poisson(rng: &mut fastrand::Rng, mean: f64) -> u64 {
    if mean <= 0.0 {
        return 0;
    }
    if mean > 50.0 {
        return count(mean + mean.sqrt() * normal(rng));
    }
    let (limit, mut product, mut events) = ((-mean).exp(), rng.f64(), 0);
    while product > limit {
        product *= rng.f64();
        events += 1;
    }
    events
}

/// Standard normal.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// CPU time of one request, nanoseconds: log-normal.
pub(super) fn draw(rng: &mut fastrand::Rng, spec: &ServiceSpec) -> u64 {
    let mean = spec.cpu_time.as_secs_f64() * 1e9;
    if spec.variation <= 0.0 {
        return count(mean);
    }
    let variance = (1.0 + spec.variation * spec.variation).ln();
    count((mean.ln() - variance / 2.0 + variance.sqrt() * normal(rng)).exp())
}
