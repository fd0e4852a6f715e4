//! Connections as hyper reads and writes them. Towards clients: bytes that were read already come first, a head has a time
//! of its own, a write that makes no progress fails after a while, and an answer that came before the end of the request
//! is not lost when the connection is closed. Towards replicas: an answer is read even if the request cannot be written.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use crate::{
    memory::Charge,
    stall::{Stall, Stalls},
};

/// After an answer to a request that was not read to its end, what still comes is read for so long and thrown away: closed
/// at once, the connection would be reset, and the client might never see the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// Whose turn it is on an HTTP/1.1 connection. Shared by the connection and by what answers its requests.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    /// No request is under way: what comes belongs to a head.
    between: AtomicBool,
    /// Counts requests.
    requests: AtomicU32,
    /// The body of the request under way was not read to its end.
    body: AtomicBool,
    /// Those of the service that the request under way is for.
    stalls: Mutex<Option<Arc<Stalls>>>,
}

impl Turn {
    /// A head was read.
    pub fn begin(&self) {
        self.0.between.store(false, Relaxed);
        self.0.requests.fetch_add(1, Relaxed);
    }

    /// The answer has ended.
    pub fn end(&self) {
        self.0.between.store(true, Relaxed);
    }

    /// It is known which service the request is for.
    pub fn belongs_to(&self, stalls: &Arc<Stalls>) {
        *self.0.stalls.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(stalls));
    }

    fn stall(&self) -> Option<Stall> {
        self.0.stalls.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Stalls::begin)
    }

    /// The request has a body.
    pub fn body_begins(&self) {
        self.0.body.store(true, Relaxed);
    }

    /// It was read to its end.
    pub fn body_ended(&self) {
        self.0.body.store(false, Relaxed);
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct ClientIo<S> {
    first: Bytes,
    stream: S,
    limits: Limits,
    turn: Turn,
    /// Pays for the connection, and for heads that are not whole yet.
    charge: Option<Charge>,
    base: usize,
    head: Option<Pin<Box<Sleep>>>,
    /// Something came after this request's head: its body, or a part of the next head.
    ahead: bool,
    /// The request that `ahead` is about.
    request: u32,
    stalled: Option<(Pin<Box<Sleep>>, Option<Stall>)>,
    linger: Option<Pin<Box<Sleep>>>,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a head, from its first byte.
    pub head: Duration,
    /// For taking what is written.
    pub stall: Duration,
}

impl<S> ClientIo<S> {
    /// Reads `first`, then the stream. `charge` is made larger while heads come in.
    pub fn new(first: Bytes, stream: S, limits: Limits, turn: Turn, charge: Option<Charge>) -> Self {
        let base = charge.as_ref().map_or(0, Charge::bytes);
        let (head, stalled, linger) = (None, None, None);
        Self { first, stream, limits, turn, charge, base, head, ahead: false, request: 0, stalled, linger }
    }

    /// What came before a request's head was whole was that head.
    fn catch_up(&mut self) {
        let request = self.turn.0.requests.load(Relaxed);
        if request != self.request {
            (self.request, self.ahead, self.head) = (request, false, None);
            if let Some(charge) = &mut self.charge {
                charge.set(self.base);
            }
        }
    }

    /// Passes a write's result on, and keeps the time while there is none.
    fn watched<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let (limit, turn) = (self.limits.stall, &self.turn);
        let (timer, stall) =
            self.stalled.get_or_insert_with(|| (Box::pin(tokio::time::sleep(limit)), turn.stall()));
        let displaced = stall.as_ref().is_some_and(|stall| stall.poll(context).is_ready());
        if !displaced {
            ready!(timer.as_mut().poll(context));
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not read what it asked for",
        )))
    }

    /// The head's time runs from its first byte, which may have come with the request before.
    fn head_in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.ahead || !self.turn.0.between.load(Relaxed) {
            return Ok(());
        }
        let patience = self.limits.head;
        let timer = self.head.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match timer.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the head did not come in time")),
        }
    }
}

impl<S: AsyncRead + Unpin> ClientIo<S> {
    fn poll_stream(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.catch_up();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        if count > 0 {
            self.ahead = true;
            let between = self.turn.0.between.load(Relaxed);
            if between && self.charge.as_mut().is_some_and(|charge| !charge.add(count)) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, "no memory for a head")));
            }
        }
        if polled.is_pending() {
            self.head_in_time(context)?;
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return self.poll_stream(context, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        ready!(self.watched(polled, context))?;
        if !self.turn.0.body.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut timer = self.linger.take().unwrap_or_else(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut waste = [0; 4_096];
        loop {
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => {
                    self.linger = Some(timer);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A replica's connection. A replica that has answered early and closed takes no more of the request; what it said is
/// still there to be read, and is the answer. So a write that fails counts as written, and the read says what happened.
#[derive(Debug)]
pub struct ReplicaIo {
    stream: TcpStream,
    broken: bool,
}

impl ReplicaIo {
    /// Over `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, broken: false }
    }

    fn forgiven<T>(&mut self, polled: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.broken = true;
                Poll::Ready(Ok(instead))
            }
            polled => polled,
        }
    }
}

impl AsyncRead for ReplicaIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ReplicaIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Ok(bytes.len()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.forgiven(polled, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        if self.broken {
            return Poll::Ready(Ok(all));
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.forgiven(polled, all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.forgiven(polled, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.forgiven(polled, ())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMITS: Limits = Limits { head: Duration::from_millis(100), stall: Duration::from_millis(200) };

    #[tokio::test]
    async fn bytes_read_already_come_first_and_a_stalled_write_fails() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut io = ClientIo::new(Bytes::from_static(b"ab"), ours, LIMITS, Turn::default(), None);
        theirs.write_all(b"cd").await.expect("room");
        let mut read = [0; 4];
        io.read_exact(&mut read).await.expect("four bytes");
        assert_eq!(&read, b"abcd");
        let error = io.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn half_a_head_is_cut_off_and_silence_between_heads_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let turn = Turn::default();
        let mut io = ClientIo::new(Bytes::new(), ours, LIMITS, turn.clone(), None);
        turn.end();
        let mut read = [0; 8];
        let silent = tokio::time::timeout(Duration::from_millis(300), io.read(&mut read)).await;
        assert!(silent.is_err(), "nothing has begun");
        theirs.write_all(b"GET /").await.expect("room");
        assert_eq!(io.read(&mut read).await.expect("its bytes"), 5);
        let error = io.read(&mut read).await.expect_err("no more came");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
