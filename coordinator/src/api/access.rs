//! Who may do what, over which transport, under which name of this server.
//!
//! Closed by default: what is read tells names, addresses and loads, and so needs a certificate, a token, or to come from
//! this machine itself. The page's own files, `/healthz` and the description of the API tell nothing and are open.

use std::{net::IpAddr, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use swarmguard_runtime::clock;

use super::{Api, Plain, Via, problem::Problem};
use crate::ingest::token::Token;

/// A wrong token is answered this much later, so that guessing is slow.
const GUESS_DELAY: Duration = Duration::from_millis(300);
/// In requests that another coordinator forwards: who gave the command.
pub(super) const OPERATOR: &str = "swarmguard-operator";
/// Longest name of an operator, in characters.
const MAX_NAME: usize = 64;
/// Answered to anybody.
const OPEN: [&str; 6] =
    ["/", "/page.css", "/healthz", "/favicon.svg", "/favicon.ico", "/api/v1/openapi.json"];
/// The page's modules: likewise.
const MODULES: &str = "/page/";
/// Checked by themselves, and more strictly.
const COMMANDS: &str = "/api/v1/commands/";

/// Who is let in.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Lets commands and reads in.
    pub token: Option<Token>,
    /// Lets reads in, over plain HTTP too.
    pub reader_token: Option<Token>,
    /// What plain HTTP may be used for.
    pub plain: Plain,
    /// Reads need nothing.
    pub open_reads: bool,
    /// Names by which this server may be called besides addresses, host names of nodes and `localhost`.
    pub hosts: Vec<String>,
}

/// Why a request was refused. The words are stable: they are the values of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reason {
    /// Plain HTTP, where that is not wanted.
    Plain,
    /// The server was called by a name that is not its own.
    Host,
    /// A command, and neither token nor certificates are set up.
    NotEnabled,
    /// Nothing that says who asks.
    NoToken,
    /// A token that is none of ours.
    WrongToken,
    /// Too many event streams.
    Streams,
}

impl Reason {
    const fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Host => "host",
            Self::NotEnabled => "not_enabled",
            Self::NoToken => "no_token",
            Self::WrongToken => "wrong_token",
            Self::Streams => "streams",
        }
    }
}

/// Everything that is checked before a request is looked at. A request without a [`Via`] comes from afar, in plain.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match api.admit(head.extensions.get::<Via>(), &head.uri, &head.headers).await {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(problem) => problem.into_response(),
    }
}

impl Via {
    fn is_local(&self) -> bool {
        self.peer.ip().is_loopback()
    }
}

impl Api {
    async fn admit(&self, via: Option<&Via>, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let safe = via.is_some_and(|via| via.tls || via.is_local());
        if self.0.access.plain == Plain::None && !safe {
            let detail =
                "plain HTTP is switched off here (--api-plain): use https, with the swarm's root certificate";
            return Err(self.refused(
                via,
                Reason::Plain,
                Problem::new(StatusCode::FORBIDDEN, "tls_needed", detail),
            ));
        }
        self.called_rightly(via, uri, headers)?;
        let path = uri.path();
        if OPEN.contains(&path) || path.starts_with(MODULES) || path.starts_with(COMMANDS) {
            return Ok(());
        }
        self.reader(via, headers).await
    }

    /// A page of somebody else's that makes a browser call us by its own name (DNS rebinding) is answered nothing.
    fn called_rightly(&self, via: Option<&Via>, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let said = headers.get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
        let said = said.or_else(|| uri.authority().map(|authority| authority.as_str()));
        // HTTP/1.0 knows no such header, and no browser speaks it.
        let Some(said) = said else { return Ok(()) };
        let name = host_of(said);
        let known = name.parse::<IpAddr>().is_ok()
            || ["localhost", "swarm-manager"].contains(&name)
            || self.0.access.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
            || self.0.glance.newest().is_some_and(|overview| {
                overview.nodes.iter().any(|node| node.hostname.eq_ignore_ascii_case(name))
            });
        if known {
            return Ok(());
        }
        let shown: String = name.chars().take(80).collect();
        let detail = format!(
            "this server is not called {shown:?}: use an address or a node's host name, or name it with --api-hosts"
        );
        let problem = Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", detail);
        Err(self.refused(via, Reason::Host, problem))
    }

