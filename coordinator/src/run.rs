//! The loop around the brain: one task owns it, everything else talks to that task through bounded queues. It carries
//! out what the brain asks for, writes down what it says, and never decides anything.

mod handle;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    journal::{Entry, Kind},
    time::Time,
    wire::{
        agent::{PULSE_INTERVAL_MS, ToAgent, ToCoordinator},
        connect::ConnectRoutes,
        routes::Routes,
    },
};
use swarmguard_core::{
    brain::{AgentEvent, AgentInput, AgentOrder, Beside, Brain, ConnectionId, Input, Wish},
    command::{Command, CommandError, CommandId, CommandResult},
    lease::LeaseState,
    swarm::Snapshot,
};
use swarmguard_runtime::clock;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    balancers, connect,
    glance::Glance,
    ingest::{Event, Inputs, Outbox, hub::Hub},
    journal::{Journal, Notices},
    metrics::Metrics,
    proxies, routes,
    seam::SwarmApi,
    snapshots::{self, Reading},
};
pub use handle::{Busy, Facts, Handle};
use handle::{OLDEST_READING, Request};
use words::{condition_word, edge_word, kind_of, lease_word, outcome_of};

/// Commands carried out at the same time.
const COMMANDS_AT_ONCE: usize = 8;
/// Longest that one call to Swarm may take; afterwards the outcome is learnt from a snapshot.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// Agent messages taken in before everything else gets its turn again.
const BATCH: usize = 256;
/// Questions of the API that wait.
const REQUESTS: usize = 256;
/// A round of judgement that takes longer is followed by a pause.
const LONG_ROUND: Duration = Duration::from_millis(20);
/// Shortest time between two ticks of the brain's own deadline.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// Rhythm of gauges and of loads for the balancers.
const RHYTHM: Duration = Duration::from_secs(1);
/// How a command ended.
type Answer = (CommandId, CommandResult);

/// Everything that the loop is made of.
pub struct Parts<S> {
    /// The judgement.
    pub brain: Brain,
    /// Swarm.
    pub swarm: Arc<S>,
    /// What agents say.
    pub inputs: Inputs,
    /// The balancers.
    pub hub: Arc<Hub>,
    /// The journal.
    pub journal: Journal,
    /// What the journal says of itself.
    pub notices: Notices,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Told once a second.
    pub glance: Arc<Glance>,
}

/// An agent's connection.
struct Link {
    node: NodeId,
    as_manager: bool,
    outbox: watch::Sender<Outbox>,
    /// The routes that it was told.
    routes: ConnectRoutes,
}

/// The loop before it runs.
pub struct Runner<S> {
    parts: Parts<S>,
    requests: mpsc::Receiver<Request>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    connections: BTreeMap<ConnectionId, Link>,
    facts: Facts,
    routes: Routes,
    left_out: u64,
    wish: watch::Sender<Wish>,
    slots: Arc<Semaphore>,
    gauges_at: Time,
    was_acting: bool,
    /// The turn that the journal was told, by its word.
    was_turn: &'static str,
    /// Services that the reader of Swarm was told to watch.
    watched: BTreeSet<ServiceId>,
    /// Pulses given so far.
    pulses: u64,
}

impl<S: SwarmApi> Runner<S> {
    /// The loop, and the API's way to it.
    pub fn new(parts: Parts<S>) -> (Self, Handle) {
        let (requests, requested) = mpsc::channel(REQUESTS);
        let facts = Facts { now: clock::now(), snapshot: None, trouble: None };
        let runner = Self {
            parts,
            requests: requested,
            answers: mpsc::channel(COMMANDS_AT_ONCE * 8),
            connections: BTreeMap::new(),
            facts,
            routes: Routes::default(),
            left_out: 0,
            wish: watch::Sender::new(Wish::Usual),
            slots: Arc::new(Semaphore::new(COMMANDS_AT_ONCE)),
            gauges_at: Time::ZERO,
            was_acting: false,
            was_turn: "not_read",
            watched: BTreeSet::new(),
            pulses: 0,
        };
        (runner, Handle { requests })
    }

