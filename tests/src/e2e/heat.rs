//! Telling one particular replica to be busy, through the same door that everybody uses.

use std::time::Duration;

use anyhow::{Result, bail};
use axum::body::Bytes;
use axum::http::{Method, StatusCode};

use crate::http::{Endpoint, text};

/// How often the door is asked until it hits the replica meant.
const TRIES: usize = 200;

/// Sends `path` (with a query, without `host=`) to the replica whose container has the host name `host`: mesh and
/// balancers hand requests out in turns, and every other replica declines.
///
/// # Errors
/// Where the replica is not reached, or refuses.
pub async fn tell(doors: &[Endpoint], host: &str, path: &str) -> Result<()> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}host={host}");
    let mut last = String::new();
    for attempt in 0..TRIES {
        match doors[attempt % doors.len()]
            .call(Method::POST, &path, Bytes::new(), Duration::from_secs(10))
            .await
        {
            Ok((StatusCode::OK, _)) => return Ok(()),
            Ok((StatusCode::MISDIRECTED_REQUEST, body)) => last = text(&body),
            Ok((status, body)) => bail!("{host} refused {path}: {status}: {}", text(&body)),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("{host} was not reached in {TRIES} tries, the last one said: {last}")
}
