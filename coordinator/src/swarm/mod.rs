//! Swarm, read and written through the engine beside us: any manager's engine passes writes on to the leader.
//!
//! Two ways lead to the engine: bollard for events, which have types, and a client of our own for what must come and go as
//! raw JSON, object by object.

#[cfg(test)]
mod docker29_tests;
mod events;
mod http;
mod known;
mod split;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::http::Method;
use futures_util::{StreamExt as _, future::BoxFuture};
use serde_json::{Value, json};
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    time::Time,
};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    swarm::{
        Node, RecordObject, Service, Snapshot, Task,
        engine::{self, AnyTask, FromEngine},
    },
};
use swarmguard_runtime::clock;
use tokio::sync::watch;
use tracing::{debug, warn};

pub use http::{Engine, EngineError};

use crate::seam::SwarmApi;
use events::Change;
use known::{Known, MAX_IDS, Marks, Pick, Plan, Read};

/// Pause before the event stream is opened again, at first and at most.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Time between the beginnings of two readings while nothing happens.
const AT_REST: Duration = Duration::from_secs(2);
/// The same while something does, or may unnoticed because no events come.
const BUSY: Duration = Duration::from_secs(1);
/// Longest that an event stream may take to be open when nothing happens: the engine sends its head with the first
/// event at the latest, and old engines not before.
const OPENED: Duration = Duration::from_millis(500);
/// States that Swarm can want a task to be in, without `shutdown`: those are history, five for each replica by default.
const WANTED: [&str; 10] = [
    "new",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
    "complete",
    "remove",
];

/// Reads and writes one swarm.
#[derive(Debug)]
pub struct Client {
    engine: Arc<Engine>,
    known: tokio::sync::Mutex<Inside>,
    marks: Mutex<Marks>,
    /// Services whose tasks are wanted in every snapshot.
    watched: Mutex<BTreeSet<ServiceId>>,
    /// Whether the engine's events come in.
    listening: AtomicBool,
    busy: AtomicBool,
    changes: watch::Sender<u64>,
}

/// What only a reading touches.
#[derive(Debug, Default)]
struct Inside {
    known: Known,
    own_node: Option<NodeId>,
    /// A reading was begun and did not end: what it was told to read is unknown.
    unfinished: bool,
    /// Why the last object that was left out could not be understood.
    odd: Option<String>,
}

impl Client {
    /// A client of the engine at `unix:///path` or `tcp://host:port`; nothing is connected before the first reading.
    ///
    /// # Errors
    /// When the address is neither.
    pub fn new(address: &str) -> Result<Arc<Self>, EngineError> {
        Ok(Arc::new(Self {
            engine: Arc::new(Engine::new(address)?),
            known: tokio::sync::Mutex::default(),
            marks: Mutex::default(),
            watched: Mutex::default(),
            listening: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }))
    }

    /// Listens to the engine's events until the client is dropped. Without them everything is read each time.
    pub fn watch(self: &Arc<Self>) {
        let (client, engine) = (Arc::downgrade(self), Arc::clone(&self.engine));
        tokio::spawn(async move {
            let mut pause = REOPEN.0;
            loop {
                let began = clock::now();
                match listen(&engine, &client).await {
                    Ok(()) => {}
                    Err(error) => debug!(%error, "the engine's events stopped"),
                }
                let Some(client) = client.upgrade() else { return };
                // What happened until the stream is open again is not told: a full reading finds it.
                client.listening.store(false, Ordering::Relaxed);
                drop(client);
                tokio::time::sleep(pause).await;
                let stood = clock::now().since(began) > REOPEN.1;
                pause = if stood { REOPEN.0 } else { (pause * 2).min(REOPEN.1) };
            }
        });
    }

