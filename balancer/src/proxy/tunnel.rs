//! Upgraded connections: after 101 the bytes are nobody's business but the two ends'. A tunnel keeps the client's place, the
//! lease at the replica, and a place in the memory that all share; silence of both sides ends it.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::seats::Seat;
use crate::{
    lease::Lease,
    memory::Charge,
    stats::{WorkerStats, bump},
};

/// Read at a time, in bytes.
const READ_BYTES: usize = 16 * 1_024;
/// What a tunnel costs while nothing waits in it, in bytes.
pub const BASE_BYTES: usize = 4_096;

thread_local! {
    /// All tunnels of a worker read into this one, so that a quiet one holds no memory for it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What a tunnel holds as long as it lasts.
pub struct Tunnel {
    /// A drain of the replica waits for it.
    pub lease: Lease,
    /// The client's place.
    pub seat: Option<Rc<Seat>>,
    /// Longest silence of both sides.
    pub silence: Duration,
    /// Pays for it, and for what one side does not take at once.
    pub charge: Charge,
    /// The worker's counters.
    pub stats: Arc<WorkerStats>,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, one breaks, or nothing moves for too long.
    pub async fn run(self, client: OnUpgrade, replica: OnUpgrade) {
        let Self { lease, seat, silence, charge, stats } = self;
        let task = &lease.replica().task;
        let (client, replica) = match tokio::join!(client, replica) {
            (Ok(client), Ok(replica)) => (TokioIo::new(client), TokioIo::new(replica)),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "an upgrade did not come about");
                return;
            }
        };
        bump(&stats.upgrades);
        if let Err(error) = copy(client, replica, silence, charge).await {
            tracing::debug!(%error, %task, "an upgraded connection ended early");
        }
        bump(&stats.upgrades_closed);
        drop((lease, seat));
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read and not written yet.
    rest: Vec<u8>,
    written: usize,
    ended: bool,
    shut: bool,
}

async fn copy<A, B>(mut client: A, mut replica: B, silence: Duration, mut charge: Charge) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Half::default(), Half::default());
    let mut last = Instant::now();
    let mut timer = Box::pin(tokio::time::sleep(silence));
    poll_fn(|context| {
        let mut moved = false;
        let there = up.poll(&mut client, &mut replica, &mut moved, context)?;
        let back = down.poll(&mut replica, &mut client, &mut moved, context)?;
        if !charge.set(BASE_BYTES + up.rest.len() + down.rest.len()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, "one side does not read")));
        }
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if moved {
            last = Instant::now();
        }
        poll_silence(timer.as_mut(), last + silence, context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {silence:?}"))))
    })
    .await
}

fn poll_silence(mut timer: Pin<&mut Sleep>, due: Instant, context: &mut Context<'_>) -> Poll<()> {
    loop {
        ready!(timer.as_mut().poll(context));
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
    }
}

impl Half {
    /// Ready once this direction has ended.
    fn poll<F, T>(
        &mut self,
        from: &mut F,
        to: &mut T,
        moved: &mut bool,
        context: &mut Context<'_>,
    ) -> io::Result<Poll<()>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        loop {
            if self.shut {
                return Ok(Poll::Ready(()));
            }
            while self.written < self.rest.len() {
                match Pin::new(&mut *to).poll_write(context, &self.rest[self.written..])? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(count) => {
                        self.written += count;
                        *moved = true;
                    }
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            (self.rest, self.written) = (Vec::new(), 0);
            if self.ended {
                if Pin::new(&mut *to).poll_shutdown(context)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.shut = true;
                continue;
            }
            let read = SCRATCH.with_borrow_mut(|scratch| -> io::Result<Poll<()>> {
                let mut buffer = ReadBuf::new(scratch);
                if Pin::new(&mut *from).poll_read(context, &mut buffer)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                *moved = true;
                let bytes = buffer.filled();
                self.ended = bytes.is_empty();
                if !self.ended {
                    let written = match Pin::new(&mut *to).poll_write(context, bytes)? {
                        Poll::Ready(written) => written,
                        Poll::Pending => 0,
                    };
                    self.rest = bytes[written..].to_vec();
                }
                Ok(Poll::Ready(()))
            })?;
            if read.is_pending() {
                // Nothing more comes for now: what was written goes out.
                let _pending = Pin::new(&mut *to).poll_flush(context)?;
                return Ok(Poll::Pending);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn bytes_pass_both_ways_however_small_the_window_and_the_end_passes_too() {
        let memory = Memory::new(100_000);
        let ((mut client, inner), (outer, mut replica)) = (duplex(7), duplex(5));
        let charge = memory.charge(BASE_BYTES).expect("room");
        let tunnel = tokio::spawn(copy(inner, outer, Duration::from_secs(60), charge));
        let sent: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let echo = tokio::spawn(async move {
            let mut all = Vec::new();
            replica.read_to_end(&mut all).await.expect("to the end");
            replica.write_all(&all).await.expect("written");
        });
        let (mut reads, mut writes) = tokio::io::split(&mut client);
        writes.write_all(&sent).await.expect("written");
        writes.shutdown().await.expect("ended");
        let mut back = Vec::new();
        reads.read_to_end(&mut back).await.expect("to the end");
        assert_eq!(back, sent);
        echo.await.expect("no panic");
        tunnel.await.expect("no panic").expect("a proper end");
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn silence_of_both_sides_ends_it_and_of_one_does_not() {
        let memory = Memory::new(100_000);
        let ((mut client, inner), (outer, mut replica)) = (duplex(64), duplex(64));
        let charge = memory.charge(BASE_BYTES).expect("room");
        let tunnel = tokio::spawn(copy(inner, outer, Duration::from_secs(1), charge));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            replica.write_all(b"x").await.expect("the tunnel stands");
            client.read_exact(&mut [0]).await.expect("it passes");
        }
        let error = tunnel.await.expect("no panic").expect_err("nothing moves");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
