//! Following the engine for as long as the agent runs: what happens, what there is, and the names of what was born.
//!
//! In a task of its own, so that an engine that takes seconds to answer delays names and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt as _;
use swarmguard_common::{domain::ContainerId, wire::agent::ContainerChange};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::engine::{Engine, EngineError, Happening, What};
use crate::state::Description;

/// The engine's list is asked for this often, in case an event was lost.
const LIST_INTERVAL: Duration = Duration::from_secs(30);

/// From the engine to the loop.
pub enum Told {
    /// A container's name and the like.
    Named(ContainerId, Description),
    /// All containers that exist.
    All(BTreeSet<ContainerId>),
    /// Something happened to a container.
    Happened(Happening),
    /// The engine answers, or no longer does, and is it the first time?
    Present(bool),
    /// The node's host name.
    Host(String),
}

/// Talks to the engine for as long as the loop listens. The engine may go away and come back.
pub async fn ask(engine: Engine, tell: mpsc::Sender<Told>, mut births: mpsc::Receiver<ContainerId>) {
    let mut failures = 0_u32;
    loop {
        let error = match follow(&engine, &tell, &mut births, &mut failures).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if failures == 0 {
            tracing::warn!("{error}: new containers stay without names until the engine is back");
        }
        if tell.send(Told::Present(false)).await.is_err() {
            return;
        }
        failures = failures.saturating_add(1);
        sleep(Duration::from_secs(u64::from(failures.min(10)))).await;
    }
}

/// Ends with `Ok` when the loop no longer listens.
async fn follow(
    engine: &Engine,
    tell: &mpsc::Sender<Told>,
    births: &mut mpsc::Receiver<ContainerId>,
    failures: &mut u32,
) -> Result<(), EngineError> {
    // The stream first: what happens while the list is made is heard of, too.
    let mut events = engine.events();
    let (_, name) = engine.node().await?;
    if std::mem::take(failures) > 0 {
        tracing::info!("the engine is back");
    }
    let said = match name {
        Some(name) => tell.send(Told::Host(name)).await,
        None => Ok(()),
    };
    if said.is_err() || tell.send(Told::Present(true)).await.is_err() {
        return Ok(());
    }
    let mut named = BTreeMap::new();
    let mut list_at = Instant::now();
    loop {
        tokio::select! {
            event = events.next() => {
                let event = event.ok_or(EngineError::Late { what: "events" })??;
                let id = event.container.clone();
                let what = event.what;
                if tell.send(Told::Happened(event)).await.is_err() { return Ok(()) }
                match what {
                    What::Change(ContainerChange::Died { .. }) => drop(named.remove(&id)),
                    // Asked about at its birth it had no process yet.
                    What::Change(ContainerChange::Started) if !named.contains_key(&id) => {
                        if let Ok(description) = engine.inspect(&id).await {
                            named.insert(id.clone(), ());
                            if tell.send(Told::Named(id, description)).await.is_err() { return Ok(()) }
                        }
                    }
                    What::Change(_) | What::Oom => {}
                }
            }
            () = sleep_until(list_at) => {
                list_at = Instant::now() + LIST_INTERVAL;
                let listed = engine.list().await?;
                named.retain(|id, ()| listed.contains_key(id));
                if tell.send(Told::All(listed.keys().cloned().collect())).await.is_err() { return Ok(()) }
                for (id, short) in listed {
                    if named.contains_key(&id) { continue }
                    let description = engine.inspect(&id).await.unwrap_or(short);
                    named.insert(id.clone(), ());
                    if tell.send(Told::Named(id, description)).await.is_err() { return Ok(()) }
                }
            }
            birth = births.recv() => {
                let Some(id) = birth else { return Ok(()) };
                // The cgroup is there before the engine calls the container started; its name is known already.
                if let Ok(description) = engine.inspect(&id).await {
                    let whole = description.pid.is_some();
                    if tell.send(Told::Named(id.clone(), description)).await.is_err() { return Ok(()) }
                    if whole { named.insert(id, ()); }
                }
            }
        }
    }
}
