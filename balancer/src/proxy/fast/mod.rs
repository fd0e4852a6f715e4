//! The fast path: plain HTTP/1.1 requests without a body, which are most, at the cost of little more than their system
//! calls. Everything else is handed to hyper, connection and unread bytes and all, before anything of it was done.
//!
//! Why not hyper for these too: its connection, its client and the channels between them cost about 2.5 us of 12.5 a
//! request here (docs/decisions/0008-proxy-stack.md); nginx costs 11.8. Heads are read by httparse, hyper's own parser, and
//! only those are taken that leave no room for interpretation ([`request`]).

pub mod request;
pub mod response;
pub mod timer;

use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use self::{
    request::{Parsed, Plain},
    response::{Body, Head},
    timer::Timer,
};
use super::{
    headers::Client,
    upstream::{self, Use},
    worker::Worker,
};
use crate::{
    choose::{Choice, Wish},
    pick::Reason,
    replica::{Outcome, Replica},
    service::Service,
    stats::bump,
    sticky,
};

/// Read from a replica at a time, in bytes.
const READ_BYTES: usize = 16 * 1_024;
/// Read from a client at a time, in bytes; what an unused connection holds.
const HEAD_BYTES: usize = 2_048;
/// Replicas tried for one request, the first included.
const ATTEMPTS: usize = 3;
/// Buffers kept for the next request.
const SPARE_BUFFERS: usize = 128;
/// Kept connections are closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// Longest silence in the middle of an answer: streams of events may be quiet for long.
const SILENCE: Duration = Duration::from_secs(3_600);
/// Bytes of further requests read while one is under way.
const MAX_AHEAD_BYTES: usize = 64 * 1_024;

/// A worker's connections and buffers for the fast path.
#[derive(Debug, Default)]
pub struct Pools {
    idle: RefCell<HashMap<u64, Vec<(TcpStream, Time)>>>,
    buffers: RefCell<Vec<Vec<u8>>>,
}

