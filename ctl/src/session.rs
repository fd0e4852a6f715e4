//! What a command has at hand: the engine and the coordinator, reached when first needed, and the output.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    sync::Arc,
};

use serde_json::Value;
use swarmguard_common::api::Overview;
use tokio::sync::OnceCell;

use crate::{
    cli::Global,
    coordinator::{ByAddress, Coordinator},
    engine::{Engine, address::Sources, connect::Connector},
    failure::{Exit, Failure, Outcome},
    out::{Format, Style, document, for_programs},
};

/// Longest token file that is read, in bytes.
const MAX_TOKEN: u64 = 4 * 1024;

/// One run of a command.
#[derive(Debug)]
pub struct Session {
    /// What holds for all commands.
    pub global: Global,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// What the output can show.
    pub style: Style,
    engine: OnceCell<Arc<Engine>>,
    coordinator: OnceCell<Arc<Coordinator>>,
}

impl Session {
    /// Nothing is connected yet.
    pub fn new(global: Global, env: BTreeMap<String, String>) -> Self {
        let style = Style::of_stdout(global.color, &env);
        Self { global, env, style, engine: OnceCell::new(), coordinator: OnceCell::new() }
    }

    /// The engine, found as docker finds it.
    ///
    /// # Errors
    /// When it cannot be found or reached.
    pub async fn engine(&self) -> Outcome<&Arc<Engine>> {
        self.engine
            .get_or_try_init(|| async {
                let Global { host, context, .. } = &self.global;
                let sources = Sources { host: host.clone(), context: context.clone(), env: self.env.clone() };
                Engine::connect(Connector::new(sources.find()?)?).await.map(Arc::new)
            })
            .await
    }

    /// The coordinator: by address where one is given, else through the engine.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn coordinator(&self) -> Outcome<&Arc<Coordinator>> {
        self.coordinator
            .get_or_try_init(|| async {
                if self.global.coordinator.is_empty() {
                    return Coordinator::through(Arc::clone(self.engine().await?), self.who())
                        .await
                        .map(Arc::new);
                }
                let token = self.global.token_file.as_deref().map(token_of).transpose()?;
                Ok(Arc::new(Coordinator::by_address(ByAddress {
                    urls: self.global.coordinator.clone(),
                    ca: self.global.ca.clone(),
                    token,
                    certificate: self.global.cert.clone().zip(self.global.key.clone()),
                })))
            })
            .await
    }

    /// The swarm at a glance.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn overview(&self) -> Outcome<Overview> {
        self.coordinator().await?.get("/api/v1/overview").await
    }

    /// Who types, for the journal.
    fn who(&self) -> String {
        let of = |name: &str| self.env.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let user = of("SUDO_USER").or_else(|| of("USER")).or_else(|| of("LOGNAME")).unwrap_or("an operator");
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        if host.is_empty() { user.into() } else { format!("{user}@{host}") }
    }

    /// Prints; a reader that went away ends us quietly.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print(&self, text: &str) -> Outcome {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Done, "")),
            Err(error) => Err(Failure::failed(format!("cannot write the output: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// Says how it goes, beside the answer.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// One thing: for programs as they want it, for people as `text` has it.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn answer(&self, kind: &str, value: Value, name: &str, text: impl FnOnce() -> String) -> Outcome {
        if self.global.output == Format::Name {
            return self.print(&format!("{name}\n"));
        }
        match for_programs(self.global.output, &document(kind, value))? {
            Some(written) => self.print(&written),
            None => self.print(&text()),
        }
    }

    /// Whether the answer is for people.
    pub fn for_people(&self) -> bool {
        matches!(self.global.output, Format::Table | Format::Wide)
    }

    /// Asks before something that cannot be taken back.
    ///
    /// # Errors
    /// When the answer is no, or nobody can be asked.
    pub fn confirm(&self, question: &str, yes: bool) -> Outcome {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(format!("{question} Nobody can be asked here"))
                .hint("say --yes if that is meant"));
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        let _ = io::stdin().read_line(&mut answer);
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(Failure::failed("nothing was changed"))
        }
    }
}

fn token_of(file: &Path) -> Outcome<String> {
    let refuse = |why: String| Failure::usage(format!("--token-file {}: {why}", file.display()));
    let length = fs::metadata(file).map_err(|error| refuse(error.to_string()))?.len();
    if length > MAX_TOKEN {
        return Err(refuse(format!("{length} bytes are no token")));
    }
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    match text.trim() {
        "" => Err(refuse("it is empty".into())),
        token => Ok(token.into()),
    }
}
