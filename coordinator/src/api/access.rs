//! Who may do what over which transport.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, Plain, Via, problem::Problem};
use crate::metrics::ReasonLabel;

/// A wrong token is answered this much later, so that guessing is slow.
const GUESS_DELAY: Duration = Duration::from_millis(300);

/// Refuses plain HTTP where it is not wanted at all.
pub(super) async fn transport(State(api): State<Api>, request: Request, next: Next) -> Response {
    let via = request.extensions().get::<Via>();
    let safe = via.is_some_and(|via| via.tls || via.peer.ip().is_loopback());
    if api.0.plain == Plain::None && !safe {
        let detail =
            "plain HTTP is switched off here (--api-plain): use https, with the swarm's root certificate";
        return api
            .refused("plain", Problem::new(StatusCode::FORBIDDEN, "tls_needed", detail))
            .into_response();
    }
    next.run(request).await
}

impl Api {
    /// The operator's name for the journal, or why there is none.
    pub(super) async fn operator(&self, via: Option<&Via>, headers: &HeaderMap) -> Result<String, Problem> {
        let local = via.is_some_and(|via| via.peer.ip().is_loopback());
        let confidential = local || via.is_some_and(|via| via.tls) || self.0.plain == Plain::All;
        if !confidential {
            let detail = "commands are taken over https only, so that nobody reads the token: use https with the \
                          swarm's root certificate, or start the coordinator with --api-plain=all on a trusted network";
            return Err(self.refused("plain", Problem::new(StatusCode::FORBIDDEN, "tls_needed", detail)));
        }
        if let Some(operator) = via.and_then(|via| via.operator.clone()) {
            return Ok(operator);
        }
        let Some(token) = &self.0.token else {
            let detail = "commands are not enabled: give the coordinator a token in a Docker secret \
                          (SWARMGUARD_OPERATOR_TOKEN_FILE), or present an operator's certificate";
            return Err(
                self.refused("not_enabled", Problem::new(StatusCode::FORBIDDEN, "commands_disabled", detail))
            );
        };
        let offered = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let offered = offered.and_then(|value| value.split_once(' '));
        let offered = offered
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(offered) = offered else {
            let detail = "commands need the operator's token: Authorization: Bearer <token>";
            return Err(
                self.refused("no_token", Problem::new(StatusCode::UNAUTHORIZED, "token_needed", detail))
            );
        };
        if !token.matches(offered) {
            tokio::time::sleep(GUESS_DELAY).await;
            let detail = "the token is not the one configured here";
            return Err(
                self.refused("wrong_token", Problem::new(StatusCode::UNAUTHORIZED, "wrong_token", detail))
            );
        }
        Ok(via.map_or_else(|| "an operator".into(), |via| format!("an operator at {}", via.peer.ip())))
    }

    fn refused(&self, reason: &str, problem: Problem) -> Problem {
        self.0.metrics.api_refused.get_or_create(&ReasonLabel { reason: reason.into() }).inc();
        tracing::warn!(reason, code = problem.code(), "a request to the API was refused");
        problem
    }
}