impl Pools {
    fn take(&self, replica: u64) -> Option<TcpStream> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&replica)?;
        loop {
            let (stream, _) = idle.pop()?;
            // Costs no system call while the kernel has announced nothing. Anything to read is too much: the end, or an
            // answer that nobody asked for.
            match stream.try_read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(stream),
                _ => {}
            }
        }
    }

    fn give(&self, replica: u64, stream: TcpStream, most: usize, now: Time) {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(replica).or_default();
        if idle.len() < most {
            idle.push((stream, now));
        }
    }

    /// Closes what is too old, and everything to replicas that are not `wanted` any more.
    pub fn purge(&self, wanted: impl Fn(u64) -> bool, now: Time) {
        self.idle.borrow_mut().retain(|replica, idle| {
            idle.retain(|(_, since)| now.since(*since) < IDLE);
            wanted(*replica)
        });
    }

    fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    fn return_buffer(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < SPARE_BUFFERS && buffer.capacity() <= 4 * READ_BYTES {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// Serves plain requests until the connection ends (`None`) or something else comes: then the connection and what was
/// read of it are for the slow path.
pub async fn serve<S>(worker: &Rc<Worker>, stream: S, client: &Client) -> Option<(S, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let settings = &worker.global.settings;
    let timer = Timer::new(clock::now(), settings.idle_timeout);
    let mut link = Link { worker, client, stream, read: Vec::with_capacity(HEAD_BYTES), timer };
    let mut closing = worker.global.closing.clone();
    let mut closing = pin!(closing.wait_for(|closing| *closing));
    loop {
        let parsed =
            if link.read.is_empty() { Parsed::Partial } else { request::parse(&link.read, settings) };
        let next = match parsed {
            Parsed::Plain(plain) => worker.begin(&plain, client),
            Parsed::Other => None,
            Parsed::Partial => {
                let idle = link.read.is_empty();
                let more = poll_fn(|context| {
                    if idle && closing.as_mut().poll(context).is_ready() {
                        return Poll::Ready(false);
                    }
                    link.poll_more(context)
                });
                if !more.await {
                    return None;
                }
                if idle {
                    // The head's own time begins with its first byte.
                    link.timer.set(clock::now(), settings.head_timeout);
                }
                continue;
            }
        };
        let Some(begun) = next else { return Some((link.stream, Bytes::from(link.read))) };
        let length = begun.length;
        let stays = link.exchange(begun).await;
        if !stays || *worker.global.closing.borrow() {
            // The answer is out; what cannot be said any more is of no use to the client.
            let _: io::Result<()> = link.stream.shutdown().await;
            return None;
        }
        link.read.drain(..length);
        link.timer.set(clock::now(), settings.idle_timeout);
    }
}

/// A client's connection.
struct Link<'a, S> {
    worker: &'a Rc<Worker>,
    client: &'a Client,
    stream: S,
    /// What was read and not answered yet.
    read: Vec<u8>,
    timer: Timer,
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
        if service.labels.http2 || service.limit.is_some() {
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

/// Why a replica's answer did not come.
enum Lost {
    /// Its fault; another one may be asked.
    Replica(String),
    /// There was no connection to be had, so that nothing was sent.
    Unreached(String),
    /// It took too long.
    Timeout,
    /// The client went away.
    Client,
}

/// An answer whose head is there.
struct Answered {
    upstream: TcpStream,
    head: Head,
    /// For the client: its head, then what came of the body.
    out: Vec<u8>,
    /// Bytes of the body's beginning that are in `out` already have been counted.
    ended: bool,
    /// More came than belongs to the answer.
    surplus: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<'_, S> {
    /// Reads more from the client; false when there is nothing more, or not in time.
    fn poll_more(&mut self, context: &mut std::task::Context<'_>) -> Poll<bool> {
        if self.read.capacity() - self.read.len() < HEAD_BYTES / 2 {
            self.read.reserve(HEAD_BYTES);
        }
        let polled = pin!(self.stream.read_buf(&mut self.read)).poll(context);
        match polled {
            Poll::Ready(count) => Poll::Ready(count.is_ok_and(|count| count > 0)),
            Poll::Pending => self.timer.poll(context).map(|()| false),
        }
    }

    /// One request and its answer; false when the connection is to be closed.
    async fn exchange(&mut self, begun: Begun) -> bool {
        let Begun { service, mut choice, head, close, to_head, sticky, .. } = begun;
        let mut tried = Vec::new();
        let stays = loop {
            let replica = Arc::clone(choice.lease.replica());
            let answered = self.ask(&replica, &service, &head, to_head).await;
            tried.push(replica.key);
            let wish = Wish { sticky, tried: &tried, repeatable: true };
            let again = tried.len() < ATTEMPTS;
            match answered {
                Ok(answered) => {
                    let may = again && matches!(answered.head.status, 502..=504);
                    if let Some(other) = may.then(|| self.elsewhere(&service, wish)).flatten() {
                        choice = other;
                        continue;
                    }
                    break self.pass(answered, &service, &choice, close).await;
                }
                Err(Lost::Client) => break false,
                Err(lost) => {
                    self.worker.note(&replica, Outcome::Failed);
                    let may = again && matches!(lost, Lost::Replica(_) | Lost::Unreached(_));
                    if let Some(other) = may.then(|| self.elsewhere(&service, wish)).flatten() {
                        choice = other;
                        continue;
                    }
                    self.apologise(&replica, &lost).await;
                    break false;
                }
            }
        };
        self.worker.fast.return_buffer(head);
        stays
    }

    /// Another replica for a request that failed, within the budget.
    fn elsewhere(&self, service: &Service, wish: Wish<'_>) -> Option<Choice> {
        if !service.shared.budget.withdraw() {
            return None;
        }
        let choice = self.worker.choose(service, wish).ok()?;
        bump(&self.worker.stats.retries);
        service.shared.retries.fetch_add(1, Relaxed);
        Some(choice)
    }

    async fn apologise(&mut self, replica: &Replica, lost: &Lost) {
        let stats = &self.worker.stats;
        let (counter, code, reason, why) = match lost {
            Lost::Timeout => (&stats.gateway_timeout, 504, "Gateway Timeout", "no answer in time"),
            Lost::Replica(why) => (&stats.bad_gateway, 502, "Bad Gateway", why.as_str()),
            Lost::Unreached(why) => (&stats.unreachable, 503, "Service Unavailable", why.as_str()),
            Lost::Client => return,
        };
        bump(counter);
        tracing::debug!(task = %replica.task, address = %replica.address, why, "a replica failed");
        let mut out = self.worker.fast.buffer();
        let text = if code == 503 { super::UNREACHABLE } else { super::NO_ANSWER };
        let text = [text.as_bytes(), b"\n"].concat();
        request::status_line(&mut out, code, reason);
        request::line(&mut out, "content-type", b"text/plain; charset=utf-8");
        request::line(&mut out, "content-length", text.len().to_string().as_bytes());
        request::line(&mut out, "connection", b"close");
        if code == 503 {
            request::line(&mut out, "retry-after", b"1");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&text);
        self.write(&out).await;
    }

    /// Sends the head to a replica and reads the head of its answer.
    async fn ask(
        &mut self,
        replica: &Arc<Replica>,
        service: &Service,
        head: &[u8],
        to_head: bool,
    ) -> Result<Answered, Lost> {
        let started = clock::now();
        self.timer.set(started, service.labels.timeout);
        let kept = self.worker.fast.take(replica.key);
        let reused = kept.is_some();
        let mut outcome = match kept {
            Some(kept) => self.ask_over(kept, head, to_head).await,
            None => self.ask_anew(replica, head, to_head).await,
        };
        // A kept connection that turns out to be closed says nothing about the replica: once more over a new one.
        if reused && matches!(outcome, Err(Lost::Replica(_))) {
            bump(&self.worker.stats.stale_connections);
            outcome = self.ask_anew(replica, head, to_head).await;
        }
        let answered = outcome?;
        let took = clock::now().since(started);
        self.worker.stats.answered_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let failed = answered.head.status >= 500;
        self.worker.note(replica, if failed { Outcome::Failed } else { Outcome::Answered(took) });
        Ok(answered)
    }

    async fn ask_anew(&mut self, replica: &Replica, head: &[u8], to_head: bool) -> Result<Answered, Lost> {
        bump(&self.worker.stats.connects);
        let settings = &self.worker.global.settings;
        let dialled = upstream::dial(replica.address, Use::Repeatable, settings).await;
        let stream = dialled.map_err(|error| Lost::Unreached(error.to_string()))?;
        self.ask_over(stream, head, to_head).await
    }

    async fn ask_over(
        &mut self,
        mut upstream: TcpStream,
        head: &[u8],
        to_head: bool,
    ) -> Result<Answered, Lost> {
        let broken = |error: io::Error| Lost::Replica(error.to_string());
        // A head is small against any socket buffer, so this does not wait in practice.
        upstream.write_all(head).await.map_err(broken)?;
        let mut input = self.worker.fast.buffer();
        let mut out = self.worker.fast.buffer();
        let most = self.worker.global.settings.max_head_bytes as usize;
        loop {
            if input.len() >= most {
                return Err(Lost::Replica("the head of its answer is too large".into()));
            }
            if self.read_upstream(&mut upstream, &mut input).await? == 0 {
                return Err(Lost::Replica("it closed the connection without an answer".into()));
            }
            while let Some(mut found) = response::translate(&input, to_head, &mut out)
                .map_err(|error| Lost::Replica(error.to_string()))?
            {
                match found.status {
                    101 => return Err(Lost::Replica("it changed the protocol unasked".into())),
                    // Interim answers are for this hop: nobody asked for one.
                    100..200 => drop(input.drain(..found.length)),
                    _ => {
                        let rest = &input[found.length..];
                        let (taken, ended) =
                            found.body.advance(rest).map_err(|error| Lost::Replica(error.to_string()))?;
                        let surplus = taken < rest.len();
                        let begin = found.length;
                        let out = finish_head(out, &input[begin..begin + taken]);
                        self.worker.fast.return_buffer(input);
                        return Ok(Answered { upstream, head: found, out, ended, surplus });
                    }
                }
            }
        }
    }

    /// Passes an answer on to the client; false when the connection is to be closed.
    async fn pass(&mut self, answered: Answered, service: &Service, choice: &Choice, close: bool) -> bool {
        let Answered { mut upstream, mut head, out, mut ended, mut surplus } = answered;
        let replica = choice.lease.replica();
        let stays = !close && head.body != Body::UntilClose && !*self.worker.global.closing.borrow();
        let mut out = out;
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
        while !ended {
            out.clear();
            self.timer.set(clock::now(), SILENCE);
            match self.read_upstream(&mut upstream, &mut out).await {
                Ok(0) if head.body == Body::UntilClose => break,
                Ok(0) | Err(Lost::Replica(_) | Lost::Unreached(_)) => {
                    // The client sees a body cut short, which it can tell from a whole one.
                    self.worker.note(replica, Outcome::Failed);
                    return false;
                }
                Err(Lost::Timeout | Lost::Client) => return false,
                Ok(_) => {}
            }
            let Ok((taken, end)) = head.body.advance(&out) else {
                self.worker.note(replica, Outcome::Failed);
                return false;
            };
            surplus |= taken < out.len();
            ended = end;
            if !self.write(&out[..taken]).await {
                return false;
            }
        }
        self.worker.fast.return_buffer(out);
        if head.keep_alive && !surplus && !replica.draining() {
            let most = self.worker.global.settings.idle_per_replica as usize;
            self.worker.fast.give(replica.key, upstream, most, clock::now());
        }
        stays
    }

    /// Reads more from a replica, and meanwhile notices when the client goes away.
    async fn read_upstream(&mut self, upstream: &mut TcpStream, into: &mut Vec<u8>) -> Result<usize, Lost> {
        into.reserve(READ_BYTES);
        let mut reading = pin!(upstream.read_buf(into));
        poll_fn(|context| {
            if let Poll::Ready(read) = reading.as_mut().poll(context) {
                return Poll::Ready(read.map_err(|error| Lost::Replica(error.to_string())));
            }
            if self.timer.poll(context).is_ready() {
                return Poll::Ready(Err(Lost::Timeout));
            }
            while self.read.len() < MAX_AHEAD_BYTES {
                self.read.reserve(HEAD_BYTES);
                match pin!(self.stream.read_buf(&mut self.read)).poll(context) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Lost::Client)),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Writes to the client; false when it is gone or does not read.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.timer.set(clock::now(), self.worker.global.settings.idle_timeout);
        let (stream, timer) = (&mut self.stream, &mut self.timer);
        let mut writing = pin!(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        poll_fn(|context| match writing.as_mut().poll(context) {
            Poll::Ready(written) => Poll::Ready(written.is_ok()),
            Poll::Pending => timer.poll(context).map(|()| false),
        })
        .await
    }
}

/// Ends the head and puts the beginning of the body behind it, so that one write sends both.
fn finish_head(mut out: Vec<u8>, body: &[u8]) -> Vec<u8> {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

/// Puts headers between the status line and the others.
fn insert_headers(out: &mut Vec<u8>, lines: &[u8]) {
    let at = out.windows(2).position(|pair| pair == b"\r\n").map_or(out.len(), |at| at + 2);
    out.splice(at..at, lines.iter().copied());
}
