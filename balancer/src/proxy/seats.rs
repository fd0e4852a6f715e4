//! Places for client connections: how many there are, how many one address may have, and who makes room when all are
//! taken: the one that has been without a request for longest.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use swarmguard_common::time::Time;
use tokio::sync::OwnedSemaphorePermit;

/// Seats looked up at once for the next evictions: the whole list is read once for so many.
const AHEAD: usize = 256;

/// Connections of each client address, over all workers.
#[derive(Debug)]
pub struct Addresses {
    counts: Mutex<HashMap<IpAddr, u32>>,
    most: u32,
}

/// One connection counted for its address; dropping it counts it out.
#[derive(Debug)]
struct Counted {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// At most `most` of one address.
    pub fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), most })
    }

    fn count(self: &Arc<Self>, ip: IpAddr) -> Option<Counted> {
        let address = whole(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Counted { addresses: Arc::clone(self), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the network that one customer has.
pub fn whole(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// All connections of one worker.
#[derive(Debug, Default)]
pub struct Seats {
    all: RefCell<Vec<Option<Rc<Seat>>>>,
    free: RefCell<Vec<usize>>,
    /// Idle ones in the order in which they are to go, each with when it became idle.
    next: RefCell<VecDeque<(usize, Time)>>,
}

/// One client connection.
#[derive(Debug)]
pub struct Seat {
    at: usize,
    /// Requests under way.
    requests: Cell<u32>,
    /// Since when there is none.
    idle_since: Cell<Time>,
    evicted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Given back when the connection and all that came of it, tunnels included, have ended.
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Seats {
    /// A seat for a connection from `ip`; `None` where that address has as many as it may.
    pub fn take(
        &self,
        addresses: &Arc<Addresses>,
        ip: IpAddr,
        permit: OwnedSemaphorePermit,
        now: Time,
    ) -> Option<Rc<Seat>> {
        let counted = addresses.count(ip)?;
        let mut all = self.all.borrow_mut();
        let at = self.free.borrow_mut().pop().unwrap_or(all.len());
        let seat = Rc::new(Seat {
            at,
            requests: Cell::new(0),
            idle_since: Cell::new(now),
            evicted: Cell::new(false),
            waker: RefCell::default(),
            _permit: permit,
            _counted: counted,
        });
        match all.get_mut(at) {
            Some(free) => *free = Some(Rc::clone(&seat)),
            None => all.push(Some(Rc::clone(&seat))),
        }
        Some(seat)
    }

    /// The connection has ended. Its place is given back once nobody holds the seat any more.
    pub fn leave(&self, seat: &Seat) {
        if let Some(place) = self.all.borrow_mut().get_mut(seat.at)
            && place.take().is_some()
        {
            self.free.borrow_mut().push(seat.at);
        }
    }

    /// Tells the connection that has been idle for longest to end. False where all have a request under way.
    pub fn evict(&self) -> bool {
        let all = self.all.borrow();
        let mut next = self.next.borrow_mut();
        for _ in 0..2 {
            while let Some((at, since)) = next.pop_front() {
                let seat = all.get(at).and_then(Option::as_ref);
                if let Some(seat) = seat.filter(|seat| seat.is_idle() && seat.idle_since.get() == since) {
                    seat.evict();
                    return true;
                }
            }
            let idle = all.iter().flatten().filter(|seat| seat.is_idle());
            let mut idle: Vec<(usize, Time)> = idle.map(|seat| (seat.at, seat.idle_since.get())).collect();
            if idle.len() > AHEAD {
                idle.select_nth_unstable_by_key(AHEAD, |(_, since)| *since);
                idle.truncate(AHEAD);
            }
            idle.sort_unstable_by_key(|(_, since)| *since);
            next.extend(idle);
        }
        false
    }
}

impl Seat {
    /// A request has begun.
    pub fn begin(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// It has ended.
    pub fn end(&self, now: Time) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.idle_since.set(now);
    }

    fn is_idle(&self) -> bool {
        self.requests.get() == 0 && !self.evicted.get()
    }

    fn evict(&self) {
        self.evicted.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Ready once the connection is to end for the sake of another one, unless a request came first.
    pub fn poll_evicted(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.evicted.get() {
            if self.requests.get() == 0 {
                return Poll::Ready(());
            }
            self.evicted.set(false);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::sync::Semaphore;

    use super::*;

    const NOW: Time = Time::from_millis(1_000);

    fn permit(room: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        Arc::clone(room).try_acquire_owned().expect("room")
    }

    #[tokio::test]
    async fn the_longest_idle_makes_room_and_the_busy_never() {
        let (room, addresses, seats) = (Arc::new(Semaphore::new(3)), Addresses::new(9), Seats::default());
        let sit = |ms: u64| {
            let ip = [192, 0, 2, 1].into();
            seats.take(&addresses, ip, permit(&room), NOW + Duration::from_millis(ms)).expect("a seat")
        };
        let (busy, old, young) = (sit(0), sit(5), sit(9));
        busy.begin();
        assert!(seats.evict());
        poll_fn(|context| old.poll_evicted(context)).await;
        seats.leave(&old);
        drop(old);
        assert_eq!(room.available_permits(), 1);
        assert!(seats.evict());
        poll_fn(|context| young.poll_evicted(context)).await;
        assert!(!seats.evict(), "only the busy one is left");
        busy.end(NOW + Duration::from_secs(1));
        assert!(seats.evict());
    }

    #[tokio::test]
    async fn a_request_that_comes_first_saves_its_connection() {
        let (room, addresses, seats) = (Arc::new(Semaphore::new(1)), Addresses::new(9), Seats::default());
        let seat = seats.take(&addresses, [192, 0, 2, 1].into(), permit(&room), NOW).expect("a seat");
        assert!(seats.evict());
        seat.begin();
        let saved = poll_fn(|context| Poll::Ready(seat.poll_evicted(context).is_pending())).await;
        assert!(saved);
    }

    #[test]
    fn one_address_does_not_get_all_and_ipv6_networks_count_as_one() {
        let (room, addresses, seats) = (Arc::new(Semaphore::new(9)), Addresses::new(2), Seats::default());
        let take = |ip: &str| seats.take(&addresses, ip.parse().expect("an address"), permit(&room), NOW);
        let first = take("2001:db8::1").expect("a seat");
        let _second = take("2001:db8::2").expect("a seat");
        assert!(take("2001:db8::3").is_none());
        assert!(take("2001:db8:0:1::3").is_some(), "another network");
        seats.leave(&first);
        drop(first);
        assert!(take("2001:db8::3").is_some());
    }
}
