//! A client's connection on the fast path: reading heads, answering, and passing bodies on. Whoever waits here holds no
//! buffer; what cannot be passed on at once is charged to the memory that all clients share.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{Lost, request, response::Body, timer::Timer};
use crate::{
    memory::Charge,
    proxy::{headers::Client, retry::Ended, worker::Worker},
    stall::Stalls,
    stats::bump,
};

/// Heads up to here are not charged: most connections have one of this size at hand.
const FREE_BYTES: usize = 1_024;
/// Bytes of further requests read while one is under way.
const MAX_AHEAD_BYTES: usize = 64 * 1_024;

/// See the module.
pub(super) struct Link<'a, S> {
    pub worker: &'a Rc<Worker>,
    pub client: &'a Client,
    pub stream: S,
    /// What was read and not answered yet.
    pub read: Vec<u8>,
    /// How much of that was looked through for the end of a head.
    looked: usize,
    pub timer: Timer,
    /// Those of the service that the request under way is for.
    pub stalls: Option<Arc<Stalls>>,
    /// Pays for `read`.
    charge: Option<Charge>,
}

/// What came from a client.
pub(super) enum Heard {
    /// A whole head.
    Head,
    /// No head that this path could read.
    Other,
    /// A head that does not end.
    TooLarge,
    /// There is no memory for the rest of it.
    NoMemory,
    /// The connection ended, or nothing came in time, or its place is needed.
    Gone,
}

/// What came from a replica.
pub(super) enum Read {
    Some,
    End,
    Lost(Lost),
}

/// How an answer's body was passed on.
pub(super) enum Passed {
    /// To its end; `more` came after it.
    Whole { more: bool },
    /// To the end of the connection, which was its end.
    UntilClose,
    /// The replica broke off.
    Broken,
    /// The client went away, or did not read.
    Gone,
}

