//! One balancer's connection: a token first, then routes out and "drained" in.

use std::sync::Arc;

use super::{Ingest, Streams, hub::Seat, rate::Bucket, reason_of, refusal::Reason, token::Token};
use quinn::{RecvStream, SendStream};
use swarmguard_common::wire::routes::ToRouteSource;
use swarmguard_runtime::{clock, frame};

/// Longest name of a balancer, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// "Drained" messages a second; a balancer sends one for each drain.
const MESSAGES_PER_S: f64 = 50.0;

/// A balancer whose token was right.
pub(super) struct Guest {
    streams: Streams,
    name: String,
}

impl Ingest {
    pub(super) async fn greet_balancer(&self, mut streams: Streams, expected: &Token) -> Option<Guest> {
        let (connection, from) = (streams.connection.clone(), streams.from);
        let ToRouteSource::Hello { token, name } = self.first(&mut streams).await? else {
            return self.refuse(&connection, from, Reason::Unexpected, "the first message is a hello");
        };
        if !expected.matches(&token) {
            return self.refuse(
                &connection,
                from,
                Reason::WrongToken,
                "the token is not the one configured here",
            );
        }
        if name.len() > MAX_NAME_BYTES {
            return self.refuse(&connection, from, Reason::Malformed, "the balancer's name is too long");
        }
        Some(Guest { streams, name })
    }

    pub(super) async fn balancer(&self, guest: Guest) {
        let Guest { streams: Streams { connection, from, send, receive }, name } = guest;
        let Some(seat) = self.hub.join(&name) else {
            let _: Option<()> = self.refuse(&connection, from, Reason::Crowded, "too many balancers");
            return;
        };
        tracing::info!(balancer = name, %from, "balancer connected");
        let id = seat.id;
        let why = tokio::select! {
            biased;
            why = self.drained(receive, id) => why,
            why = self.routes(send, seat) => why,
        };
        match why {
            Some((reason, why)) => {
                let _: Option<()> = self.refuse(&connection, from, reason, &why);
            }
            None => connection.close(quinn::VarInt::from_u32(super::close::GOING), b"the stream ended"),
        }
        self.hub.leave(id);
        tracing::info!(balancer = name, %from, "balancer disconnected");
    }

    async fn drained(&self, mut stream: RecvStream, id: u64) -> Option<(Reason, String)> {
        let mut bucket = Bucket::new(MESSAGES_PER_S, MESSAGES_PER_S, clock::now());
        loop {
            match frame::read::<ToRouteSource>(&mut stream).await {
                Ok(Some(ToRouteSource::Drained { tasks })) => self.hub.drained(id, &tasks),
                // Nothing here needs them yet.
                Ok(Some(ToRouteSource::Stats(stats))) => self.hub.figures(id, stats, clock::now()),
                Ok(Some(ToRouteSource::Hello { .. })) => {
                    return Some((Reason::Unexpected, "a second hello".into()));
                }
                Ok(None) => return None,
                Err(error) => return reason_of(&error).map(|reason| (reason, error.to_string())),
            }
            while let Err(wait) = bucket.take(clock::now()) {
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn routes(&self, mut send: SendStream, mut seat: Seat) -> Option<(Reason, String)> {
        // What is known now goes first: a reconnected balancer must not wait for the next change.
        seat.routes.mark_changed();
        loop {
            let frame: Arc<[u8]> = tokio::select! {
                // Drains before routes: they are what somebody waits for.
                biased;
                frame = seat.urgent.recv() => frame?,
                changed = seat.routes.changed() => {
                    changed.ok()?;
                    Arc::clone(&seat.routes.borrow_and_update())
                }
            };
            match tokio::time::timeout(self.limits.write, send.write_all(&frame)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Reason::SlowReader, "it does not read what it is sent".into())),
            }
        }
    }
}