    /// Runs until `stop` says so (or its sender is gone). What is under way is left to its records in Swarm: the next
    /// coordinator, or this one after a restart, goes on from there.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (readings_in, mut readings) = mpsc::channel(1);
        let reader = snapshots::run(Arc::clone(&self.parts.swarm), self.wish.subscribe(), readings_in);
        let reader = tokio::spawn(reader);
        let mut stirs = self.parts.hub.stirs();
        let mut figures = self.parts.hub.told_figures();
        let mut rhythm = tokio::time::interval(RHYTHM);
        rhythm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pulse = tokio::time::interval(Duration::from_millis(PULSE_INTERVAL_MS));
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wait = self.parts.brain.poll_timeout().map_or(RHYTHM, |at| at.since(clock::now()));
            // Were the brain ever to ask for the past again and again, this would still be no busy loop.
            let wait = wait.max(SHORTEST_WAIT);
            tokio::select! {
                // In order, because all chance in a simulation comes from its seed; `rest` then gives everybody a turn.
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                _ = pulse.tick() => self.pulse(),
                _ = rhythm.tick() => self.beat(),
                () = tokio::time::sleep(wait) => self.input(Input::Tick),
                // The hub lives as long as this loop.
                Ok(()) = stirs.changed() => self.tell_routes(false),
                Ok(()) = figures.changed() => {
                    self.input(Input::Answering(self.parts.hub.answering(clock::now())));
                }
                Some((id, result)) = self.answers.1.recv() => self.answered(id, result),
                Some(reading) = readings.recv() => self.read(reading),
                Some(request) = self.requests.recv() => self.request(request),
                Some(event) = self.parts.inputs.events.recv() => self.events(event),
                Some(report) = self.parts.inputs.reports.recv() => self.reports(report),
                Some(text) = self.parts.notices.recv() => { self.parts.journal.notice("journal", text); }
            }
            self.rest(&mut readings);
            self.outputs();
            self.settle();
        }
        reader.abort();
        self.parts.journal.flush().await;
    }

    /// One more of everything that waits: whoever floods one queue holds up no other.
    fn rest(&mut self, readings: &mut mpsc::Receiver<Reading>) {
        if let Ok((id, result)) = self.answers.1.try_recv() {
            self.answered(id, result);
        }
        if let Ok(reading) = readings.try_recv() {
            self.read(reading);
        }
        if let Ok(request) = self.requests.try_recv() {
            self.request(request);
        }
        if let Ok(event) = self.parts.inputs.events.try_recv() {
            self.events(event);
        }
        if let Ok(report) = self.parts.inputs.reports.try_recv() {
            self.reports(report);
        }
        if let Ok(text) = self.parts.notices.try_recv() {
            self.parts.journal.notice("journal", text);
        }
    }

    fn input(&mut self, input: Input) {
        self.facts.now = clock::now();
        self.parts.brain.handle(self.facts.now, input);
        let then = clock::now();
        let took = then.since(self.facts.now);
        if took >= LONG_ROUND {
            // As much time again for hearing: else, where a thousand nodes are in trouble, each report would wait for a
            // round of judgement.
            self.parts.brain.rest_until(then + took);
        }
        self.outputs();
    }

    fn answered(&mut self, id: CommandId, result: CommandResult) {
        self.input(Input::Answer { id, result });
    }

    fn read(&mut self, reading: Reading) {
        match reading {
            Ok(snapshot) => {
                if self.facts.trouble.take().is_some() {
                    self.parts.journal.notice("swarm_readable", "Swarm can be read again".into());
                }
                self.facts.snapshot = Some(Arc::clone(&snapshot));
                self.check_agents(&snapshot);
                self.parts.metrics.snapshot(&snapshot);
                if let Some(notify) = self.parts.journal.notify() {
                    notify.learn(&snapshot);
                }
                self.input(Input::Snapshot(snapshot));
                self.publish_routes(false);
                self.tell_routes(false);
            }
            Err(why) => {
                self.parts.metrics.snapshot_failures.inc();
                if self.facts.trouble.replace(why.clone()).is_none() {
                    let text = format!("Swarm cannot be read, nothing is begun until it can: {why}");
                    self.parts.journal.notice("swarm_unreadable", text);
                }
            }
        }
    }

    fn request(&mut self, request: Request) {
        self.facts.now = clock::now();
        match request {
            Request::Ask(question) => question(&self.parts.brain, &self.facts),
            Request::Command { by, command, answer } => {
                let result = self.parts.brain.operator(self.facts.now, &by, command);
                // Whoever asked may have gone; what was taken is done all the same and is in the journal.
                let _ = answer.send(result);
            }
            Request::Plan { by, command, answer } => {
                let _ = answer.send(self.parts.brain.plan(self.facts.now, &by, command));
            }
        }
    }

    fn events(&mut self, first: Event) {
        let began = clock::now();
        let mut next = Some(first);
        let mut left = BATCH;
        while let Some(event) = next {
            match event {
                Event::Up { input, outbox, as_manager } => {
                    let (node, routes) = (input.node.clone(), ConnectRoutes::default());
                    self.connections.insert(input.connection, Link { node, as_manager, outbox, routes });
                    self.input(Input::Agent(input));
                }
                Event::Input(input) => {
                    if matches!(input.what, AgentEvent::Disconnected) {
                        self.connections.remove(&input.connection);
                    }
                    self.count_alert(&input);
                    if let AgentEvent::Message(ToCoordinator::Container(event)) = &input.what
                        && let Some(task) = &event.task
                    {
                        self.parts.swarm.task_changed(task);
                    }
                    self.input(Input::Agent(input));
                }
            }
            left -= 1;
            next = if left > 0 { self.parts.inputs.events.try_recv().ok() } else { None };
        }
        self.parts.metrics.judge_duration.observe([], clock::now().since(began).as_secs_f64());
    }

    fn reports(&mut self, first: AgentInput) {
        let mut next = Some(first);
        let mut left = BATCH;
        while let Some(report) = next {
            self.input(Input::Agent(report));
            left -= 1;
            next = if left > 0 { self.parts.inputs.reports.try_recv().ok() } else { None };
        }
    }

    /// Everything that the brain has to say; after each input, because what it holds ready is bounded.
    fn outputs(&mut self) {
        while let Some(output) = self.parts.brain.poll_agent() {
            let Some(link) = self.connections.get(&output.connection) else { continue };
            link.outbox.send_modify(|outbox| match output.what {
                AgentOrder::Send(ToAgent::Acknowledge { seq }) => {
                    outbox.acknowledge = outbox.acknowledge.max(seq);
                }
                AgentOrder::Send(thresholds @ ToAgent::Thresholds { .. }) => {
                    outbox.thresholds = Some(Arc::new(thresholds));
                }
                // Ingest's own, and ours.
                AgentOrder::Send(
                    ToAgent::Welcome { .. }
                    | ToAgent::Connect(_)
                    | ToAgent::ConnectStill { .. }
                    | ToAgent::Pulse { .. },
                ) => {}
                AgentOrder::Close { reason } => outbox.close = Some(reason),
            });
        }
        while let Some(entry) = self.parts.brain.poll_entry() {
            self.write_down(entry);
        }
        while let Some((id, command)) = self.parts.brain.poll_command() {
            self.carry_out(id, command);
        }
    }

    /// Between two batches: how eagerly Swarm is read, and whether we are the one to act.
    fn settle(&mut self) {
        let wish = self.parts.brain.snapshot_wish();
        self.wish.send_if_modified(|now| std::mem::replace(now, wish) != wish);
        let watched = self.parts.brain.services_in_question();
        if watched != self.watched {
            self.parts.swarm.watch_closely(watched.clone());
            self.watched = watched;
        }
        let turn = self.parts.brain.turn();
        let word = turn.word();
        self.parts.metrics.nobody_acts.set(u8::from(turn.is_nobodys()).into());
        // What is unsure is so for a moment only.
        if word != self.was_turn && word != "unsure" {
            self.was_turn = word;
            self.parts.journal.notice(word, self.parts.brain.turn_text());
        }
        let acting = self.parts.brain.is_acting();
        if let Some(notify) = self.parts.journal.notify() {
            notify.set_acting(acting);
        }
        if acting != self.was_acting {
            self.was_acting = acting;
            tracing::info!(
                acting,
                "this coordinator {} the one to act",
                if acting { "is" } else { "is not" }
            );
            self.parts.metrics.acting.set(u8::from(acting).into());
            if !acting {
                // Whoever acts now says what drains; our marks would stay in the routes for ever.
                self.parts.hub.forget_drains();
            }
        }
    }

    fn write_down(&mut self, mut entry: Entry) {
        entry.at_ms = clock::wall_ms();
        let metrics = &self.parts.metrics;
        match entry.kind {
            Kind::Decision => {
                metrics.decisions.inc([entry.rule.as_deref().unwrap_or(&entry.code)]);
            }
            Kind::Refusal => {
                metrics.refusals.inc([entry.rule.as_deref().unwrap_or(&entry.code)]);
            }
            Kind::Action if matches!(entry.code.as_str(), "done" | "undone") => {
                let what = entry.action.as_ref().and_then(|action| self.parts.journal.what_of(action));
                metrics.actions.inc([what.as_deref().unwrap_or("unknown"), &entry.code]);
                if let Some(mttr_ms) = entry.figures.get("mttr_ms").filter(|_| entry.code == "done") {
                    metrics.mttr.observe([], mttr_ms / 1_000.0);
                }
            }
            Kind::Action | Kind::Alert | Kind::Lease | Kind::Operator | Kind::Notice => {}
        }
        let entry = self.parts.journal.append(entry);
        let (service, node) = (entry.service_name.as_deref(), entry.node.as_ref().map(|node| node.as_str()));
        tracing::info!(
            id = entry.id,
            kind = crate::journal::kind_word(entry.kind),
            code = entry.code,
            service,
            node,
            action = entry.action,
            "{}",
            entry.text
        );
    }

    fn count_alert(&self, input: &AgentInput) {
        let AgentEvent::Message(ToCoordinator::Alert(alert)) = &input.what else { return };
        let Some((condition, edge)) = alert.parts() else { return };
        self.parts.metrics.alert_edges.inc([condition_word(condition), edge_word(edge)]);
    }

    /// Starts one command. Its answer comes back through a queue, whatever happens to the call.
    fn carry_out(&self, id: CommandId, command: Command) {
        let (swarm, hub) = (Arc::clone(&self.parts.swarm), Arc::clone(&self.parts.hub));
        let (slots, answers) = (Arc::clone(&self.slots), self.answers.0.clone());
        let metrics = Arc::clone(&self.parts.metrics);
        tokio::spawn(async move {
            // Never closed, so this only waits.
            let _slot = slots.acquire().await;
            let (kind, began) = (kind_of(&command), clock::now());
            let result = carried_out(&*swarm, &hub, command).await;
            metrics.command_duration.observe([kind], clock::now().since(began).as_secs_f64());
            metrics.commands.inc([kind, outcome_of(&result)]);
            match &result {
                Ok(()) => tracing::debug!(command = kind, id = id.0, "carried out"),
                Err(error) => tracing::warn!(command = kind, id = id.0, "not carried out: {error}"),
            }
            // The loop has ended: the outcome is learnt from a snapshot by whoever comes next.
            let _ = answers.send((id, result)).await;
        });
    }

    /// Ends the connections of agents that Swarm does not list, or with another role than their certificate names.
    fn check_agents(&self, snapshot: &Snapshot) {
        let roster = &self.parts.inputs.roster;
        roster.update(snapshot);
        for link in self.connections.values() {
            if let Some(why) = roster.why_not(snapshot.taken, &link.node, link.as_manager) {
                link.outbox.send_modify(|outbox| outbox.close = Some(why));
            }
        }
    }

    /// Tells the agents that this coordinator lives, so that they tell the others. One that is alone has nobody to tell.
    fn pulse(&mut self) {
        self.facts.now = clock::now();
        let managers = self
            .facts
            .snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.nodes.values().filter(|node| node.manager).count());
        if managers < 2 {
            return;
        }
        self.pulses += 1;
        let pulse = (self.pulses, !self.facts.is_blind(), self.parts.brain.is_acting());
        for link in self.connections.values() {
            link.outbox.send_modify(|outbox| outbox.pulse = Some(pulse));
        }
    }

    /// Once a second: gauges, and fresh loads for the balancers.
    fn beat(&mut self) {
        self.facts.now = clock::now();
        let now = self.facts.now;
        self.publish_routes(true);
        self.tell_routes(true);
        if now.since(self.gauges_at) < RHYTHM / 2 {
            return;
        }
        self.gauges_at = now;
        if let Some(askers) = self.parts.glance.askers() {
            askers.tidy(now);
        }
        self.look();
        let (brain, metrics) = (&self.parts.brain, &self.parts.metrics);
        let mut by_state = BTreeMap::from([("live", 0), ("suspect", 0), ("lapsed", 0)]);
        for lease in brain.leases(now) {
            *by_state.entry(lease_word(lease.state)).or_default() += 1;
        }
        *metrics.leases.lock().unwrap_or_else(PoisonError::into_inner) = by_state;
        metrics.alerts_standing.set(figure(brain.alerts(now).len()));
        let running: BTreeSet<String> = brain
            .actions(now)
            .into_iter()
            .filter(|action| action.state != "over")
            .map(|one| one.action)
            .collect();
        metrics.actions_running.set(figure(running.len()));
        metrics.blind.set(u8::from(self.facts.is_blind()).into());
        if let Some(age) = self.facts.snapshot_age() {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit for a long time")]
            metrics.last_snapshot.set(clock::wall_ms() as f64 / 1_000.0 - age.as_secs_f64());
        }
    }

    /// The overview that all readers of the next second are given.
    fn look(&self) {
        let at_ms = clock::wall_ms();
        let all = self.parts.hub.balancers();
        let balancers = balancers::of(self.facts.snapshot.as_deref(), all, self.facts.now);
        let (last_day, began_ms) = self.parts.journal.last_day(at_ms);
        let overview = self.parts.brain.overview(
            self.facts.now,
            Beside {
                at_ms,
                version: env!("CARGO_PKG_VERSION").into(),
                swarm: self.parts.glance.swarm().clone(),
                trouble: self.facts.trouble.clone(),
                balancers: self.parts.hub.connected(),
                out_of_balance: balancers::out_of_balance(&balancers),
                last_day,
                began_ms,
            },
        );
        self.parts.metrics.overview(&self.parts.glance.publish(overview));
        self.parts.glance.publish_balancers(balancers);
    }

    /// Tells the balancers: always on the beat, for fresh loads, and else when more than load changed. Also that there is
    /// nothing to balance: a balancer that has not heard so much is not ready, and Swarm would start it again and again.
    fn publish_routes(&mut self, always: bool) {
        let Some(snapshot) = &self.facts.snapshot else { return };
        let mut routes = routes::of(snapshot, &self.parts.brain, self.facts.now);
        routes.acting = self.parts.brain.is_acting();
        if !always && !routes::differ(&routes, &self.routes) {
            return;
        }
        routes.revision = self.routes.revision + 1;
        self.routes = routes.clone();
        if let Err(error) = self.parts.hub.publish(routes) {
            // Once a second at most; the balancers keep what they have.
            tracing::error!("the routes cannot be published: {error}");
        }
    }
}

