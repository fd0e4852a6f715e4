//! Notifications against real receivers: an HTTP server that answers 429, 500, slowly or never, a mail server that other
//! people wrote, and a coordinator's process that is killed in between.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use serde_json::Value;
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_coordinator::{
    metrics::Metrics,
    notify::{Notify, Start, settings::Settings},
};
use swarmguard_runtime::clock;

/// Longest wait for anything; only a broken test ever waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stands for the minute in which twenty messages are sent.
const WINDOW: Duration = Duration::from_secs(6);

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Take,
    TakeSlowly,
    Answer(&'static str),
    Nothing,
}

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    at_ms: u64,
    head: String,
    body: String,
}

/// A receiver: does these things, one for each request, then takes everything.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    most_at_once: Arc<Mutex<(u32, u32)>>,
}

impl Receiver {
    fn new(script: &[Does]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (seen, most_at_once) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new((0, 0))));
        let (all, open, script) = (Arc::clone(&seen), Arc::clone(&most_at_once), script.to_vec());
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let does = script.get(number).copied().unwrap_or(Does::Take);
                let (all, open) = (Arc::clone(&all), Arc::clone(&open));
                std::thread::spawn(move || {
                    {
                        let mut open = open.lock().expect("unbroken");
                        open.0 += 1;
                        open.1 = open.1.max(open.0);
                    }
                    serve(stream, does, &all);
                    open.lock().expect("unbroken").0 -= 1;
                });
            }
        });
        Self { address, seen, most_at_once }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("unbroken").clone()
    }

    fn until(&self, count: usize) -> Vec<Seen> {
        eventually(&format!("{count} requests came"), || self.seen().len() >= count);
        self.seen()
    }
}

