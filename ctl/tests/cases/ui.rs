//! `swarmguard ui`: the page through the engine, for one browser on this machine.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::world::{World, world};

struct Ui {
    _child: tokio::process::Child,
    host: String,
    key: String,
}

impl Ui {
    async fn start(world: &World) -> Self {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_swarmguard"));
        let engine = format!("unix://{}", world.engine.socket.display());
        command.env_clear().env("DOCKER_HOST", engine).env("USER", "anna").arg("ui");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let url = line.expect("it says where").expect("readable").expect("a line");
        let (host, key) =
            url.strip_prefix("http://").and_then(|rest| rest.split_once("/#key=")).expect("an address");
        Self { _child: child, host: host.into(), key: key.into() }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.host).await.expect("connected");
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_ascii_lowercase(), body.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_comes_through_the_engine_and_one_browser_may_command() {
    let world = world().await;
    world.ready().await;
    let ui = Ui::start(&world).await;
    assert!(ui.host.starts_with("127.0.0.1:") && ui.key.len() >= 32, "{} {}", ui.host, ui.key);
    let (status, head, page) = ui.ask("GET", "/", &[], "").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("SwarmGuard") && head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert_eq!(ui.ask("GET", "/page/main.js", &[], "").await.0, 200);
    let (status, _, answer) = ui.ask("GET", "/api/v1/overview", &[], "").await;
    assert!(status == 401 && answer.contains("session_needed"), "{status} {answer}");

    let origin = format!("http://{}", ui.host);
    let key = [("Origin", &*origin), ("Swarmguard-Key", &*ui.key)];
    let (status, head, _) = ui.ask("POST", "/ui/session", &key, "").await;
    assert_eq!(status, 204, "{head}");
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let cookie = cookie.split(';').next().expect("its value").to_owned();
    assert_eq!(ui.ask("POST", "/ui/session", &key, "").await.0, 403, "it works once");

    let own = [("Cookie", &*cookie), ("Origin", &*origin), ("Content-Type", "application/json")];
    let (status, head, overview) = ui.ask("GET", "/api/v1/overview", &own[..1], "").await;
    assert!(status == 200 && overview.contains("shop_web"), "{status} {overview}");
    assert!(head.contains("swarmguard-ui: 1"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag").to_owned();
    assert!(!tag.is_empty());
    let body = r#"{"service":"shop_web"}"#;
    let forged = [own[0], ("Origin", "http://evil.example"), own[2]];
    assert_eq!(ui.ask("POST", "/api/v1/commands/pause", &forged, body).await.0, 403);
    let (status, _, answer) = ui.ask("POST", "/api/v1/commands/pause", &own, body).await;
    assert_eq!(status, 202, "{answer}");
    let (_, _, journal) = ui.ask("GET", "/api/v1/journal?kinds=operator", &own[..1], "").await;
    assert!(journal.contains("anna@"), "the journal knows who: {journal}");

    // Events go on, and come as they happen.
    let mut stream = TcpStream::connect(&ui.host).await.expect("connected");
    let request =
        format!("GET /api/v1/events?since=0 HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", ui.host);
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut seen = String::new();
    let found = async {
        let mut buffer = [0; 4096];
        while !seen.contains("pause shop_web") && !seen.contains("pause service=") {
            let length = stream.read(&mut buffer).await.expect("readable");
            assert!(length > 0, "the stream ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the event comes");
}