    /// Whether reads are answered.
    async fn reader(&self, via: Option<&Via>, headers: &HeaderMap) -> Result<(), Problem> {
        let access = &self.0.access;
        let known = |via: &Via| via.is_local() || via.operator.is_some() || via.manager.is_some();
        if access.open_reads || via.is_some_and(known) {
            return Ok(());
        }
        let Some(offered) = bearer(headers) else {
            let detail = "reading needs a token (Authorization: Bearer <token>), an operator's certificate, or to be \
                          on this machine; --open-reads opens it to everybody";
            return Err(self.refused(
                via,
                Reason::NoToken,
                Problem::new(StatusCode::UNAUTHORIZED, "token_needed", detail),
            ));
        };
        if access.reader_token.as_ref().is_some_and(|token| token.matches(offered)) {
            return Ok(());
        }
        self.confidential(via)?;
        if access.token.as_ref().is_some_and(|token| token.matches(offered)) {
            return Ok(());
        }
        Err(self.wrong_token(via).await)
    }

    /// The token for commands is not taken where others may listen.
    fn confidential(&self, via: Option<&Via>) -> Result<(), Problem> {
        if self.0.access.plain == Plain::All || via.is_some_and(|via| via.tls || via.is_local()) {
            return Ok(());
        }
        let detail = "the operator's token is taken over https only, so that nobody reads it: use https with the \
                      swarm's root certificate, or start the coordinator with --api-plain=all on a trusted network";
        Err(self.refused(via, Reason::Plain, Problem::new(StatusCode::FORBIDDEN, "tls_needed", detail)))
    }

    /// The operator's name for the journal, or why there is none.
    pub(super) async fn operator(&self, via: Option<&Via>, headers: &HeaderMap) -> Result<String, Problem> {
        self.confidential(via)?;
        if let Some(operator) = via.and_then(|via| via.operator.clone()) {
            return Ok(operator);
        }
        if let Some(node) = via.and_then(|via| via.manager.as_ref()) {
            // Another coordinator, which has checked who it is.
            let name = named(headers).unwrap_or_else(|| "an operator".into());
            return Ok(format!("{name} through {}", self.hostname(node)));
        }
        let Some(token) = &self.0.access.token else {
            let detail = "commands are not enabled: give the coordinator a token in a Docker secret \
                          (SWARMGUARD_OPERATOR_TOKEN_FILE), or present an operator's certificate";
            let problem = Problem::new(StatusCode::FORBIDDEN, "commands_disabled", detail);
            return Err(self.refused(via, Reason::NotEnabled, problem));
        };
        let Some(offered) = bearer(headers) else {
            let detail = "commands need the operator's token: Authorization: Bearer <token>";
            return Err(self.refused(
                via,
                Reason::NoToken,
                Problem::new(StatusCode::UNAUTHORIZED, "token_needed", detail),
            ));
        };
        if !token.matches(offered) {
            return Err(self.wrong_token(via).await);
        }
        Ok(via.map_or_else(|| "an operator".into(), |via| format!("an operator at {}", via.peer.ip())))
    }

    fn hostname(&self, node: &str) -> String {
        let overview = self.0.glance.newest();
        let row = overview.as_ref().and_then(|seen| seen.nodes.iter().find(|row| row.node.as_str() == node));
        row.map_or_else(|| node.to_owned(), |row| row.hostname.clone())
    }

    async fn wrong_token(&self, via: Option<&Via>) -> Problem {
        tokio::time::sleep(GUESS_DELAY).await;
        let detail = "the token is not the one configured here";
        self.refused(via, Reason::WrongToken, Problem::new(StatusCode::UNAUTHORIZED, "wrong_token", detail))
    }

    /// Counted always, logged with the peer but not more often than is useful.
    pub(super) fn refused(&self, via: Option<&Via>, reason: Reason, problem: Problem) -> Problem {
        let word = reason.word();
        self.0.metrics.api_refused.inc([word]);
        let peer = via.map_or(IpAddr::from([0, 0, 0, 0]), |via| via.peer.ip());
        if let Some(suppressed) = self.0.quiet.speak(peer, reason, clock::now()) {
            tracing::warn!(%peer, reason = word, code = problem.code(), suppressed, "a request to the API was refused");
        }
        problem
    }
}

/// Without the port; the brackets of a version 6 address go along.
fn host_of(said: &str) -> &str {
    if let Some(rest) = said.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    said.split(':').next().unwrap_or_default()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Who gave a command, as a coordinator says that forwards it.
fn named(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(OPERATOR)?.to_str().ok()?.trim();
    let name: String = said.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_NAME).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_without_ports_and_brackets() {
        for (said, host) in [
            ("m1:7480", "m1"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]:7480", "::1"),
            ("[fe80::1", "fe80::1"),
            ("", ""),
        ] {
            assert_eq!(host_of(said), host);
        }
    }
}
