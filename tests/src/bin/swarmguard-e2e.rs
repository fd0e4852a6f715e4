//! `swarmguard-e2e`: plays scenarios on a running cluster. It must run where the nodes' addresses can be reached, inside
//! the cluster's own network namespace; `cargo xtask demo` and `cargo xtask test` start it there.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use swarmguard_tests::e2e::balance::{Balance, PARTS};
use swarmguard_tests::e2e::demo::{Demo, workload};
use swarmguard_tests::e2e::migrate::Migrate;
use swarmguard_tests::e2e::model::{self, Power};
use swarmguard_tests::e2e::stage::Stage;
use swarmguard_tests::e2e::swarm;
use swarmguard_tests::load::{Load, Plan};

#[derive(Parser)]
#[command(name = "swarmguard-e2e", version, about = "Plays scenarios on a running cluster")]
struct Cli {
    #[command(flatten)]
    stage: StageArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct StageArgs {
    /// The cluster's state file
    #[arg(long, default_value = "target/cluster/default/state.json")]
    state: PathBuf,
    /// The list of images
    #[arg(long, default_value = "target/images/images.json")]
    images: PathBuf,
    /// File with the operator's token
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Send requests through the balancers on this overlay network, not through the routing mesh
    #[arg(long)]
    network: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Load the images on the nodes that run them
    Load,
    /// Send requests to every node and count each failure
    Traffic {
        /// A published port
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Requests a second
        #[arg(long, default_value_t = 30.0)]
        rate: f64,
        /// For how many seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Heat one replica and tell what happens
    Demo(DemoArgs),
    /// Send requests through the balancers while replicas move, come, go and die
    Balance(BalanceArgs),
    /// Measure migrations under load, and scaling out
    Migrate(MigrateArgs),
    /// Play the scripts of the model tier: on a model of Swarm and on the cluster, and compare
    Model(ModelArgs),
    /// Play the scenarios of the Swarm tier
    Swarm {
        /// Which; all of them where none is named
        only: Vec<String>,
    },
}

#[derive(Args)]
struct ModelArgs {
    /// The program that made the cluster, which can cut the power of its nodes; scripts that need that are left out
    /// without it
    #[arg(long, requires = "name")]
    xtask: Option<PathBuf>,
    /// The cluster's name there
    #[arg(long)]
    name: Option<String>,
    /// Which; all of them where none is named
    only: Vec<String>,
}

#[derive(Args)]
struct BalanceArgs {
    /// The workload's service
    #[arg(long, default_value = "demo_web")]
    service: String,
    /// The balancer's service
    #[arg(long, default_value = "balancer_balancer")]
    balancer: String,
    /// Port of the balancers on their nodes
    #[arg(long, default_value_t = 8081)]
    port: u16,
    /// Requests a second
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// Where the report goes
    #[arg(long, default_value = "target/demo/report-balance.json")]
    report: PathBuf,
    /// Only these parts; all where none is named
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(PARTS))]
    only: Vec<String>,
}

#[derive(Args)]
struct MigrateArgs {
    /// The balancer's service
    #[arg(long, default_value = "balancer_balancer")]
    balancer: String,
    /// The overlay network that it is on
    #[arg(long = "on-network")]
    on_network: String,
    /// Port of the balancers on their nodes
    #[arg(long, default_value_t = 8081)]
    port: u16,
    /// Migrations
    #[arg(long, default_value_t = 300)]
    migrations: u32,
    /// After every so many of them one by bare API calls; 0 for none
    #[arg(long, default_value_t = 5)]
    surge_every: u32,
    /// Replicas made hot, until one more runs
    #[arg(long, default_value_t = 10)]
    scales: u32,
    /// Requests a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Where the rows go
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct DemoArgs {
    /// The workload's service
    #[arg(long, default_value = "demo_web")]
    service: String,
    /// Its published port
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Requests a second
    #[arg(long, default_value_t = 30.0)]
    rate: f64,
    /// What the replica is told
    #[arg(long, default_value = "/stress/cpu?target=90&duration=600&ramp=2")]
    heat: String,
    /// Where the report goes
    #[arg(long, default_value = "target/demo/report.json")]
    report: PathBuf,
    /// What the nodes are, for the report
    #[arg(long, default_value = "unknown")]
    nodes_are: String,
    /// How the programs were built, for the report
    #[arg(long, default_value = "unknown")]
    programs: String,
    /// Seconds after which the demo gives up on the repair
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let StageArgs { state, images, token_file, network } = &cli.stage;
    let stage = Stage::open(state, images, token_file.as_deref(), network.as_deref()).await?;
    let passed = match cli.command {
        Command::Load => {
            stage.load_images().await?;
            true
        }
        Command::Demo(args) => {
            workload(&stage, &args.service).await?;
            let demo = Demo {
                service: &args.service,
                port: args.port,
                rate_hz: args.rate,
                heat: &args.heat,
                nodes_are: &args.nodes_are,
                programs: &args.programs,
                report: &args.report,
                limit: Duration::from_secs(args.limit),
            };
            demo.play(&stage).await?
        }
        Command::Balance(args) => {
            workload(&stage, &args.service).await?;
            let token = stage.token.as_deref().context("the scenario gives orders: add --token-file")?;
            let balance = Balance {
                service: &args.service,
                balancer: &args.balancer,
                port: args.port,
                rate_hz: args.rate,
                token,
                report: &args.report,
                only: &args.only,
            };
            balance.play(&stage).await?
        }
        Command::Migrate(args) => {
            let token = stage.token.as_deref().context("it gives orders: add --token-file")?;
            let migrate = Migrate {
                balancer: &args.balancer,
                network: &args.on_network,
                port: args.port,
                migrations: args.migrations,
                surge_every: args.surge_every,
                scales: args.scales,
                rate_hz: args.rate,
                token,
                json: args.json.as_deref(),
            };
            migrate.play(&stage).await?
        }
        Command::Traffic { port, rate, seconds } => {
            let targets = stage.cluster.everywhere(port);
            let limit = Duration::from_secs(20);
            let (host, path) = ("web".to_owned(), "/".to_owned());
            let load = Load::start(Plan { targets, host, path, workers: 8, rate_hz: rate, limit });
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let stats = load.finish().await;
            for failure in &stats.failures {
                println!(
                    "{} {} kept alive {}: {}",
                    failure.at_ms, failure.target, failure.kept_alive, failure.cause
                );
            }
            for (replica, answers) in &stats.replicas {
                println!("{replica}: {} answers from {} to {}", answers.count, answers.first, answers.last);
            }
            println!("{} sent, {} failed, {} connections", stats.sent, stats.failed, stats.connections);
            stats.failed == 0 && stats.succeeded > 0
        }
        Command::Model(args) => {
            let power = args.xtask.zip(args.name).map(|(program, cluster)| Power { program, cluster });
            let (passed, failed) = model::play(&stage, power.as_ref(), &args.only).await?;
            println!("model: {passed} passed, {failed} failed");
            failed == 0
        }
        Command::Swarm { only } => {
            let (passed, failed) = swarm::play(&stage, &only).await?;
            println!("swarm: {passed} passed, {failed} failed");
            failed == 0
        }
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
