//! How many of something each address has now, so that no address can take all places.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts by address. Bounded by whatever bounds the guests as a whole.
#[derive(Debug)]
pub struct Crowd {
    per_address: usize,
    counts: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A place that is held, and given back when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    from: IpAddr,
}

impl Crowd {
    /// At most `per_address` places for each address.
    pub fn new(per_address: usize) -> Arc<Self> {
        Arc::new(Self { per_address, counts: Mutex::default() })
    }

    /// A place, or `None` when that address has its share already.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&from).copied().unwrap_or(0);
        if count >= self.per_address {
            return None;
        }
        counts.insert(from, count + 1);
        Some(Place { crowd: Arc::clone(self), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_share_and_gives_it_back() {
        let crowd = Crowd::new(2);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().expect("an address"));
        let held = [crowd.enter(one), crowd.enter(one)];
        assert!(held.iter().all(Option::is_some) && crowd.enter(one).is_none());
        assert!(crowd.enter(other).is_some());
        drop(held);
        assert!(crowd.enter(one).is_some());
        assert!(crowd.counts.lock().expect("unpoisoned").is_empty(), "nothing is remembered");
    }
}
