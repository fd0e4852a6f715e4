//! An engine of a manager over HTTP, played: it keeps objects, filters lists as Docker does, sends events, and answers
//! late, half, twice or never where a test says so. No orchestrator runs behind it: tasks are what a test puts there.
//!
//! Byte by byte instead of through an HTTP library, because no library can be made to answer wrongly.

mod faults;
mod objects;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};

pub use faults::{Fault, Faults};
pub use objects::{Objects, Task};

/// Longest body that is taken, in bytes.
const MAX_BODY: usize = 16 << 20;
/// Events that wait for a slow reader.
const EVENTS: usize = 4_096;

/// What was asked, and what the answers cost.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Requests so far, those for events not counted.
    pub requests: u64,
    /// Bytes of answers so far.
    pub bytes: u64,
    /// The requests themselves, method and path, as long as [`PlayedEngine::keep_paths`] is on.
    pub paths: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    objects: Mutex<Objects>,
    faults: Faults,
    traffic: Mutex<Traffic>,
    keep_paths: bool,
    events: broadcast::Sender<String>,
}

/// A played engine; cheap to clone. It serves until the runtime ends.
#[derive(Clone, Debug)]
pub struct PlayedEngine {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl PlayedEngine {
    /// Serves these objects on a free port of loopback.
    ///
    /// # Errors
    /// When there is none.
    pub async fn serve(mut objects: Objects, keep_paths: bool) -> std::io::Result<Self> {
        // How it came to be so is nobody's news.
        objects.take_events();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner {
            objects: Mutex::new(objects),
            faults: Faults::default(),
            traffic: Mutex::default(),
            keep_paths,
            events: broadcast::Sender::new(EVENTS),
        });
        let serving = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One that breaks off is the client's to notice.
                tokio::spawn(connection(Arc::clone(&serving), stream));
            }
        });
        Ok(Self { inner, address })
    }

    /// Where it is, as `--docker` takes it.
    pub fn address(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// Changes objects, and sends the events that say so.
    pub fn change<T>(&self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let (result, events) = {
            let mut objects = self.objects();
            let result = change(&mut objects);
            (result, objects.take_events())
        };
        self.inner.send(events);
        result
    }

    /// Changes objects without a word.
    pub fn change_silently<T>(&self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let mut objects = self.objects();
        let result = change(&mut objects);
        objects.take_events();
        result
    }

    /// Has the next `times` requests that begin so (`POST /configs/create`) answered wrongly.
    pub fn fault(&self, request: &str, fault: Fault, times: usize) {
        self.inner.faults.add(request, fault, times);
    }

    /// Has everything answered rightly from now on.
    pub fn no_more_faults(&self) {
        self.inner.faults.clear();
    }

    /// What was asked since this was last called.
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *self.inner.traffic())
    }

    /// Whether anybody listens to events.
    pub fn is_listened_to(&self) -> bool {
        self.inner.events.receiver_count() > 0
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.inner.objects()
    }
}

impl Inner {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, events: Vec<Value>) {
        for event in events {
            // Nobody listens: nobody misses it.
            let _ = self.events.send(format!("{event}\n"));
        }
    }

    /// Carries a request out: status and body.
    fn answer(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let (answer, events) = {
            let mut objects = self.objects();
            let answer = objects.answer(method, path, body);
            (answer, objects.take_events())
        };
        self.send(events);
        answer
    }
}

async fn connection(inner: Arc<Inner>, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some((method, path, body)) = request(&mut stream).await? {
        // Paths begin with the version, `/v1.41`, apart from `/_ping`.
        let plain = path.strip_prefix("/v1.41").unwrap_or(&path).to_owned();
        if plain.starts_with("/events") {
            return events(&inner, stream.get_mut()).await;
        }
        let fault = inner.faults.of(&format!("{method} {plain}"));
        let inner_here = Arc::clone(&inner);
        let answered = async move {
            if let Some(Fault::Late(wait)) = fault {
                tokio::time::sleep(wait).await;
            }
            inner_here.answer(&method, &plain, &body)
        };
        let (status, answer) = match fault {
            Some(Fault::Hang) => std::future::pending().await,
            // On its own, because it happens whether the client waits or not.
            Some(Fault::Late(_)) => tokio::spawn(answered).await.map_err(std::io::Error::other)?,
            _ => answered.await,
        };
        let whole = whole(status, &answer);
        {
            let mut traffic = inner.traffic();
            traffic.requests += 1;
            traffic.bytes += whole.len() as u64;
            if inner.keep_paths {
                traffic.paths.push(path);
            }
        }
        match fault {
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Half) => {
                stream.get_mut().write_all(&whole[..whole.len() - answer.len() / 2 - 1]).await?;
                return Ok(());
            }
            Some(Fault::Stuck) => {
                stream.get_mut().write_all(&whole[..whole.len() - answer.len() / 2 - 1]).await?;
                std::future::pending::<()>().await;
            }
            Some(Fault::Twice) => {
                stream.get_mut().write_all(&whole).await?;
                stream.get_mut().write_all(&whole).await?;
            }
            Some(Fault::Hang | Fault::Late(_)) | None => stream.get_mut().write_all(&whole).await?,
        }
    }
    Ok(())
}

/// The next request: method, path and body; `None` at the end.
async fn request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, String, Vec<u8>)>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).await? == 0 {
            return Ok(None);
        }
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; Ord::min(length, MAX_BODY)];
    stream.read_exact(&mut body).await?;
    Ok(Some((method, path, body)))
}

fn whole(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} Played\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Events until the client goes.
async fn events(inner: &Inner, stream: &mut TcpStream) -> std::io::Result<()> {
    let mut events = inner.events.subscribe();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let (mut reader, mut writer) = stream.split();
    let mut nothing = [0];
    loop {
        tokio::select! {
            ended = reader.read(&mut nothing) => if ended? == 0 { return Ok(()) },
            event = events.recv() => {
                // A slow reader loses some, as it would from an engine that breaks off.
                let Ok(event) = event else { return Ok(()) };
                writer.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            }
        }
    }
}

/// Waits until something holds; `false` when it never did.
pub async fn until(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let waited = tokio::time::timeout(patience, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.is_ok()
}
