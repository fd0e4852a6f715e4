//! What one worker keeps for the fast path: connections to replicas, and buffers.

use std::{
    cell::{RefCell, RefMut},
    collections::HashMap,
    io,
    time::Duration,
};

use swarmguard_common::time::Time;
use tokio::net::TcpStream;

/// Read at a time, in bytes.
pub const READ_BYTES: usize = 16 * 1_024;
/// Buffers kept for the next request.
const SPARE_BUFFERS: usize = 128;
/// Larger ones are not kept.
const SPARE_BYTES: usize = 2 * READ_BYTES;
/// Kept connections are closed after this.
const IDLE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Pools {
    idle: RefCell<HashMap<u64, Vec<(TcpStream, Time)>>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    /// All connections read into this one, so that who waits for something to read holds no memory for it.
    scratch: RefCell<Box<[u8]>>,
}

impl Default for Pools {
    fn default() -> Self {
        let scratch = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
        Self { idle: RefCell::default(), buffers: RefCell::default(), scratch }
    }
}

impl Pools {
    /// An unused connection to a replica, if there is one that is open.
    pub fn take(&self, replica: u64) -> Option<TcpStream> {
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

    /// Keeps a connection for the next request, unless there are `most` already.
    pub fn give(&self, replica: u64, stream: TcpStream, most: usize, now: Time) {
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

    /// An empty buffer.
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for the next request.
    pub fn return_buffer(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_BYTES {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// What everything is read into; not to be kept over a wait.
    pub fn scratch(&self) -> RefMut<'_, Box<[u8]>> {
        self.scratch.borrow_mut()
    }
}
