//! Request leases: the record of one request in flight, returned when its guard is dropped, whatever ended it.
//!
//! Each worker keeps its own ledger (no lock, no sharing), so that leases older than `LEASE_DURATION` can be found
//! and taken out of the comparison. An expired lease still counts as in flight for drains and bounds.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use swarmguard_common::time::Time;

use crate::{replica::Replica, service::Shared};

/// All requests in flight of one worker. Its size is bounded by the connections that the worker accepts.
#[derive(Debug, Default)]
pub struct Ledger {
    slots: RefCell<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    replica: Option<Arc<Replica>>,
    since: Time,
    /// Whether the lease is still counted, that is, not expired.
    counts: bool,
}

/// One request in flight; dropping it returns the lease.
#[derive(Debug)]
pub struct Lease {
    ledger: Rc<Ledger>,
    slot: usize,
    replica: Arc<Replica>,
    service: Arc<Shared>,
}

impl Ledger {
    /// Takes a lease; `None` where a drain of the replica began meanwhile.
    pub fn take(self: &Rc<Self>, replica: &Arc<Replica>, service: &Arc<Shared>, now: Time) -> Option<Lease> {
        if !replica.enter() {
            return None;
        }
        let slots = &mut *self.slots.borrow_mut();
        let taken = Slot { replica: Some(Arc::clone(replica)), since: now, counts: true };
        let slot = slots.free.pop().unwrap_or(slots.all.len());
        match slots.all.get_mut(slot) {
            Some(free) => *free = taken,
            None => slots.all.push(taken),
        }
        Some(Lease {
            ledger: Rc::clone(self),
            slot,
            replica: Arc::clone(replica),
            service: Arc::clone(service),
        })
    }

    /// Expires leases that are older than `duration`; answers how many.
    pub fn expire(&self, duration: Duration, now: Time) -> usize {
        let mut expired = 0;
        for slot in &mut self.slots.borrow_mut().all {
            let Some(replica) = slot.replica.as_ref().filter(|_| slot.counts) else { continue };
            if now.since(slot.since) >= duration {
                slot.counts = false;
                replica.expire();
                expired += 1;
            }
        }
        expired
    }
}

impl Lease {
    /// Where the request goes.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let slots = &mut *self.ledger.slots.borrow_mut();
        if let Some(slot) = slots.all.get_mut(self.slot) {
            slot.replica = None;
            slots.free.push(self.slot);
            self.replica.leave(slot.counts);
        }
        self.service.freed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::example;

    #[test]
    fn a_dropped_guard_returns_the_lease_and_an_old_one_expires() {
        let (ledger, shared) = (Rc::new(Ledger::default()), Arc::new(Shared::default()));
        let replica = Arc::new(example("a"));
        let start = Time::from_millis(1_000);
        let early = ledger.take(&replica, &shared, start).expect("taken");
        let late = ledger.take(&replica, &shared, start + Duration::from_secs(20)).expect("taken");
        assert_eq!(replica.leases(), 2);
        assert_eq!(ledger.expire(Duration::from_secs(30), start + Duration::from_secs(30)), 1);
        assert_eq!(ledger.expire(Duration::from_secs(30), start + Duration::from_secs(31)), 0, "only once");
        assert_eq!((replica.leases(), replica.in_flight()), (1, 2));
        drop(early);
        assert_eq!((replica.leases(), replica.in_flight()), (1, 1));
        drop(late);
        assert_eq!((replica.leases(), replica.in_flight()), (0, 0));
        drop(ledger.take(&replica, &shared, start).expect("slots are used again"));
        assert_eq!(ledger.slots.borrow().all.len(), 2);
    }
}