    /// What Swarm is now: of what changed, read anew; of the rest, as it was read before.
    ///
    /// # Errors
    /// When the engine does not answer, or is not a manager's.
    pub async fn snapshot(&self) -> Result<Snapshot, EngineError> {
        let mut inside = self.known.lock().await;
        let taken = clock::now();
        let mut marks = std::mem::take(&mut *self.marks());
        // Until its end: a reading that is given up in the middle leaves it unknown what was read.
        marks.all |= std::mem::replace(&mut inside.unfinished, true);
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Told before the reading, so that nothing is missed between the two.
        let listening = self.listening.load(Ordering::Relaxed);
        let plan = inside.known.plan(taken, &marks, &watched, listening);
        match self.carry_out(&mut inside, taken, plan).await {
            Ok(snapshot) => {
                inside.unfinished = false;
                self.busy.store(!listening || inside.known.is_busy(taken), Ordering::Relaxed);
                Ok(snapshot)
            }
            Err(error) => {
                // A restarted engine may speak another version, or be another node.
                self.engine.forget().await;
                inside.own_node = None;
                self.busy.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    async fn carry_out(&self, inside: &mut Inside, taken: Time, plan: Plan) -> Result<Snapshot, EngineError> {
        let own_node = self.own_node(inside).await?;
        let mut odd = None;
        let mut read = Read::default();
        let (mut odd_nodes, mut odd_services, mut odd_tasks, mut odd_records) = (None, None, None, None);
        tokio::try_join!(
            self.read_nodes(&plan, &mut read.nodes, &mut odd_nodes),
            self.read_services(&plan, &mut read.services, &mut odd_services),
            self.read_tasks(&plan, &mut read.tasks, &mut odd_tasks),
            self.read_records(&plan, &mut read.records, &mut odd_records),
        )?;
        for found in [odd_nodes, odd_services, odd_tasks, odd_records] {
            odd = odd.or(found);
        }
        let mut plan = plan;
        if matches!(&plan.nodes, Pick::Only(_)) && !read.nodes.iter().any(|node| node.leader) {
            // It leads no more, or is gone: who does?
            plan.nodes = Pick::All;
            read.nodes.clear();
            self.read_nodes(&plan, &mut read.nodes, &mut odd).await?;
        }
        self.read_past(&plan.past, &mut read.past, &mut odd).await?;
        let by_id = inside.known.take(taken, &plan, read);
        for ids in by_id.chunks(MAX_IDS) {
            let mut found = Vec::new();
            self.list("/tasks", Some(&json!({ "id": ids })), &mut found, &mut odd).await?;
            inside.known.take_by_id(taken, ids, found);
        }
        if odd.is_some() && inside.odd != odd {
            warn!(why = odd, "an object of the engine is not understood and left out");
        }
        inside.odd = odd;
        Ok(inside.known.snapshot(taken, own_node))
    }

    async fn read_nodes(&self, plan: &Plan, into: &mut Vec<Node>, odd: Odd<'_>) -> Result<(), EngineError> {
        match &plan.nodes {
            Pick::Nothing => Ok(()),
            Pick::All => self.list("/nodes", None, into, odd).await,
            Pick::Only(nodes) => {
                for node in nodes {
                    match self.engine.get(&format!("/nodes/{node}")).await {
                        Ok(text) => take(&text, into, odd),
                        Err(error) => gone_is_empty(Err(error))?,
                    }
                }
                Ok(())
            }
        }
    }

    async fn read_services(
        &self,
        plan: &Plan,
        into: &mut Vec<Service>,
        odd: Odd<'_>,
    ) -> Result<(), EngineError> {
        match &plan.services {
            Pick::Nothing => Ok(()),
            Pick::All => self.list("/services", None, into, odd).await,
            Pick::Only(services) => self.list("/services", Some(&json!({ "id": services })), into, odd).await,
        }
    }

    async fn read_tasks(&self, plan: &Plan, into: &mut Vec<Task>, odd: Odd<'_>) -> Result<(), EngineError> {
        match &plan.tasks {
            Pick::Nothing => Ok(()),
            Pick::All => {
                let wanted = json!({ "desired-state": WANTED });
                self.list("/tasks", Some(&wanted), into, odd).await
            }
            Pick::Only(services) => {
                let wanted = json!({ "desired-state": WANTED, "service": services });
                let found = self.list("/tasks", Some(&wanted), into, odd).await;
                if !matches!(found, Err(EngineError::Answer { status: 404, .. })) {
                    return found;
                }
                // One of them is gone, and the engine does not say which.
                into.clear();
                for service in services {
                    let wanted = json!({ "desired-state": WANTED, "service": [service] });
                    gone_is_empty(self.list("/tasks", Some(&wanted), into, odd).await)?;
                }
                Ok(())
            }
        }
    }

    /// All tasks of these services, those that ended, too.
    async fn read_past(
        &self,
        services: &[ServiceId],
        into: &mut Vec<AnyTask>,
        odd: Odd<'_>,
    ) -> Result<(), EngineError> {
        if services.is_empty() {
            return Ok(());
        }
        let found = self.list("/tasks", Some(&json!({ "service": services })), into, odd).await;
        if !matches!(found, Err(EngineError::Answer { status: 404, .. })) {
            return found;
        }
        into.clear();
        for service in services {
            gone_is_empty(self.list("/tasks", Some(&json!({ "service": [service] })), into, odd).await)?;
        }
        Ok(())
    }

    async fn read_records(
        &self,
        plan: &Plan,
        into: &mut Vec<RecordObject>,
        odd: Odd<'_>,
    ) -> Result<(), EngineError> {
        if !plan.records {
            return Ok(());
        }
        self.list("/configs", Some(&json!({ "name": [engine::OWN_CONFIGS] })), into, odd).await
    }

    /// Reads the objects of a list as they arrive; one that is not understood is left out, and why is told.
    async fn list<T: FromEngine + Send>(
        &self,
        path: &str,
        filters: Option<&Value>,
        into: &mut Vec<T>,
        odd: Odd<'_>,
    ) -> Result<(), EngineError> {
        let filters = filters.map(http::filters).unwrap_or_default();
        self.engine.list(&format!("{path}{filters}"), |text| take(text, into, odd)).await
    }

    /// The node that the engine runs.
    async fn own_node(&self, inside: &mut Inside) -> Result<NodeId, EngineError> {
        if let Some(node) = &inside.own_node {
            return Ok(node.clone());
        }
        let info = self.engine.get("/info").await?;
        let info: Value =
            serde_json::from_slice(&info).map_err(|error| self.engine.no_answer("GET /info", &error))?;
        let node = info.pointer("/Swarm/NodeID").and_then(Value::as_str).and_then(|id| id.parse().ok());
        let node: NodeId = node.ok_or_else(|| EngineError::Answer {
            request: "GET /info".into(),
            status: 200,
            words: "it is not part of a swarm".into(),
        })?;
        inside.own_node = Some(node.clone());
        Ok(node)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something read anew with the next snapshot, and that soon.
    fn mark(&self, change: impl FnOnce(&mut Marks)) {
        let mut marks = self.marks();
        change(&mut marks);
        marks.bound();
        drop(marks);
        self.changes.send_modify(|count| *count += 1);
    }

    /// What a command may have changed, whether it was answered or not.
    fn mark_touched(&self, command: &Command) {
        let mut marks = self.marks();
        match command {
            Command::CreateRecord { .. } | Command::UpdateRecord { .. } | Command::RemoveRecord { .. } => {
                marks.records = true;
            }
            Command::WriteService { service, .. } => marks.services.extend([service.clone()]),
            Command::WriteNode { .. } => marks.nodes = true,
            Command::DrainBalancers { .. } | Command::ResumeBalancers { .. } => {}
        }
    }

    /// Carries out one command. Those for the balancers are not Swarm's and are refused.
    ///
    /// # Errors
    /// As [`CommandError`] says. After [`CommandError::Unavailable`] it may have been done all the same.
    pub async fn execute(&self, command: &Command) -> CommandResult {
        let done = match command {
            Command::CreateRecord { name, labels, data } => {
                let body = json!({ "Name": name, "Labels": labels, "Data": engine::encode(data) });
                self.post("/configs/create".into(), &body).await
            }
            Command::UpdateRecord { id, version, name, labels, data } => {
                let body = json!({ "Name": name, "Labels": labels, "Data": engine::encode(data) });
                self.post(format!("/configs/{id}/update?version={version}"), &body).await
            }
            Command::RemoveRecord { id } => {
                let removed = self.engine.send(Method::DELETE, &format!("/configs/{id}"), None).await;
                match removed.map(drop) {
                    Err(EngineError::Answer { status: 404, .. }) => Ok(()),
                    other => other,
                }
            }
            Command::WriteService { service, version, spec } => {
                let path = format!("/services/{service}/update?version={version}&registryAuthFrom=spec");
                self.post(path, spec).await
            }
            Command::WriteNode { node, version, spec } => {
                self.post(format!("/nodes/{node}/update?version={version}"), spec).await
            }
            Command::DrainBalancers { .. } | Command::ResumeBalancers { .. } => {
                return Err(CommandError::Refused("balancers are not Swarm's".into()));
            }
        };
        // Before the answer is passed on: the next snapshot shows what was done, whenever its event comes.
        self.mark_touched(command);
        done.map_err(|error| meaning(&error))
    }

    async fn post(&self, path: String, body: &Value) -> Result<(), EngineError> {
        self.engine.send(Method::POST, &path, Some(body)).await.map(drop)
    }
}

impl SwarmApi for Client {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async move { Self::snapshot(self).await.map_err(|error| error.to_string()) })
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        Box::pin(async move { Self::execute(self, &command).await })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn rhythm(&self) -> Duration {
        if self.busy.load(Ordering::Relaxed) { BUSY } else { AT_REST }
    }

    fn watch_closely(&self, services: BTreeSet<ServiceId>) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = services;
    }

    fn task_changed(&self, task: &TaskId) {
        self.mark(|marks| marks.tasks.extend([task.clone()]));
    }
}

/// Why an object was not understood, if one was not.
type Odd<'a> = &'a mut Option<String>;

fn take<T: FromEngine>(text: &[u8], into: &mut Vec<T>, odd: Odd<'_>) {
    match serde_json::from_slice(text) {
        Ok(object) => into.extend(T::from_raw(object)),
        Err(error) => drop(odd.get_or_insert_with(|| error.to_string())),
    }
}

fn gone_is_empty(read: Result<(), EngineError>) -> Result<(), EngineError> {
    match read {
        Err(EngineError::Answer { status: 404, .. }) => Ok(()),
        other => other,
    }
}

/// Marks what events say has changed, until the stream ends.
async fn listen(engine: &Engine, client: &std::sync::Weak<Client>) -> Result<(), EngineError> {
    let failed = |error: bollard::errors::Error| engine.no_answer("GET /events", &error);
    let docker = events::connect(engine.shown()).map_err(failed)?;
    let mut events = events::listen(&docker);
    // The stream is asked for with the first look at it; only then is anything that it may miss read in full.
    let mut next = std::pin::pin!(tokio::time::timeout(OPENED, events.next()));
    let mut first = (&mut next).await.ok();
    {
        let Some(client) = client.upgrade() else { return Ok(()) };
        client.listening.store(true, Ordering::Relaxed);
        client.mark(|marks| marks.all = true);
    }
    loop {
        let event = match first.take() {
            Some(event) => event,
            None => events.next().await,
        };
        let Some(client) = client.upgrade() else { return Ok(()) };
        match event {
            None => return Ok(()),
            Some(Err(bollard::errors::Error::JsonDataError { message, .. })) => {
                // An event of a kind that is not known yet.
                debug!(message, "an event is not understood");
                client.mark(|marks| marks.all = true);
            }
            Some(Err(error)) => return Err(failed(error)),
            Some(Ok(None)) => {}
            Some(Ok(Some(change))) => client.mark(|marks| match change {
                Change::Node => marks.nodes = true,
                Change::Service(service) => marks.services.extend([service]),
                Change::Record => marks.records = true,
                Change::Task(task, service) => {
                    marks.tasks.insert(task);
                    marks.tasks_of.extend(service);
                }
            }),
        }
    }
}

/// What an engine's answer means for the judgement.
fn meaning(error: &EngineError) -> CommandError {
    let text = error.to_string();
    match error {
        EngineError::Answer { status: 404, .. } => CommandError::Gone(text),
        EngineError::Answer { status: 409, .. } => CommandError::Conflict(text),
        // Swarm's compare-and-swap has no status of its own.
        EngineError::Answer { status: 500.., words, .. } if words.contains("out of sequence") => {
            CommandError::Conflict(text)
        }
        EngineError::Answer { status: 400..=499, .. } | EngineError::Address(_) => {
            CommandError::Refused(text)
        }
        EngineError::Answer { .. } | EngineError::NoAnswer { .. } => CommandError::Unavailable(text),
    }
}
