//! How much may be done unasked: a lying or broken agent costs this and no more.
//!
//! A bucket of tokens for each service and for each node that is left. An action takes one of each; where it helped it
//! gives its tokens back, so that what works is not held up.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    time::Time,
};

/// Unasked actions an hour on one service that did not help.
const OF_SERVICE: f64 = 6.0;
/// And off one node.
const OFF_NODE: f64 = 12.0;
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Time,
}

impl Bucket {
    fn refill(&mut self, now: Time, most: f64) {
        let passed = (now - self.at).as_secs_f64() / HOUR.as_secs_f64();
        self.tokens = (self.tokens + passed * most).min(most);
        self.at = now;
    }
}

/// What is left for everything that something was done about lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    services: BTreeMap<ServiceId, Bucket>,
    nodes: BTreeMap<NodeId, Bucket>,
}

impl Budget {
    /// Takes what one action costs; where it is used up, when the next is to be had.
    pub fn take(&mut self, now: Time, service: &ServiceId, node: Option<&NodeId>) -> Result<(), Duration> {
        // Full buckets need not be remembered.
        self.services.retain(|_, bucket| now - bucket.at < HOUR);
        self.nodes.retain(|_, bucket| now - bucket.at < HOUR);
        let of_service =
            self.services.entry(service.clone()).or_insert(Bucket { tokens: OF_SERVICE, at: now });
        of_service.refill(now, OF_SERVICE);
        if of_service.tokens < 1.0 {
            return Err(HOUR.mul_f64((1.0 - of_service.tokens) / OF_SERVICE));
        }
        if let Some(node) = node {
            let off_node = self.nodes.entry(node.clone()).or_insert(Bucket { tokens: OFF_NODE, at: now });
            off_node.refill(now, OFF_NODE);
            if off_node.tokens < 1.0 {
                return Err(HOUR.mul_f64((1.0 - off_node.tokens) / OFF_NODE));
            }
            off_node.tokens -= 1.0;
        }
        of_service.tokens -= 1.0;
        Ok(())
    }

    /// An action helped, or did not begin: what it took is had again.
    pub fn give_back(&mut self, service: &ServiceId, node: Option<&NodeId>) {
        if let Some(bucket) = self.services.get_mut(service) {
            bucket.tokens = (bucket.tokens + 1.0).min(OF_SERVICE);
        }
        if let Some(bucket) = node.and_then(|node| self.nodes.get_mut(node)) {
            bucket.tokens = (bucket.tokens + 1.0).min(OFF_NODE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_an_hour_of_a_service_twelve_off_a_node_and_more_where_it_helps() {
        let at = |second: u64| Time::from_millis(second * 1_000);
        let service = |index: u32| format!("s{index}").parse::<ServiceId>().expect("an ID");
        let node: NodeId = "n1".parse().expect("an ID");
        let mut budget = Budget::default();
        for second in 0..6 {
            assert_eq!(budget.take(at(second), &service(1), Some(&node)), Ok(()));
        }
        let left = budget.take(at(6), &service(1), Some(&node)).expect_err("used up");
        assert!((580..600).contains(&left.as_secs()), "{left:?}");
        assert_eq!(budget.take(at(700), &service(1), Some(&node)), Ok(()));
        let mut taken = 0;
        while budget.take(at(701), &service(taken + 2), Some(&node)).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 7, "five were left, and two came back in 700 s");
        budget.give_back(&service(2), Some(&node));
        assert_eq!(budget.take(at(702), &service(2), Some(&node)), Ok(()));
    }
}
