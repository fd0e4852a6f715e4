//! What is being burnt, held and sent right now: at most one load of each kind; a new one takes the old one's place.

use std::net::SocketAddr;
use std::sync::Mutex;

use super::cpu::{CpuLoad, CpuPlan};
use super::memory::{MemoryLoad, MemoryPlan};
use super::network::{NetworkPlan, UdpLoad};
use tokio::sync::watch;

/// The loads under way.
#[derive(Debug)]
pub struct Loads {
    cpu: Mutex<Option<CpuLoad>>,
    memory: Mutex<Option<MemoryLoad>>,
    udp: Mutex<Option<UdpLoad>>,
    /// The value changes when answers that stream should end.
    bodies: Mutex<watch::Sender<bool>>,
}

impl Default for Loads {
    fn default() -> Self {
        let bodies = Mutex::new(watch::Sender::new(false));
        Loads { cpu: Mutex::default(), memory: Mutex::default(), udp: Mutex::default(), bodies }
    }
}

impl Loads {
    /// Burns CPU by `plan`.
    ///
    /// # Errors
    /// Where threads are refused.
    pub fn burn(&self, plan: CpuPlan) -> std::io::Result<()> {
        put(&self.cpu, Some(CpuLoad::start(plan)?));
        Ok(())
    }

    /// Holds memory by `plan`; what an earlier plan held is given back first.
    ///
    /// # Errors
    /// Where a thread is refused.
    pub fn hold(&self, plan: MemoryPlan) -> std::io::Result<()> {
        put(&self.memory, None);
        put(&self.memory, Some(MemoryLoad::start(plan)?));
        Ok(())
    }

    /// Sends datagrams by `plan`.
    ///
    /// # Errors
    /// Where a socket is refused.
    pub async fn send(&self, plan: NetworkPlan, peer: SocketAddr) -> std::io::Result<()> {
        let load = UdpLoad::start(plan, peer).await?;
        put(&self.udp, Some(load));
        Ok(())
    }

    /// Becomes true when a streaming answer that starts now should end.
    pub fn body_stop(&self) -> watch::Receiver<bool> {
        lock(&self.bodies).subscribe()
    }

    /// Ends everything.
    pub fn stop(&self) {
        put(&self.cpu, None);
        put(&self.memory, None);
        put(&self.udp, None);
        let ended = std::mem::replace(&mut *lock(&self.bodies), watch::Sender::new(false));
        let _ = ended.send(true);
    }
}

fn put<T>(place: &Mutex<Option<T>>, load: Option<T>) {
    let old = std::mem::replace(&mut *lock(place), load);
    drop(old); // outside the lock
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while holding one of these, and a load is whole or absent.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
