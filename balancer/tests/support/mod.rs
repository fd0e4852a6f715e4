//! What the balancer's tests share: a balancer in this process, replicas that do as they are told, a blocking client,
//! and a coordinator that says what a test wants said.
#![expect(dead_code, reason = "each test file uses its part of it")]
#![expect(clippy::unwrap_used, reason = "test support: a failure here is a failed test")]

pub mod coordinator;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use clap::Parser as _;
use swarmguard_balancer::{proxy::Global, run::Balancer, settings::Settings};

/// Longest wait for anything; only a broken test ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A balancer with one worker on ports of the kernel's choice.
pub struct Lb {
    pub addresses: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub global: Arc<Global>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Lb {
    /// Starts it with these settings.
    pub fn start(arguments: &[&str]) -> Self {
        let fixed = [
            "lb",
            "--listen-ip=127.0.0.1",
            "--port=0",
            "--tls-port=0",
            "--admin-addr=127.0.0.1:0",
            "--workers=1",
        ];
        let settings = Settings::parse_from(fixed.iter().chain(arguments));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (started_in, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let balancer = Balancer::start(settings).await.unwrap();
                let facts = (balancer.addresses.clone(), balancer.admin, Arc::clone(&balancer.global));
                started_in.send(facts).unwrap();
                let _ = stopped.await;
                balancer.stop().await;
            });
        });
        let (addresses, admin, global) = started.recv_timeout(PATIENCE).unwrap();
        Self { addresses, admin, global, stop: Some(stop), thread: Some(thread) }
    }

    /// With a fixed list of replicas.
    pub fn with(replicas: &[&Replica], arguments: &[&str]) -> Self {
        let nodes: Vec<String> = replicas.iter().map(|replica| replica.address.to_string()).collect();
        let nodes = format!("--worker-nodes={}", nodes.join(","));
        let all: Vec<&str> = std::iter::once(nodes.as_str()).chain(arguments.iter().copied()).collect();
        Self::start(&all)
    }

    /// Tells it to stop; does not wait.
    pub fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// A new connection to it.
    pub fn connect(&self) -> Client {
        Client::connect(self.addresses[0])
    }

    /// One GET over a connection of its own.
    pub fn get(&self, path: &str) -> Answer {
        self.connect().ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Requests in flight at all replicas.
    pub fn in_flight(&self) -> u32 {
        let table = self.global.table.load();
        table.services.iter().flat_map(|it| &it.replicas).map(|it| it.in_flight()).sum()
    }
}

impl Drop for Lb {
    fn drop(&mut self) {
        self.tell_to_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the balancer panicked");
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let mut waited = Duration::ZERO;
    while !condition() {
        assert!(waited < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
        waited += Duration::from_millis(10);
    }
}

/// What a replica does with a request: the stream, the head, and how many requests there were before.
type Behaviour = dyn Fn(&mut TcpStream, &str, usize) -> After + Send + Sync;

/// What a replica does with the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    Keep,
    Close,
}

/// A server that does as it is told and remembers every head it saw.
pub struct Replica {
    pub address: SocketAddr,
    pub heads: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Replica {
    /// On any port of 127.0.0.1.
    pub fn new(behave: impl Fn(&mut TcpStream, &str, usize) -> After + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), behave)
    }

    /// On a certain address. Health checks (`/health`) are answered for it and not remembered.
    pub fn at(
        address: SocketAddr,
        behave: impl Fn(&mut TcpStream, &str, usize) -> After + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let behave: Arc<Behaviour> = Arc::new(behave);
        let (heads_in, connections_in) = (Arc::clone(&heads), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heads, behave) = (Arc::clone(&heads_in), Arc::clone(&behave));
                let connections = Arc::clone(&connections_in);
                std::thread::spawn(move || serve(stream, &heads, &connections, &*behave));
            }
        });
        Self { address, heads, connections }
    }

    /// Answers every request with its name.
    pub fn named(name: &'static str) -> Self {
        Self::new(move |stream, _, _| say(stream, 200, name))
    }

    /// Heads seen so far.
    pub fn seen(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, heads: &Mutex<Vec<String>>, connections: &AtomicUsize, behave: &Behaviour) {
    let mut first = true;
    while let Some(head) = read_head(&mut stream) {
        if head.starts_with("GET /health ") {
            say(&mut stream, 200, "well");
            continue;
        }
        if std::mem::take(&mut first) {
            connections.fetch_add(1, SeqCst);
        }
        let before = {
            let mut heads = heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        if behave(&mut stream, &head, before) == After::Close {
            return;
        }
    }
}

/// Reads up to the empty line.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Answers with a status and a text.
pub fn say(stream: &mut TcpStream, status: u16, text: &str) -> After {
    let answer = format!("HTTP/1.1 {status} Words\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    if stream.write_all(answer.as_bytes()).is_ok() { After::Keep } else { After::Close }
}

/// An answer as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Lines behind the last chunk.
    pub trailers: String,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A blocking HTTP/1.1 client that trusts nobody.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.read(request.starts_with("HEAD "))
    }

    /// Reads one answer.
    pub fn read(&mut self, to_head: bool) -> Answer {
        let head = read_head(&mut self.stream).expect("an answer");
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        };
        let headers: Vec<(String, String)> = lines.filter_map(pair).collect();
        let mut answer = Answer { status, headers, body: Vec::new(), trailers: String::new() };
        if to_head || status == 204 || status == 304 || status < 200 {
            return answer;
        }
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut answer.body).unwrap();
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.read_chunks(&mut answer);
        } else {
            self.stream.read_to_end(&mut answer.body).unwrap();
        }
        answer
    }

    fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let size = self.line();
            let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).unwrap();
            if size == 0 {
                break;
            }
            let at = answer.body.len();
            answer.body.resize(at + size, 0);
            self.stream.read_exact(&mut answer.body[at..]).unwrap();
            assert_eq!(self.line(), "");
        }
        loop {
            let line = self.line();
            if line.is_empty() {
                return;
            }
            answer.trailers += &line;
        }
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0; 1];
        while !line.ends_with(b"\r\n") {
            self.stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line[..line.len() - 2]).into_owned()
    }

    /// Whether the other side has closed the connection; waits for it.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
