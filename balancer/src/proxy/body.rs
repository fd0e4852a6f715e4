//! Bodies on their way through, never gathered: frames are passed on as they come, with bounds on time, size and memory.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{io::Turn, progress::Progress};
use crate::{
    memory::{Charge, Memory},
    stall::Stall,
};

/// Why a request's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side broke off.
    #[error("the body broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("the client sent nothing of its body for {0:?}")]
    Stalled(Duration),
    /// Nothing came for a while, and another request needed the place.
    #[error("the client sent nothing of its body while another request waited for its place")]
    Displaced,
    /// More came than is allowed.
    #[error("the body has more than the {0} bytes allowed")]
    TooLarge(u64),
}

/// Why an answer's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The replica broke off.
    #[error("the answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Neither side sent anything for too long.
    #[error("neither side sent anything for {0:?}")]
    Silent(Duration),
    /// There is no memory left for what this client does not read.
    #[error("there is no memory left to keep more of the answer")]
    NoMemory,
}

/// A timer that is set only once there is something to wait for.
#[derive(Debug, Default)]
struct Silence(Option<Pin<Box<Sleep>>>);

impl Silence {
    /// Ready once nothing has moved for `limit`.
    fn poll(&mut self, progress: &Progress, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let due = progress.last() + limit;
            let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
            ready!(timer.as_mut().poll(context));
            let due = progress.last() + limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// A request's body towards a replica.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// As the client sends it.
    Stream(Box<Stream>),
}

/// See [`RequestBody`].
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    /// Bytes still allowed.
    allowed: u64,
    most: u64,
    patience: Patience,
    progress: Progress,
    silence: Silence,
    turn: Option<Turn>,
    /// The client stands still.
    stall: Option<Stall>,
}

/// How long silence is borne.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Of a client that has not sent its whole request.
    pub client: Duration,
    /// Of both sides, once the answer has begun.
    pub exchange: Duration,
}

impl RequestBody {
    /// Passes `body` on, at most `most` bytes (0 is no limit). `turn` is told when it has ended.
    pub fn new(
        body: Incoming,
        most: u64,
        patience: Patience,
        progress: Progress,
        turn: Option<Turn>,
    ) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        if let Some(turn) = &turn {
            turn.body_begins();
        }
        let most = if most == 0 { u64::MAX } else { most };
        let silence = Silence::default();
        let stall = None;
        Self::Stream(Box::new(Stream { body, allowed: most, most, patience, progress, silence, turn, stall }))
    }

    /// Whether there is none, so that the request can be made again.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Stream {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            self.progress.waits_for_client();
            let answered = self.progress.is_answered();
            if answered {
                // Both may be silent for long, as in a conversation.
                self.stall = None;
            } else {
                if self.stall.is_none() {
                    self.stall = self.progress.stall();
                }
                if self.stall.as_ref().is_some_and(|stall| stall.poll(context).is_ready()) {
                    return Poll::Ready(Some(Err(BodyError::Displaced)));
                }
            }
            let limit = if answered { self.patience.exchange } else { self.patience.client };
            let silent = self.silence.poll(&self.progress, limit, context);
            return silent.map(|()| Some(Err(BodyError::Stalled(limit))));
        };
        self.progress.moved();
        self.stall = None;
        let Some(frame) = frame.transpose()? else {
            self.ended();
            return Poll::Ready(None);
        };
        let bytes = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
        match self.allowed.checked_sub(bytes) {
            Some(left) => self.allowed = left,
            None => return Poll::Ready(Some(Err(BodyError::TooLarge(self.most)))),
        }
        if self.body.is_end_stream() {
            self.ended();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn ended(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.body_ended();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream(stream) => stream.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(stream) => stream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(stream) => stream.body.size_hint(),
        }
    }
}

/// An answer's body towards a client. `G` is told when the body ended whole, and is dropped with it in any case.
#[derive(Debug)]
pub struct AnswerBody<G: Ended> {
    source: Source<G>,
    /// Dropped with the body: the client's next request may begin.
    after: Option<After>,
}

#[derive(Debug)]
enum Source<G: Ended> {
    /// The balancer's own.
    Own(Option<Bytes>),
    /// As the replica sends it.
    Stream {
        body: Incoming,
        /// The lease and the connection.
        guard: Option<G>,
        pace: Pace,
        silence: Silence,
    },
}

/// What bounds an answer on its way to the client.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Noted here.
    pub progress: Progress,
    /// Longest silence of both sides.
    pub silence: Duration,
    /// Charged for what the client has not taken yet.
    pub memory: Arc<Memory>,
    /// Pays for what hyper reads ahead of it.
    pub charge: Option<Arc<Charge>>,
}

/// What happens when a body is dropped.
pub struct After(Option<Box<dyn FnOnce()>>);

impl After {
    /// Runs `then`.
    pub fn new(then: impl FnOnce() + 'static) -> Self {
        Self(Some(Box::new(then)))
    }
}

impl std::fmt::Debug for After {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("After")
    }
}

impl Drop for After {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then();
        }
    }
}

/// What is kept until a body ended.
pub trait Ended: Unpin {
    /// It ended whole: the connection can be used again.
    fn ended(self);
    /// The replica broke off in the middle.
    fn broken(self);
    /// There was no memory to pass it on.
    fn shed(self);
}

impl<G: Ended> AnswerBody<G> {
    /// The balancer's own.
    pub fn own(bytes: Option<Bytes>) -> Self {
        Self { source: Source::Own(bytes), after: None }
    }

    /// Passes `body` on and keeps `guard` as long.
    pub fn stream(body: Incoming, guard: G, pace: Pace) -> Self {
        let source = Source::Stream { body, guard: Some(guard), pace, silence: Silence::default() };
        let mut answer = Self { source, after: None };
        answer.check();
        answer
    }

    /// Lets `after` go when this body goes.
    pub fn then(&mut self, after: After) {
        self.after = Some(after);
    }

    /// Lets go of the guard as soon as the last byte was passed on, not when the client asks for more.
    fn check(&mut self) {
        if let Source::Stream { body, guard, .. } = &mut self.source
            && body.is_end_stream()
            && let Some(guard) = guard.take()
        {
            guard.ended();
        }
    }
}

impl<G: Ended> Body for AnswerBody<G> {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let (body, guard, pace, silence) = match &mut self.source {
            Source::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Stream { body, guard, pace, silence } => (body, guard, pace, silence),
        };
        let Poll::Ready(polled) = Pin::new(body).poll_frame(context) else {
            pace.progress.waits_for_replica();
            let silent = silence.poll(&pace.progress, pace.silence, context);
            return silent.map(|()| Some(Err(AnswerError::Silent(pace.silence))));
        };
        pace.progress.moved();
        let frame = match polled {
            None => {
                if let Some(guard) = guard.take() {
                    guard.ended();
                }
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                if let Some(guard) = guard.take() {
                    guard.broken();
                }
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => frame,
        };
        let frame = match frame.into_data() {
            Err(trailers) => trailers,
            Ok(data) => match pace.memory.hold(data) {
                Some(data) => Frame::data(data),
                None => {
                    if let Some(guard) = guard.take() {
                        guard.shed();
                    }
                    return Poll::Ready(Some(Err(AnswerError::NoMemory)));
                }
            },
        };
        self.check();
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => {
                let bytes = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
            Source::Stream { body, .. } => body.size_hint(),
        }
    }
}