fn serve(stream: TcpStream, does: Does, all: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        head.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).expect("a body");
    let body = String::from_utf8(body).expect("text");
    all.lock().expect("unbroken").push(Seen { at_ms: clock::wall_ms(), head, body });
    let mut stream = reader.into_inner();
    let answer = match does {
        Does::Take => "200 OK\r\nContent-Length: 2\r\n\r\nok",
        Does::TakeSlowly => {
            std::thread::sleep(Duration::from_secs(2));
            "204 No Content\r\n\r\n"
        }
        Does::Answer(answer) => answer,
        Does::Nothing => {
            std::thread::sleep(Duration::from_secs(120));
            return;
        }
    };
    // Whoever asked may have been killed.
    let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes());
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = clock::now();
    while !condition() {
        assert!(clock::now().since(began) < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn settings(text: &str) -> Settings {
    Settings::parse(text).expect("sensible")
}

fn webhook(address: SocketAddr) -> Settings {
    settings(&format!(
        "[[channel]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://{address}/path?key=geheim\"\nsecret = \"s\"\n"
    ))
}

fn start(settings: Settings, dir: Option<&Path>) -> (Notify, Arc<Metrics>) {
    let metrics = Metrics::new();
    let start = Start {
        settings,
        dir: dir.map(Into::into),
        swarm: "prod".into(),
        origin: "m1".into(),
        window: WINDOW,
        metrics: Arc::clone(&metrics),
    };
    let notify = Notify::start(start).expect("usable");
    notify.set_acting(true);
    (notify, metrics)
}

fn undone(service: &str, text: &str) -> Arc<Entry> {
    let service_name = Some(service.to_owned());
    Arc::new(Entry { service_name, at_ms: clock::wall_ms(), ..Entry::new(Kind::Action, "undone", text) })
}

fn json(seen: &Seen) -> Value {
    serde_json::from_str(&seen.body).expect("JSON")
}

fn texts(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(|one| json(one)["text"].as_str().expect("a text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_fails_is_told_in_order_and_as_late_as_it_asks() {
    let receiver = Receiver::new(&[
        Does::Answer("429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"),
        Does::Answer("500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
        Does::TakeSlowly,
    ]);
    let (notify, metrics) = start(webhook(receiver.address), None);
    for service in ["one", "two", "three"] {
        notify.offer(&undone(service, "put back"));
    }
    let seen = tokio::task::block_in_place(|| receiver.until(5));
    assert_eq!(
        texts(&seen),
        ["one: put back", "one: put back", "one: put back", "two: put back", "three: put back"]
    );
    assert!(seen[1].at_ms - seen[0].at_ms >= 1_950, "Retry-After is obeyed: {seen:?}");
    assert!(seen[2].at_ms - seen[1].at_ms >= 900, "and after a failure it waits: {seen:?}");
    assert!(seen[3].at_ms - seen[2].at_ms >= 1_950, "one at a time, however slow: {seen:?}");
    let ids: Vec<Value> = seen.iter().map(|one| json(one)["id"].clone()).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3] && ids[3] != ids[4], "{ids:?}");
    assert_eq!(receiver.most_at_once.lock().expect("unbroken").1, 1);
    eventually("all are counted", || metrics.notify_sent.get(["hook"]) == 3);
    assert_eq!((metrics.notify_failed.get(["hook"]), metrics.notify_dropped.get(["hook"])), (2, 0));
    let head = &seen[0].head;
    assert!(
        head.starts_with("post /path?key=geheim http/1.1") && head.contains("x-swarmguard-id: m1-"),
        "{head}"
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"s");
    let tag = ring::hmac::sign(&key, seen[0].body.as_bytes());
    let wanted: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(head.contains(&format!("x-swarmguard-signature: sha256={wanted}\r\n")), "{head}");
    let shown = format!("{:?} {:?} {}", notify, notify.list(), metrics.text());
    assert!(!shown.contains("geheim") && !shown.contains(&receiver.address.to_string()), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_is_folded_and_what_is_too_much_comes_as_a_digest() {
    let receiver = Receiver::new(&[]);
    let (notify, metrics) = start(webhook(receiver.address), None);
    for number in 0..30 {
        notify.offer(&undone("web", &format!("number {number}")));
        notify.offer(&undone(&format!("s{number}"), "put back"));
    }
    let seen = tokio::task::block_in_place(|| receiver.until(20));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(receiver.seen().len(), 20, "twenty a minute");
    let first = json(&seen[0]);
    assert!(first["text"].as_str().is_some_and(|text| text.starts_with("web: number ")), "{first}");
    // What waits comes in one when the minute is over.
    let seen = tokio::task::block_in_place(|| receiver.until(21));
    let after = u128::from(seen[20].at_ms - seen[0].at_ms);
    assert!(after + 100 >= WINDOW.as_millis(), "{after} ms");
    let digest = json(&seen[20]);
    let folded = digest["entries"].as_array().expect("a list").iter();
    let times: u64 = folded.map(|one| one["times"].as_u64().expect("a number")).sum();
    let told: u64 = seen[..20]
        .iter()
        .flat_map(|one| json(one)["entries"].as_array().cloned().unwrap_or_default())
        .map(|one| one["times"].as_u64().expect("a number"))
        .sum();
    assert_eq!(told + times, 60, "none is lost: {digest}");
    eventually("nothing waits", || notify.list()[0].waiting == 0);
    assert_eq!((metrics.notify_sent.get(["hook"]), metrics.notify_dropped.get(["hook"])), (21, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_acts_tells_and_a_test_says_what_the_receiver_says() {
    let receiver = Receiver::new(&[Does::Answer("404 Not Found\r\nContent-Length: 0\r\n\r\n")]);
    let (notify, _) = start(webhook(receiver.address), None);
    notify.set_acting(false);
    notify.offer(&undone("web", "put back"));
    let refused = notify.test("hook", "ann@desk").await.expect("known").expect_err("404");
    assert!(refused.contains("404") && !refused.contains("geheim"), "{refused}");
    assert_eq!(notify.test("hook", "ann@desk").await, Some(Ok(())));
    assert_eq!(notify.test("nobody", "ann@desk").await, None);
    let seen = receiver.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].body.contains("ann@desk"));
    // What is the matter with the coordinator itself is told all the same.
    notify.offer(&Arc::new(Entry::new(Kind::Notice, "swarm_unreadable", "Swarm cannot be read")));
    let seen = tokio::task::block_in_place(|| receiver.until(3));
    assert_eq!(json(&seen[2])["severity"], "critical");
}

/// Started by the test below as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the process that another test kills"]
async fn a_process_to_be_killed() {
    let (Ok(address), Ok(dir)) = (std::env::var("RECEIVER"), std::env::var("OUTBOX")) else { return };
    let (notify, _) = start(webhook(address.parse().expect("an address")), Some(Path::new(&dir)));
    for service in ["one", "two"] {
        notify.offer(&undone(service, "put back"));
    }
    tokio::time::sleep(PATIENCE).await;
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_taken_when_the_coordinator_was_killed_is_told_by_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let receiver = Receiver::new(&[Does::Nothing]);
    let own = std::env::current_exe().expect("a path");
    let mut command = Command::new(own);
    command.args(["--exact", "a_process_to_be_killed", "--ignored"]).stdout(Stdio::null());
    command.env("RECEIVER", receiver.address.to_string()).env("OUTBOX", dir.path());
    let killed = Killed(command.spawn().expect("started"));
    let first = tokio::task::block_in_place(|| receiver.until(1)).remove(0);
    // SIGKILL, while the receiver says nothing.
    drop(killed);
    let (_notify, metrics) = start(webhook(receiver.address), Some(dir.path()));
    let seen = tokio::task::block_in_place(|| receiver.until(3));
    assert_eq!(texts(&seen), ["one: put back", "one: put back", "two: put back"]);
    assert_eq!(json(&first)["id"], json(&seen[1])["id"], "the receiver can tell that it is the same");
    eventually("both are counted", || metrics.notify_sent.get(["hook"]) == 2);
}

/// `aiosmtpd` with TLS; prints each mail as a line of JSON.
const MAIL_SERVER: &str = r#"
import asyncio, json, ssl, sys
from email import message_from_bytes
from aiosmtpd.smtp import SMTP, AuthResult
class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.content)
        print(json.dumps({"from": envelope.mail_from, "to": envelope.rcpt_tos, "tls": session.ssl is not None,
            "user": session.auth_data, "subject": mail["Subject"], "id": mail["Message-ID"],
            "body": mail.get_payload(decode=True).decode()}), flush=True)
        return "250 taken"
def authenticate(server, session, envelope, mechanism, data):
    ok = (data.login, data.password) == (b"guard", b"geheim")
    return AuthResult(success=ok, handled=False, auth_data="guard")
async def main():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(sys.argv[1], sys.argv[2])
    def make():
        return SMTP(Handler(), tls_context=tls, require_starttls=True, authenticator=authenticate, auth_required=True,
            hostname="localhost")
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs aiosmtpd: cargo xtask test --only watch"]
async fn mail_goes_encrypted_to_a_server_that_other_people_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    // Debian's, whose packages it has.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", MAIL_SERVER]).arg(&certificate).arg(&key).stdout(Stdio::piped());
    let mut server = Killed(command.spawn().expect("python3"));
    let output = server.0.stdout.take().expect("piped");
    let (line_in, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line_in.send(line).is_err() {
                return;
            }
        }
    });
    let port = lines.recv_timeout(PATIENCE).expect("it says its port");
    let channel = |password: &str, ca: &str| {
        settings(&format!(
            "[[channel]]\nname = \"mail\"\nkind = \"smtp\"\nserver = \"localhost\"\nport = {port}\nuser = \"guard\"\n\
             password = \"{password}\"\nfrom = \"SwarmGuard <guard@example.com>\"\nto = [\"ops@example.com\"]\n{ca}"
        ))
    };
    let ca = format!("ca = \"\"\"\n{}\"\"\"\n", made.cert.pem());
    let (notify, _) = start(channel("geheim", &ca), None);
    notify.offer(&undone("web", "put back: größer geht es nicht"));
    let mail: Value = serde_json::from_str(&lines.recv_timeout(PATIENCE).expect("a mail")).expect("JSON");
    assert_eq!((&mail["from"], &mail["to"][0]), (&"guard@example.com".into(), &"ops@example.com".into()));
    assert_eq!((&mail["tls"], &mail["user"]), (&true.into(), &"guard".into()));
    assert_eq!(mail["subject"], "Warning: undone web (prod)");
    assert!(mail["body"].as_str().is_some_and(|body| body.contains("web: put back: größer")), "{mail}");
    assert!(mail["id"].as_str().is_some_and(|id| id.starts_with("<m1-")), "{mail}");

    let (wrong, _) = start(channel("falsch", &ca), None);
    let refused = wrong.test("mail", "ann").await.expect("known").expect_err("a wrong password");
    assert!(refused.contains("535") && !refused.contains("falsch"), "{refused}");
    let (stranger, _) = start(channel("geheim", ""), None);
    let refused = stranger.test("mail", "ann").await.expect("known").expect_err("nobody vouches for it");
    assert!(refused.to_lowercase().contains("cert"), "{refused}");
}
