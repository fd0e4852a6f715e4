//! How the CPUs of a node are shared: each as much as it wants, and where that is too much, all that want more alike.

/// What each claim gets of `whole`, fair to all: nobody gets more than it claims, and what one does not want goes to the
/// others.
pub fn fair(claims: &[f64], whole: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by(|a, b| claims[*a].total_cmp(&claims[*b]));
    let mut shares = vec![0.0; claims.len()];
    let mut left = whole.max(0.0);
    for (done, index) in order.iter().enumerate() {
        let others = crate::number::real_len(claims.len() - done);
        shares[*index] = claims[*index].max(0.0).min(left / others);
        left -= shares[*index];
    }
    shares
}

/// How likely it is that a task waits for one of `cpus` CPUs of which this share is busy (Sakasegawa's approximation of
/// M/M/c).
pub fn waits(busy: f64, cpus: f64) -> f64 {
    if busy >= 1.0 { 1.0 } else { busy.max(0.0).powf((2.0 * (cpus + 1.0)).sqrt() - 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_does_not_want_goes_to_the_others() {
        assert_eq!(fair(&[1.0, 5.0, 5.0], 7.0), [1.0, 3.0, 3.0]);
        assert_eq!(fair(&[1.0, 2.0], 7.0), [1.0, 2.0]);
        assert_eq!(fair(&[], 7.0), [0.0; 0]);
    }

    #[test]
    fn hardly_anybody_waits_on_a_node_that_is_half_idle() {
        assert!(waits(0.5, 8.0) < 0.12);
        assert!(waits(0.95, 4.0) > 0.8);
        assert_eq!(waits(1.3, 4.0), 1.0);
    }
}
