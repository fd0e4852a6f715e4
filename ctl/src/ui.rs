//! `swarmguard ui`: the coordinator's page on 127.0.0.1, through the same way in as every other command.
//!
//! So a browser needs no certificate that it trusts, and no port of the swarm is opened. Whoever may use a manager's engine
//! may command; a page that somebody else has open in the same browser, and other users of this machine, may not. Hence:
//! a key that is taken once, from the fragment of the address that is printed (fragments are never sent anywhere); from
//! then on a cookie that the browser sends from this page only; every request must name this address as its host, and
//! every change must come from it (against DNS rebinding and forged requests).

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    commands::install::random,
    coordinator::Coordinator,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// Connections at once: a browser opens six.
const MAX_CONNECTIONS: usize = 64;
/// Largest body of a request.
const MAX_BODY: usize = 64 * 1024;
/// Longest wait for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// Where the key becomes a cookie.
const SESSION: &str = "/ui/session";
/// Carries the key.
const KEY: HeaderName = HeaderName::from_static("swarmguard-key");
/// Tells the page that commands are allowed.
const SIGNED_IN: HeaderName = HeaderName::from_static("swarmguard-ui");
/// The page itself, which tells nothing: it must be there before the key is shown.
const OPEN: [&str; 5] = ["/", "/page.css", "/favicon.svg", "/favicon.ico", "/api/v1/openapi.json"];
const MODULES: &str = "/page/";
/// What is passed on of a request.
const ASKED: [HeaderName; 3] = [header::IF_NONE_MATCH, header::ACCEPT, header::CONTENT_TYPE];
/// What belongs to a connection, not to an answer.
const HOP: [HeaderName; 5] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::TE, header::UPGRADE];

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Serves the page until Ctrl-C.
pub async fn ui(session: &Session, port: u16) -> Outcome<Exit> {
    let coordinator = Arc::clone(session.coordinator().await?);
    // Said now, not by a page that stays empty.
    session.overview().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        let failure = Failure::failed(format!("cannot listen on 127.0.0.1:{port}: {error}"));
        if error.kind() == io::ErrorKind::AddrInUse {
            failure.hint("give another --port, or none")
        } else {
            failure
        }
    })?;
    let address = listener.local_addr().map_err(|error| Failure::failed(error.to_string()))?;
    let gate = Arc::new(Gate::new(address, secret()?, secret()?));
    let url = format!(
        "http://{address}/#key={}",
        gate.key.lock().unwrap_or_else(PoisonError::into_inner).as_deref().unwrap_or_default()
    );
    let value = json!({"url": url, "port": address.port()});
    session.answer("Ui", value, &url, || format!("{url}\n"))?;
    session.note("the address works once, in one browser; Ctrl-C ends it");
    tokio::select! {
        () = serve(listener, gate, coordinator) => Ok(Exit::Failed),
        _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
    }
}

fn secret() -> Outcome<String> {
    Ok(String::from_utf8_lossy(&random()?).into_owned())
}