impl<S> Runner<S> {
    /// Tells the agents what they need to balance at `connect()`, where it changed; on the beat, that it has not.
    fn tell_routes(&mut self, renew: bool) {
        self.facts.now = clock::now();
        let now = self.facts.now;
        let Some(snapshot) = &self.facts.snapshot else { return };
        if now.since(snapshot.taken) > OLDEST_READING {
            return;
        }
        let brain = &self.parts.brain;
        let leaving = self.parts.hub.leaving(|task| snapshot.tasks.contains_key(task));
        self.parts.glance.publish_backends(proxies::of(snapshot, brain, &leaving, now));
        let leases = brain.leases(now).into_iter();
        let silent =
            leases.filter(|lease| lease.state == LeaseState::Lapsed).map(|lease| lease.node).collect();
        let all = connect::of(snapshot, &leaving, &silent);
        if std::mem::replace(&mut self.left_out, all.left_out) != all.left_out && all.left_out > 0 {
            tracing::warn!(
                count = all.left_out,
                "too much is to be balanced at connect(): some is left to Swarm"
            );
        }
        for link in self.connections.values_mut() {
            let mut routes = all.routes.get(&link.node).cloned().unwrap_or_default();
            routes.acting = brain.is_acting() && !routes.fronts.is_empty();
            connect::tell(&mut link.routes, routes, renew, &link.outbox);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure of a scrape")]
fn figure(count: usize) -> f64 {
    count as f64
}

async fn carried_out<S: SwarmApi>(swarm: &S, hub: &Hub, command: Command) -> CommandResult {
    match command {
        Command::DrainBalancers { tasks, deadline_ms } => {
            let late = hub.drain(&tasks, Duration::from_millis(deadline_ms)).await;
            if !late.is_empty() {
                tracing::warn!(?late, "these balancers did not say that they drained in time");
            }
            Ok(())
        }
        Command::ResumeBalancers { tasks } => {
            hub.resume(&tasks);
            Ok(())
        }
        command => match tokio::time::timeout(COMMAND_DEADLINE, swarm.execute(command)).await {
            Ok(result) => result,
            Err(_) => {
                Err(CommandError::Unavailable(format!("no answer within {} s", COMMAND_DEADLINE.as_secs())))
            }
        },
    }
}
