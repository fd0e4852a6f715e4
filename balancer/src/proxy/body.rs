//! Bodies on their way through, never gathered: frames are passed on as they come, with bounds on time and size.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side broke off.
    #[error("the body broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("the client sent nothing of its body for {0:?}")]
    Stalled(Duration),
    /// More came than is allowed.
    #[error("the body has more than the {0} bytes allowed")]
    TooLarge(u64),
}

/// A request's body towards a replica.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// As the client sends it.
    Stream {
        /// From the client.
        body: Incoming,
        /// Bytes still allowed.
        allowed: u64,
        /// Most bytes allowed.
        most: u64,
        /// Longest silence.
        patience: Duration,
        /// Runs while there is silence.
        silence: Option<Pin<Box<Sleep>>>,
    },
}

impl RequestBody {
    /// Passes `body` on, at most `most` bytes (0 is no limit), with silences up to `patience`.
    pub fn new(body: Incoming, most: u64, patience: Duration) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        let most = if most == 0 { u64::MAX } else { most };
        Self::Stream { body, allowed: most, most, patience, silence: None }
    }

    /// Whether there is none, so that the request can be made again.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Stream { body, allowed, most, patience, silence } = &mut *self else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
            let timer = silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(*patience)));
            return timer.as_mut().poll(context).map(|()| Some(Err(BodyError::Stalled(*patience))));
        };
        *silence = None;
        let Some(frame) = frame.transpose()? else { return Poll::Ready(None) };
        let bytes = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
        match allowed.checked_sub(bytes) {
            Some(left) => *allowed = left,
            None => return Poll::Ready(Some(Err(BodyError::TooLarge(*most)))),
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

/// An answer's body towards a client. `G` is told when the body ended whole, and is dropped with it in any case.
#[derive(Debug)]
pub enum AnswerBody<G: Ended> {
    /// The balancer's own.
    Own(Option<Bytes>),
    /// As the replica sends it.
    Stream {
        /// From the replica.
        body: Incoming,
        /// The lease and the connection.
        guard: Option<G>,
    },
}

/// What is kept until a body ended.
pub trait Ended: Unpin {
    /// It ended whole: the connection can be used again.
    fn ended(self);
    /// The replica broke off in the middle.
    fn broken(self);
}

impl<G: Ended> AnswerBody<G> {
    /// Passes `body` on and keeps `guard` as long.
    pub fn stream(body: Incoming, guard: G) -> Self {
        let mut stream = Self::Stream { body, guard: Some(guard) };
        stream.check();
        stream
    }

    /// Lets go of the guard as soon as the last byte was passed on, not when the client asks for more.
    fn check(&mut self) {
        if let Self::Stream { body, guard } = self
            && body.is_end_stream()
            && let Some(guard) = guard.take()
        {
            guard.ended();
        }
    }
}

impl<G: Ended> Body for AnswerBody<G> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (body, guard) = match &mut *self {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { body, guard } => (body, guard),
        };
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => {
                if let Some(guard) = guard.take() {
                    guard.ended();
                }
            }
            Poll::Ready(Some(Ok(_))) => self.check(),
            Poll::Ready(Some(Err(_))) => {
                if let Some(guard) = guard.take() {
                    guard.broken();
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                let bytes = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}