async fn serve(listener: TcpListener, gate: Arc<Gate>, coordinator: Arc<Coordinator>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (gate, coordinator) = (Arc::clone(&gate), Arc::clone(&coordinator));
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let (gate, coordinator) = (Arc::clone(&gate), Arc::clone(&coordinator));
                async move { Ok::<_, Infallible>(answer(&gate, &coordinator, request).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 * 1024);
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

/// Who is let in.
struct Gate {
    address: SocketAddr,
    /// Taken once.
    key: Mutex<Option<String>>,
    cookie: String,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes on to the coordinator; whether it may command.
    Pass { signed_in: bool },
    /// The key was right: here is the cookie.
    Welcome,
    /// Refused, with the reason.
    Refuse(StatusCode, &'static str, &'static str),
}

impl Gate {
    fn new(address: SocketAddr, key: String, cookie: String) -> Self {
        Self { address, key: Mutex::new(Some(key)), cookie }
    }

    fn judge(&self, method: &Method, path: &str, headers: &HeaderMap) -> Verdict {
        use Verdict::{Pass, Refuse, Welcome};
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let port = self.address.port();
        let names = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        let Some(host) = text(&header::HOST).filter(|host| names.iter().any(|name| name == host)) else {
            return Refuse(
                StatusCode::MISDIRECTED_REQUEST,
                "unknown_host",
                "this server has another address",
            );
        };
        // A browser names where a request comes from with everything that is no plain reading of its own page.
        let own = format!("http://{host}");
        let foreign = text(&header::ORIGIN).is_some_and(|origin| origin != own);
        let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
        let elsewhere = site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
        // A link to the page is harmless: the browser shows it and tells the other page nothing.
        let linked = *method == Method::GET && OPEN.contains(&path);
        let changes = !matches!(*method, Method::GET | Method::HEAD);
        if foreign || elsewhere && !linked || changes && text(&header::ORIGIN).is_none() {
            return Refuse(
                StatusCode::FORBIDDEN,
                "foreign_origin",
                "the request does not come from this page",
            );
        }
        if path == SESSION && *method == Method::POST {
            let mut key = self.key.lock().unwrap_or_else(PoisonError::into_inner);
            let right = key.as_deref().zip(text(&KEY)).is_some_and(|(key, offered)| same(key, offered));
            if right {
                *key = None;
                return Welcome;
            }
            return Refuse(
                StatusCode::FORBIDDEN,
                "wrong_key",
                "the key is wrong or was used already: start swarmguard ui again",
            );
        }
        let signed_in = self.knows(headers);
        if signed_in || !changes && (OPEN.contains(&path) || path.starts_with(MODULES)) {
            return Pass { signed_in };
        }
        Refuse(
            StatusCode::UNAUTHORIZED,
            "session_needed",
            "open the address that swarmguard ui has printed; it works once, so start it again for another browser",
        )
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let wanted = self.cookie_name();
        let said = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        said.flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(name, value)| name == wanted && same(value, &self.cookie))
    }

    /// Browsers do not tell ports apart, so that two of us beside each other need two names.
    fn cookie_name(&self) -> String {
        format!("swarmguard-ui-{}", self.address.port())
    }
}

/// Compares in the same time wherever they differ.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

async fn answer(gate: &Gate, coordinator: &Coordinator, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match gate.judge(&head.method, head.uri.path(), &head.headers) {
        Verdict::Refuse(status, code, detail) => problem(status, code, detail),
        Verdict::Welcome => {
            let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", gate.cookie_name(), gate.cookie);
            let answer =
                Response::builder().status(StatusCode::NO_CONTENT).header(header::SET_COOKIE, cookie);
            answer.body(empty()).unwrap_or_else(|_| Response::new(empty()))
        }
        Verdict::Pass { signed_in } => {
            let body = match Limited::new(body, MAX_BODY).collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) => return problem(StatusCode::PAYLOAD_TOO_LARGE, "bad_body", "the body is too long"),
            };
            let mut asked: Vec<(&str, &str)> = Vec::new();
            for name in &ASKED {
                asked.extend(
                    head.headers.get(name).and_then(|value| Some((name.as_str(), value.to_str().ok()?))),
                );
            }
            let body = (!body.is_empty()).then_some(body);
            match coordinator.pass(head.method, &path, &asked, body).await {
                Ok(answer) => passed(answer, signed_in),
                Err(failure) => problem(StatusCode::BAD_GATEWAY, "unreachable", &failure.what),
            }
        }
    }
}

