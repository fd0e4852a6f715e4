//! `cargo xtask bench judgement`: plays scenarios with SwarmGuard and its peers, prints what each is worth, keeps figures and
//! pictures.

mod table;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use swarmguard_gym::{Policy, Run, play, plot, scenario::Scenario, scenario::read::nearest};

/// Play the judgement against modelled workloads, beside other projects' rules
#[derive(Parser)]
#[command(name = "swarmguard-gym")]
struct Args {
    /// Scenarios of the project by name; all of them unless said otherwise
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// A scenario of your own
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Seeds of each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Who decides; all of them unless said otherwise
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<String>,
    /// Where the scenarios are
    #[arg(long, default_value = "tests/scenarios/judgement")]
    dir: PathBuf,
    /// Write the figures as JSON there
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Draw a picture of each scenario's first seed there
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Print what was decided and refused in the first seed
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let scenarios = chosen(args)?;
    let policies = policies(&args.policies)?;
    if let Some(dir) = &args.plots {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut report = swarmguard_tests::figures::Report::new("cargo xtask bench judgement");
    table::heading();
    let mut missed = 0;
    for scenario in &scenarios {
        let runs = play_all(scenario, &policies, args)?;
        table::scenario(scenario, &policies, &runs);
        missed += table::goals(scenario, &runs);
        table::rows(scenario, &policies, &runs, &mut report);
    }
    if let Some(path) = &args.json {
        report.write(path)?;
        println!("figures are in {}", path.display());
    }
    if let Some(dir) = &args.plots {
        println!("pictures are in {}", dir.display());
    }
    println!("{} scenarios, {missed} bounds missed that are not known to be", scenarios.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(args: &Args) -> Result<Vec<Arc<Scenario>>> {
    let mut scenarios = Vec::new();
    for path in &args.file {
        scenarios.push(Arc::new(Scenario::load(path)?));
    }
    if !args.file.is_empty() && args.scenarios.is_empty() {
        return Ok(scenarios);
    }
    let all = Scenario::load_all(&args.dir)?;
    ensure!(!all.is_empty(), "there is no scenario in {}", args.dir.display());
    for name in &args.scenarios {
        if !all.iter().any(|scenario| scenario.name == *name) {
            let known: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
            match nearest(name, &known) {
                Some(near) => bail!("there is no scenario {name:?}: did you mean {near}?"),
                None => bail!("there is no scenario {name:?}: known are {}", known.join(", ")),
            }
        }
    }
    let wanted = |scenario: &Scenario| args.scenarios.is_empty() || args.scenarios.contains(&scenario.name);
    scenarios.extend(all.into_iter().filter(wanted).map(Arc::new));
    Ok(scenarios)
}

fn policies(names: &[String]) -> Result<Vec<Policy>> {
    if names.is_empty() {
        return Ok(Policy::ALL.to_vec());
    }
    let known = Policy::ALL.map(Policy::word);
    let read = |name: &String| {
        let found = Policy::ALL.into_iter().find(|policy| policy.word() == name);
        found.with_context(|| format!("there is no policy {name:?}: known are {}", known.join(", ")))
    };
    names.iter().map(read).collect()
}

/// Runs by policy, in the order of the seeds.
type Runs = BTreeMap<Policy, Vec<Run>>;

fn play_all(scenario: &Arc<Scenario>, policies: &[Policy], args: &Args) -> Result<Runs> {
    let seeds = args.from..args.from + args.seeds;
    let jobs: Vec<(Policy, u64)> =
        policies.iter().flat_map(|policy| seeds.clone().map(move |seed| (*policy, seed))).collect();
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<(Policy, u64), Run>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((policy, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = play(scenario, *policy, *seed);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert((*policy, *seed), run);
                }
            });
        }
    });
    let mut runs = Runs::new();
    for ((policy, seed), run) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        if seed == args.from {
            show(scenario, policy, seed, &run, args)?;
        }
        if let Some(violation) = run.violations.first() {
            bail!("{}, {}, seed {seed}: {violation}", scenario.name, policy.word());
        }
        runs.entry(policy).or_default().push(run);
    }
    Ok(runs)
}

/// The picture and the story of one run.
fn show(scenario: &Scenario, policy: Policy, seed: u64, run: &Run, args: &Args) -> Result<()> {
    if let Some(dir) = &args.plots {
        let name = match policy {
            Policy::SwarmGuard => format!("{}.svg", scenario.name),
            other => format!("{}.{}.svg", scenario.name, other.word()),
        };
        write(&dir.join(name), &plot::draw(scenario, policy.word(), seed, run))?;
    }
    if args.verbose {
        println!("--- {}, {}, seed {seed}", scenario.name, policy.word());
        for (at, text) in &run.acts.said {
            println!("{:9.2} {text}", (*at - run.record.start).as_secs_f64());
        }
        for act in &run.acts.all {
            let at = (act.begun - run.record.start).as_secs_f64();
            let name = &scenario.services[act.service].name;
            println!("{at:9.2} {name} {}: {:?} [{}] {}", plot::what(act), act.helped, act.judged, act.text);
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
