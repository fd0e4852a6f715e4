//! The model tier: is the model of Swarm, on which actions and simulations are proven, a model of Swarm?
//!
//! The same scripts are played on the model and on a real swarm, and after each step it is compared which tasks lived
//! and which died. What a script itself demands must hold on both sides as well, so that two sides that are wrong
//! alike do not pass.

mod models;
mod picture;
mod real;
mod script;
mod scripts;

use anyhow::{Context, Result, bail, ensure};
use swarmguard_runtime::clock::now;

use super::stage::Stage;
use models::{Models, Played};
use picture::Picture;
pub use real::Power;
use real::Real;
use script::{Answer, Call, Cast, Pick, Script, Step, Then, Until};

/// Models in a crowd: enough that each of a few dozen outcomes of chance is there.
const CROWD: usize = 1_000;
/// Outcomes of the model that are shown beside what the engine did.
const SHOWN: usize = 3;

/// Plays the scripts named in `only` (all where it is empty) and prints a line for each. Returns how many passed and how
/// many failed.
///
/// # Errors
/// Where a name is unknown, or the swarm cannot be made calm.
pub async fn play(stage: &Stage, power: Option<&Power>, only: &[String]) -> Result<(u32, u32)> {
    let scripts = scripts::all();
    if let Some(unknown) = only.iter().find(|name| scripts.iter().all(|script| script.name != **name)) {
        let names: Vec<_> = scripts.iter().map(|script| script.name).collect();
        bail!("no script is called {unknown}, allowed: {}", names.join(", "));
    }
    ensure!(stage.cluster.nodes.len() == 3, "the scripts are written for three nodes");
    let image = stage.image("web-stress")?;
    for node in &stage.cluster.nodes {
        node.engine.load_image(&image.id, &image.archive).await?;
    }
    let engine = stage.cluster.swarm().version().await?;
    let (mut passed, mut failed) = (0, 0);
    for (seed, script) in (0..).zip(&scripts) {
        if !only.is_empty() && !only.iter().any(|name| name == script.name) {
            continue;
        }
        if power.is_none() && script.needs_power() {
            println!(
                "model {engine}: {} left out: it cuts a node's power, and --xtask is not given",
                script.name
            );
            continue;
        }
        // Also what an interrupted run has left.
        real::clean(&stage.cluster).await?;
        let start = now();
        let mut player = Player {
            models: Models::new(CROWD, seed),
            real: Real::new(&stage.cluster, power, &image.id, script.name),
            cast: ["node1", "node2", "node3"].map(|name| (name, name.to_owned())).into(),
            seen: Picture::default(),
            forks: Vec::new(),
        };
        let outcome = player.play(script).await;
        let seconds = (now() - start).as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                let forks = player.forks.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
                println!(
                    "model {engine}: {} ok ({seconds:.1} s; outcomes of each step: {forks})",
                    script.name
                );
            }
            Err(error) => {
                failed += 1;
                println!(
                    "model {engine}: {} FAILED ({seconds:.1} s): {}\n{error:#}",
                    script.name, script.about
                );
            }
        }
    }
    // Nobody plays after the last one.
    real::remove(stage.cluster.swarm()).await?;
    Ok((passed, failed))
}

struct Player<'a> {
    models: Models,
    real: Real<'a>,
    cast: Cast,
    /// What both sides showed after the last step.
    seen: Picture,
    /// How many outcomes the models had, by step.
    forks: Vec<usize>,
}

impl Player<'_> {
    async fn play(&mut self, script: &Script) -> Result<()> {
        for (number, step) in (1..).zip(&script.steps) {
            match step {
                Step::Cast { role, pick } => {
                    let node = self.pick(*pick).with_context(|| format!("no node can be the {role}"))?;
                    self.cast.insert(role, node);
                }
                Step::Call { call, answer, until, then } => self
                    .step(call, *answer, *until, then)
                    .await
                    .with_context(|| format!("step {number}, {call:?}, with {:?}", self.cast))?,
            }
        }
        Ok(())
    }

    async fn step(&mut self, call: &Call, answer: Answer, until: Until, then: &[Then]) -> Result<()> {
        // The models think while the engine works.
        let (mut models, told, cast) = (self.models.clone(), call.clone(), self.cast.clone());
        let thinking = tokio::task::spawn_blocking(move || {
            let played = models.play(&told, &cast, until);
            (models, played)
        });
        let answered = self.real.call(call, &self.cast).await?;
        let real = if call.moves_tasks() { Some(self.real.settle(until).await?) } else { None };
        let (models, played) = thinking.await.context("the models came to grief")?;
        self.models = models;
        if let Some(picture) = &played.restless {
            bail!("a model does not come to rest:\n{picture}");
        }
        ensure!(answered == answer, "the engine answered {answered:?}, not {answer:?}");
        ensure!(played.answers == [answer], "the model answered {:?}, not {answer:?}", played.answers);
        let Some(real) = real else { return Ok(()) };
        self.forks.push(played.outcomes.len());
        self.check(&played, &real, then)?;
        self.models.follow(&real);
        self.seen = real;
        Ok(())
    }

    /// Did the engine do what some models did, and did all do what the script says?
    fn check(&self, played: &Played, real: &Picture, then: &[Then]) -> Result<()> {
        ensure!(played.outcomes.contains_key(real), "{}", differs(played, real, &self.seen));
        let named = |role: &str| self.cast.get(role).cloned().unwrap_or_default();
        for then in then {
            if let Some(wrong) = real.contradiction(&self.seen, *then, &named) {
                bail!("both agree against the script: {wrong}\n{real}");
            }
            for model in played.outcomes.keys() {
                if let Some(wrong) = model.contradiction(&self.seen, *then, &named) {
                    bail!("some models are against the script: {wrong}\n{model}");
                }
            }
        }
        Ok(())
    }

    fn pick(&self, pick: Pick) -> Option<String> {
        let names = || ["node1", "node2", "node3"].map(str::to_owned).into_iter();
        // The first of equals: max_by_key would take the last.
        match pick {
            Pick::Fullest => names().rev().max_by_key(|name| self.seen.on(name)),
            Pick::Emptiest => names().min_by_key(|name| self.seen.on(name)),
            Pick::Youngest => self.seen.youngest().map(str::to_owned),
        }
    }
}

/// What the engine did beside what the models did, for the message of a failure.
fn differs(played: &Played, real: &Picture, before: &Picture) -> String {
    let mut outcomes: Vec<_> = played.outcomes.iter().collect();
    outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let all: usize = played.outcomes.values().sum();
    let mut text = format!("no model did what the engine did\n  before:\n{before}\n  the engine:\n{real}");
    for (picture, count) in outcomes.into_iter().take(SHOWN) {
        text.push_str(&format!("\n  {count} of {all} models:\n{picture}"));
    }
    text
}