fn passed(answer: Response<Body>, signed_in: bool) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    for name in &HOP {
        parts.headers.remove(name);
    }
    if signed_in {
        parts.headers.insert(SIGNED_IN, HeaderValue::from_static("1"));
    }
    Response::from_parts(parts, body)
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response<Body> {
    let text = json!({"status": status.as_u16(), "code": code, "title": code, "detail": detail}).to_string();
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/problem+json");
    answer.body(body).unwrap_or_else(|_| Response::new(empty()))
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new("127.0.0.1:4711".parse().expect("an address"), "k".repeat(64), "c".repeat(64))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let value = |value: &str| HeaderValue::from_str(value).expect("a value");
        pairs.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:4711");
    const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:4711");

    fn code(verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Pass { signed_in: true } => "commands",
            Verdict::Pass { signed_in: false } => "page",
            Verdict::Welcome => "welcome",
            Verdict::Refuse(_, code, _) => code,
        }
    }

    #[test]
    fn the_key_works_once_and_from_the_page_only() {
        let gate = gate();
        let (key, wrong) = ("k".repeat(64), "x".repeat(64));
        let post = |pairs: &[(&'static str, &str)]| code(gate.judge(&Method::POST, SESSION, &headers(pairs)));
        assert_eq!(post(&[HOST, ORIGIN]), "wrong_key");
        assert_eq!(post(&[HOST, ORIGIN, ("swarmguard-key", &wrong)]), "wrong_key");
        assert_eq!(
            post(&[HOST, ("swarmguard-key", &key)]),
            "foreign_origin",
            "no browser's page leaves it out"
        );
        assert_eq!(
            post(&[HOST, ("origin", "http://evil.example"), ("swarmguard-key", &key)]),
            "foreign_origin"
        );
        assert_eq!(post(&[("host", "evil.example:4711"), ORIGIN, ("swarmguard-key", &key)]), "unknown_host");
        assert_eq!(post(&[ORIGIN, ("swarmguard-key", &key)]), "unknown_host", "none is named");
        assert_eq!(post(&[HOST, ORIGIN, ("swarmguard-key", &key)]), "welcome");
        assert_eq!(post(&[HOST, ORIGIN, ("swarmguard-key", &key)]), "wrong_key", "it was used");
    }

    #[test]
    fn without_the_cookie_there_is_the_page_and_nothing_else() {
        let gate = gate();
        let cookie = format!("a=b; swarmguard-ui-4711={}", "c".repeat(64));
        let other = format!("swarmguard-ui-4712={}", "c".repeat(64));
        let get = |path: &str, pairs: &[(&'static str, &str)]| {
            code(gate.judge(&Method::GET, path, &headers(pairs)))
        };
        for path in ["/", "/page/main.js", "/page.css", "/favicon.svg"] {
            assert_eq!(get(path, &[HOST]), "page", "{path}");
        }
        for path in ["/api/v1/overview", "/metrics", "/api/v1/events", "/ui/session"] {
            assert_eq!(get(path, &[HOST]), "session_needed", "{path}");
        }
        assert_eq!(get("/api/v1/overview", &[HOST, ("cookie", &cookie)]), "commands");
        assert_eq!(get("/api/v1/overview", &[HOST, ("cookie", &other)]), "session_needed");
        let site = |site| [HOST, ("cookie", &*cookie), ("sec-fetch-site", site)];
        assert_eq!(
            get("/api/v1/overview", &site("same-site")),
            "foreign_origin",
            "another port of this machine"
        );
        assert_eq!(get("/api/v1/overview", &site("same-origin")), "commands");
        assert_eq!(get("/", &site("cross-site")), "commands", "a link to the page");
        let post = |pairs: &[(&'static str, &str)]| {
            code(gate.judge(&Method::POST, "/api/v1/commands/pause", &headers(pairs)))
        };
        assert_eq!(post(&[HOST, ORIGIN]), "session_needed");
        assert_eq!(post(&[HOST, ("cookie", &cookie)]), "foreign_origin");
        assert_eq!(post(&[HOST, ("origin", "http://127.0.0.1:80"), ("cookie", &cookie)]), "foreign_origin");
        assert_eq!(post(&[HOST, ("origin", "null"), ("cookie", &cookie)]), "foreign_origin");
        assert_eq!(post(&[HOST, ORIGIN, ("cookie", &cookie)]), "commands");
    }
}
