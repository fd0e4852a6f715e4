//! A rate for each client address of a service, shared by all workers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use swarmguard_common::time::Time;

use crate::{proxy::seats::whole, rate::Limit};

/// Addresses remembered in one shard; those that are within their rate are forgotten first.
const MOST: usize = 4_096;
/// Locks: workers seldom want the same one.
const SHARDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct ClientRate {
    per_second: u32,
    shards: [Mutex<HashMap<IpAddr, Limit>>; SHARDS],
}

impl ClientRate {
    /// At most `per_second` requests of one address.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, shards: Default::default() }
    }

    /// Whether one more of `ip` may go now. Where more addresses ask at once than are remembered, the new ones may: the
    /// service's own rate bounds them.
    pub fn admit(&self, ip: IpAddr, now: Time) -> bool {
        let address = whole(ip);
        let byte = match address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[7],
        };
        let mut shard =
            self.shards[usize::from(byte) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MOST && !shard.contains_key(&address) {
            shard.retain(|_, limit| !limit.is_rested(now));
            if shard.len() >= MOST {
                return true;
            }
        }
        shard.entry(address).or_insert_with(|| Limit::new(self.per_second)).admit(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_rate_of_its_own() {
        let rate = ClientRate::new(10);
        let one: IpAddr = [192, 0, 2, 1].into();
        let sent = |ip: IpAddr| (0..1_000).filter(|ms| rate.admit(ip, Time::from_millis(5_000 + ms))).count();
        assert!((10..=12).contains(&sent(one)), "a second at 10/s");
        assert!((10..=12).contains(&sent([192, 0, 2, 2].into())), "another address");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_resting_are_forgotten_first() {
        let rate = ClientRate::new(1);
        let ip = |n: u32| IpAddr::from((n << 8).to_be_bytes());
        let now = Time::from_millis(5_000);
        for n in 0..10_000 {
            rate.admit(ip(n), now);
        }
        let remembered = || rate.shards[0].lock().expect("nobody panicked").len();
        assert_eq!(remembered(), MOST);
        assert!(!rate.admit(ip(0), now), "who was over its rate still is");
        rate.admit(ip(20_000), Time::from_millis(60_000));
        assert_eq!(remembered(), 1);
    }
}
