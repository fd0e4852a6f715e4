//! The fast path: plain HTTP/1.1 requests without a body, which are most, at the cost of little more than their system
//! calls. Everything else is handed to hyper, connection and unread bytes and all, before anything of it was done.
//!
//! Why not hyper for these too: its connection, its client and the channels between them cost about 2.5 us of 12.5 a
//! request here (docs/decisions/0008-proxy-stack.md); nginx costs 11.8. Heads are read by httparse, hyper's own parser, and
//! only those are taken that leave no room for interpretation ([`request`]).

mod link;
pub mod pools;
pub mod request;
pub mod response;
pub mod timer;

use std::{
    io,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use http::StatusCode;
use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use self::{
    link::{Heard, Link, Passed, Read},
    request::{Parsed, Plain},
    response::{Head, Malformed},
};
use super::{
    NO_ANSWER, UNREACHABLE,
    headers::Client,
    retry::{Ended, Retry},
    upstream::{self, Use},
    worker::Worker,
};
use crate::{
    choose::{Choice, Wish},
    pick::Reason,
    replica::Replica,
    service::Service,
    stats::bump,
    sticky,
};

/// Serves plain requests until the connection ends (`None`) or something else comes: then the connection and what was
/// read of it are for the slow path. What is handed over begins with a whole head, or with what is no HTTP/1.1 at all.
pub async fn serve<S>(worker: &Rc<Worker>, stream: S, client: &Client) -> Option<(S, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let settings = &worker.global.settings;
    let mut link = Link::new(worker, client, stream);
    // Waited for once, not anew with each request.
    let mut closing = worker.global.closing.clone();
    let mut closing = pin!(closing.wait_for(|closing| *closing));
    loop {
        match link.hear(&mut closing).await {
            Heard::Head => {}
            Heard::Other => return Some(link.into_parts()),
            Heard::Gone => return None,
            Heard::TooLarge => {
                bump(&worker.stats.refused_malformed);
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return link.refuse(status, "the head of the request is too large").await;
            }
            Heard::NoMemory => return link.shed().await,
        }
        if !worker.has_memory() {
            return link.shed().await;
        }
        let begun = match request::parse(&link.read, settings) {
            Parsed::Plain(plain) => worker.begin(&plain, client),
            Parsed::Other | Parsed::Partial => None,
        };
        let Some(begun) = begun else { return Some(link.into_parts()) };
        let length = begun.length;
        link.begin();
        let stays = link.exchange(begun).await;
        link.end(length);
        if !stays || *worker.global.closing.borrow() {
            // The answer is out; what cannot be said any more is of no use to the client.
            let _: io::Result<()> = link.stream.shutdown().await;
            return None;
        }
    }
}

/// Says that there is no memory for what comes over `stream`.
pub async fn shed<S>(worker: &Rc<Worker>, client: &Client, stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut link = Link::new(worker, client, stream);
    link.refuse::<()>(StatusCode::SERVICE_UNAVAILABLE, super::NO_MEMORY).await;
}

/// A request that is under way; nothing is borrowed from the client's bytes any more.
struct Begun {
    service: Arc<Service>,
    choice: Choice,
    /// The head for the replica, written.
    head: Vec<u8>,
    /// Length of the client's head.
    length: usize,
    close: bool,
    to_head: bool,
    sticky: Option<u64>,
}

impl Worker {
    /// Chooses service and replica; `None` where that is for the slow path, with nothing done yet.
    fn begin(&self, plain: &Plain<'_>, client: &Client) -> Option<Begun> {
        let settings = &self.global.settings;
        let path = plain.target.split('?').next().unwrap_or_default();
        if settings.own_paths && matches!(path, "/metrics" | "/healthz") {
            return None;
        }
        let service = self.find(plain.host, path)?;
        if service.labels.http2 || service.is_rated() {
            return None;
        }
        let cookie = |cookies: &[u8]| sticky::read_bytes(cookies, &service.cookie);
        let sticky =
            if service.labels.sticky { plain.cookies.iter().find_map(|it| cookie(it)) } else { None };
        let wish = Wish { sticky, tried: &[], repeatable: true };
        let choice = self.choose(&service, wish).ok()?;
        bump(&self.stats.requests);
        bump(&self.stats.requests_fast);
        service.shared.requests.fetch_add(1, Relaxed);
        service.shared.budget.deposit();
        let mut head = self.fast.buffer();
        plain.write(&mut head, client, settings);
        let (length, close, to_head) = (plain.length, plain.close, plain.method == "HEAD");
        Some(Begun { service, choice, head, length, close, to_head, sticky })
    }
}

/// Why there is no answer.
struct Lost {
    ended: Ended,
    why: String,
}

impl Lost {
    fn new(ended: Ended, why: impl Into<String>) -> Self {
        Self { ended, why: why.into() }
    }
}

impl From<Malformed> for Lost {
    fn from(malformed: Malformed) -> Self {
        let ended = if malformed == response::TOO_MANY { Ended::TooLarge } else { Ended::Unreadable };
        Self::new(ended, malformed.to_string())
    }
}

/// An answer whose head is there.
struct Answered {
    upstream: TcpStream,
    head: Head,
    /// For the client: its head, then what came of the body.
    out: Vec<u8>,
    ended: bool,
    /// More came than belongs to the answer.
    surplus: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<'_, S> {
    /// One request and its answer; false when the connection is to be closed.
    async fn exchange(&mut self, begun: Begun) -> bool {
        let Begun { service, mut choice, head, close, to_head, sticky, .. } = begun;
        self.stalls = Some(Arc::clone(&service.shared.stalls));
        let mut retry = Retry::new(true);
        let stays = loop {
            let replica = Arc::clone(choice.lease.replica());
            let started = clock::now();
            let answered = self.ask(&replica, &service, &head, to_head).await;
            let ended = match &answered {
                Ok(answered) => Ended::Answered(answered.head.status),
                Err(lost) => lost.ended,
            };
            self.worker.ended(&service, &replica, ended, clock::now().since(started));
            if retry.again(replica.key, ended, &service.shared.budget)
                && let Ok(other) = self.worker.choose(&service, retry.wish(sticky))
            {
                self.worker.retried(&service);
                choice = other;
                continue;
            }
            break match answered {
                Ok(answered) => self.pass(answered, &service, &choice, close).await,
                Err(lost) => self.answer_failure(&service, &replica, &lost).await,
            };
        };
        self.worker.fast.return_buffer(head);
        stays
    }

    /// Says that there is no answer; the connection is closed afterwards.
    async fn answer_failure(&mut self, service: &Service, replica: &Replica, lost: &Lost) -> bool {
        let Some(status) = self.worker.count_failure(service, lost.ended) else { return false };
        let why = &lost.why;
        tracing::debug!(task = %replica.task, address = %replica.address, why, "a replica failed");
        let unreachable = status == StatusCode::SERVICE_UNAVAILABLE;
        self.answer(status, if unreachable { UNREACHABLE } else { NO_ANSWER }).await;
        false
    }

    /// Sends the head to a replica and reads the head of its answer.
    async fn ask(
        &mut self,
        replica: &Arc<Replica>,
        service: &Service,
        head: &[u8],
        to_head: bool,
    ) -> Result<Answered, Lost> {
        self.timer.set(clock::now(), service.labels.timeout);
        if let Some(kept) = self.worker.fast.take(replica.key) {
            let outcome = self.ask_over(kept, head, to_head).await;
            if !outcome.as_ref().is_err_and(|lost| lost.ended.is_stale(true)) {
                return outcome;
            }
            bump(&self.worker.stats.stale_connections);
        }
        bump(&self.worker.stats.connects);
        let settings = &self.worker.global.settings;
        let dialled = upstream::dial(replica.address, Use::Repeatable, settings).await;
        let stream = dialled.map_err(|error| Lost::new(Ended::Unsent, error.to_string()))?;
        self.ask_over(stream, head, to_head).await
    }

    async fn ask_over(
        &mut self,
        mut upstream: TcpStream,
        head: &[u8],
        to_head: bool,
    ) -> Result<Answered, Lost> {
        // A head is small against any socket buffer, so this does not wait in practice.
        upstream.write_all(head).await.map_err(|error| Lost::new(Ended::Broken, error.to_string()))?;
        let settings = &self.worker.global.settings;
        let most = settings.max_head_bytes as usize;
        // Holds what came of the head, where it does not come at once.
        let mut input = Vec::new();
        loop {
            let read = self.read_upstream(&mut upstream, &mut input).await;
            match read {
                Read::Some => {}
                Read::End => {
                    return Err(Lost::new(Ended::Broken, "it closed the connection without an answer"));
                }
                Read::Lost(lost) => return Err(lost),
            }
            while let Some((head, out)) = self.head(&input, to_head)? {
                if (100..200).contains(&head.status) {
                    // Interim answers are for this hop: nobody asked for one.
                    input.drain(..head.length);
                    continue;
                }
                let mut head = head;
                let (taken, ended) = head.body.advance(&input[head.length..])?;
                let surplus = head.length + taken < input.len();
                let mut out = out;
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(&input[head.length..head.length + taken]);
                self.worker.fast.return_buffer(input);
                return Ok(Answered { upstream, head, out, ended, surplus });
            }
            if input.len() >= most {
                return Err(Lost::new(Ended::TooLarge, "the head of its answer is too large"));
            }
        }
    }

    /// The head that `input` begins with, if it is whole, and what of it is for the client.
    fn head(&self, input: &[u8], to_head: bool) -> Result<Option<(Head, Vec<u8>)>, Lost> {
        if input.is_empty() {
            return Ok(None);
        }
        let mut out = self.worker.fast.buffer();
        let most = usize::from(self.worker.global.settings.max_headers);
        let Some(head) = response::translate(input, to_head, most, &mut out)? else {
            self.worker.fast.return_buffer(out);
            return Ok(None);
        };
        if head.status == 101 {
            return Err(Lost::new(Ended::Unreadable, "it changed the protocol unasked"));
        }
        Ok(Some((head, out)))
    }

    /// Passes an answer on to the client; false when the connection is to be closed.
    async fn pass(&mut self, answered: Answered, service: &Service, choice: &Choice, close: bool) -> bool {
        let Answered { mut upstream, mut head, mut out, ended, mut surplus } = answered;
        let replica = choice.lease.replica();
        service.shared.answered(head.status);
        let stays =
            !close && head.body != response::Body::UntilClose && !*self.worker.global.closing.borrow();
        let mut extra = Vec::new();
        if !stays {
            request::line(&mut extra, "connection", b"close");
        }
        if service.labels.sticky && choice.reason != Reason::Sticky {
            let cookie = sticky::text(&service.cookie, replica.key, self.client.secure);
            request::line(&mut extra, "set-cookie", cookie.as_bytes());
        }
        if !extra.is_empty() {
            insert_headers(&mut out, &extra);
        }
        if !self.write(&out).await {
            return false;
        }
        self.worker.fast.return_buffer(out);
        if !ended {
            match self.pass_body(&mut upstream, &mut head.body).await {
                Passed::Whole { more } => surplus |= more,
                Passed::UntilClose => return false,
                Passed::Broken => {
                    // The client sees a body cut short, which it can tell from a whole one.
                    self.worker.note_broken(replica);
                    return false;
                }
                Passed::Gone => return false,
            }
        }
        if head.keep_alive && !surplus && !replica.draining() {
            let most = self.worker.global.settings.idle_per_replica as usize;
            self.worker.fast.give(replica.key, upstream, most, clock::now());
        }
        stays
    }
}

/// Puts headers between the status line and the others.
fn insert_headers(out: &mut Vec<u8>, lines: &[u8]) {
    let at = out.windows(2).position(|pair| pair == b"\r\n").map_or(out.len(), |at| at + 2);
    out.splice(at..at, lines.iter().copied());
}