enum More {
    Some,
    NoMemory,
    Gone,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Link<'a, S> {
    pub fn new(worker: &'a Rc<Worker>, client: &'a Client, stream: S) -> Self {
        let timer = Timer::new(clock::now(), worker.global.settings.idle_timeout);
        Self { worker, client, stream, read: Vec::new(), looked: 0, timer, stalls: None, charge: None }
    }

    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, Bytes::from(self.read))
    }

    /// Reads until there is a whole head, which is parsed only then: a head that drips in costs no more than another.
    /// `closing` is ready once the balancer is told to stop.
    pub async fn hear<F: Future>(&mut self, closing: &mut Pin<&mut F>) -> Heard {
        let settings = &self.worker.global.settings;
        let most = settings.max_head_bytes as usize;
        loop {
            self.skip_empty_lines();
            if self.read.first().is_some_and(|first| !first.is_ascii_graphic()) {
                return Heard::Other;
            }
            if self.has_head() {
                return Heard::Head;
            }
            if self.read.len() >= most {
                return Heard::TooLarge;
            }
            let idle = self.read.is_empty();
            let more = poll_fn(|context| {
                if idle && closing.as_mut().poll(context).is_ready() {
                    return Poll::Ready(More::Gone);
                }
                if self.client.seat.as_ref().is_some_and(|seat| seat.poll_evicted(context).is_ready()) {
                    bump(&self.worker.stats.evicted);
                    return Poll::Ready(More::Gone);
                }
                self.poll_more(context)
            });
            match more.await {
                More::Some => {}
                More::NoMemory => return Heard::NoMemory,
                More::Gone => return Heard::Gone,
            }
            if idle {
                // The head's own time begins with its first byte.
                self.timer.set(clock::now(), settings.head_timeout);
            }
        }
    }

    /// RFC 9112, 2.2: empty lines before a request mean nothing.
    fn skip_empty_lines(&mut self) {
        let empty = self.read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if empty > 0 {
            self.read.drain(..empty);
            self.looked = 0;
        }
    }

    /// Whether a line is there that nothing stands on: a line's end and at once another.
    fn has_head(&mut self) -> bool {
        let mut at = self.looked;
        while let Some(next) = self.read[at..].iter().position(|byte| *byte == b'\n') {
            at += next;
            match &self.read[at + 1..] {
                [b'\n', ..] | [b'\r', b'\n', ..] => return true,
                // Whether it is the last one is not known yet.
                [] | [b'\r'] => break,
                _ => at += 1,
            }
            self.looked = at;
        }
        if !self.read[at..].contains(&b'\n') {
            at = self.read.len();
        }
        self.looked = at;
        false
    }

    /// A request is under way.
    pub fn begin(&self) {
        if let Some(seat) = &self.client.seat {
            seat.begin();
        }
    }

    /// It has ended; its head had `length` bytes.
    pub fn end(&mut self, length: usize) {
        self.read.drain(..length.min(self.read.len()));
        self.looked = 0;
        self.stalls = None;
        if self.read.is_empty() && self.read.capacity() > FREE_BYTES {
            self.read = Vec::new();
        }
        if self.read.capacity() <= FREE_BYTES {
            self.charge = None;
        }
        let now = clock::now();
        let settings = &self.worker.global.settings;
        let patience = if self.read.is_empty() { settings.idle_timeout } else { settings.head_timeout };
        self.timer.set(now, patience);
        if let Some(seat) = &self.client.seat {
            seat.end(now);
        }
    }

    /// Reads more from the client.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<More> {
        match self.poll_ahead(context) {
            Poll::Pending => self.timer.poll(context).map(|()| More::Gone),
            ready => ready,
        }
    }

    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<More> {
        let mut scratch = self.worker.fast.scratch();
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
        let bytes = buffer.filled();
        if read.is_err() || bytes.is_empty() {
            return Poll::Ready(More::Gone);
        }
        let needed = self.read.len() + bytes.len();
        if needed > FREE_BYTES {
            // A vector may take up to twice of what it needs.
            let memory = &self.worker.global.memory;
            let paid = match &mut self.charge {
                Some(charge) => charge.bytes() >= needed || (!memory.is_tight() && charge.set(needed * 2)),
                None => {
                    self.charge = if memory.is_tight() { None } else { memory.charge(needed * 2) };
                    self.charge.is_some()
                }
            };
            if !paid {
                return Poll::Ready(More::NoMemory);
            }
        }
        self.read.extend_from_slice(bytes);
        Poll::Ready(More::Some)
    }

    /// Refuses a request, and ends the connection.
    pub async fn refuse<T>(&mut self, status: StatusCode, text: &str) -> Option<T> {
        self.timer.set(clock::now(), self.worker.global.settings.head_timeout);
        self.answer(status, text).await;
        let _: std::io::Result<()> = self.stream.shutdown().await;
        None
    }

    /// Refuses a request for want of memory.
    pub async fn shed<T>(&mut self) -> Option<T> {
        bump(&self.worker.stats.refused_memory);
        self.refuse(StatusCode::SERVICE_UNAVAILABLE, crate::proxy::NO_MEMORY).await
    }

    /// Answers in the balancer's own name; the connection is closed afterwards.
    pub async fn answer(&mut self, status: StatusCode, text: &str) {
        let mut out = self.worker.fast.buffer();
        request::status_line(&mut out, status.as_u16(), status.canonical_reason().unwrap_or_default());
        request::line(&mut out, "content-type", b"text/plain; charset=utf-8");
        request::line(&mut out, "content-length", (text.len() + 1).to_string().as_bytes());
        request::line(&mut out, "cache-control", b"no-store");
        request::line(&mut out, "connection", b"close");
        if status == StatusCode::SERVICE_UNAVAILABLE {
            request::line(&mut out, "retry-after", b"1");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
        self.write(&out).await;
        self.worker.fast.return_buffer(out);
    }

    /// Reads more from a replica into `into`, and meanwhile notices when the client goes away.
    pub async fn read_upstream(&mut self, upstream: &mut TcpStream, into: &mut Vec<u8>) -> Read {
        poll_fn(|context| {
            {
                let mut scratch = self.worker.fast.scratch();
                let mut buffer = ReadBuf::new(&mut scratch);
                match Pin::new(&mut *upstream).poll_read(context, &mut buffer) {
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Read::Lost(Lost::new(Ended::Broken, error.to_string())));
                    }
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Read::End),
                    Poll::Ready(Ok(())) => {
                        if into.capacity() == 0 {
                            *into = self.worker.fast.buffer();
                        }
                        into.extend_from_slice(buffer.filled());
                        return Poll::Ready(Read::Some);
                    }
                    Poll::Pending => {}
                }
            }
            let gone = ready!(self.poll_meanwhile(context));
            Poll::Ready(Read::Lost(gone))
        })
        .await
    }

    /// While a replica is waited for: the time, and whether the client is still there.
    fn poll_meanwhile(&mut self, context: &mut Context<'_>) -> Poll<Lost> {
        if self.timer.poll(context).is_ready() {
            return Poll::Ready(Lost::new(Ended::TimedOut, "it did not answer in time"));
        }
        while self.read.len() < MAX_AHEAD_BYTES {
            match self.poll_ahead(context) {
                Poll::Ready(More::Some) => {}
                Poll::Ready(_) => return Poll::Ready(Lost::new(Ended::Client, "the client went away")),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Writes to the client; false when it is gone, does not read, or there is no memory to wait for it.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let (stream, timer, worker) = (&mut self.stream, &mut self.timer, self.worker);
        let (mut charge, mut stall) = (None, None);
        let mut writing = pin!(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        poll_fn(|context| {
            if let Poll::Ready(written) = writing.as_mut().poll(context) {
                return Poll::Ready(written.is_ok());
            }
            if charge.is_none() {
                charge = worker.global.memory.charge(bytes.len());
                if charge.is_none() {
                    bump(&worker.stats.shed);
                    return Poll::Ready(false);
                }
                timer.set(clock::now(), worker.global.settings.idle_timeout);
                stall = self.stalls.as_ref().map(Stalls::begin);
            }
            if stall.as_ref().is_some_and(|stall| stall.poll(context).is_ready()) {
                return Poll::Ready(false);
            }
            timer.poll(context).map(|()| false)
        })
        .await
    }

    /// Passes a body on: what was read is written at once, and only what the client does not take is kept.
    pub async fn pass_body(&mut self, upstream: &mut TcpStream, body: &mut Body) -> Passed {
        let silence = self.worker.global.settings.stream_timeout;
        let mut rest = Vec::new();
        loop {
            self.timer.set(clock::now(), silence);
            rest.clear();
            let step = poll_fn(|context| self.poll_pass(context, upstream, body, &mut rest)).await;
            match step {
                Step::Ended(passed) => return passed,
                Step::Moved { last, flushed } => {
                    if (!rest.is_empty() || !flushed) && !self.write(&rest).await {
                        return Passed::Gone;
                    }
                    if let Some(more) = last {
                        return Passed::Whole { more };
                    }
                }
            }
        }
    }

    fn poll_pass(
        &mut self,
        context: &mut Context<'_>,
        upstream: &mut TcpStream,
        body: &mut Body,
        rest: &mut Vec<u8>,
    ) -> Poll<Step> {
        {
            let mut scratch = self.worker.fast.scratch();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(upstream).poll_read(context, &mut buffer) {
                Poll::Ready(Err(_)) => return Poll::Ready(Step::Ended(Passed::Broken)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    let whole = *body == Body::UntilClose;
                    return Poll::Ready(Step::Ended(if whole { Passed::UntilClose } else { Passed::Broken }));
                }
                Poll::Ready(Ok(())) => {
                    let bytes = buffer.filled();
                    let Ok((taken, ended)) = body.advance(bytes) else {
                        return Poll::Ready(Step::Ended(Passed::Broken));
                    };
                    let last = ended.then_some(taken < bytes.len());
                    let written = match Pin::new(&mut self.stream).poll_write(context, &bytes[..taken]) {
                        Poll::Ready(Ok(written)) => written,
                        Poll::Ready(Err(_)) => return Poll::Ready(Step::Ended(Passed::Gone)),
                        Poll::Pending => 0,
                    };
                    rest.extend_from_slice(&bytes[written..taken]);
                    let flushed = Pin::new(&mut self.stream).poll_flush(context).is_ready();
                    return Poll::Ready(Step::Moved { last, flushed });
                }
                Poll::Pending => {}
            }
        }
        ready!(self.poll_meanwhile(context));
        Poll::Ready(Step::Ended(Passed::Gone))
    }
}

enum Step {
    /// Something was passed on; `last` where the body ended, with whether more came after it.
    Moved {
        last: Option<bool>,
        flushed: bool,
    },
    Ended(Passed),
}
