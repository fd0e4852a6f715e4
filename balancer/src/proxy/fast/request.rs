//! Which requests the fast path takes, and how their heads are written anew for a replica. Pure.
//!
//! Only what cannot be misunderstood: GET, HEAD and OPTIONS in origin form over HTTP/1.1, one Host, no body, nothing
//! that changes the connection. httparse reads the head; it is written from the parsed parts, never copied, so that no
//! odd line end or space reaches a replica.

use std::fmt::Write as _;

use crate::{
    proxy::{
        authority,
        headers::{self, Claim, Client},
    },
    settings::Settings,
};

/// Headers of one head; more are left to the slow path.
pub const MAX_HEADERS: usize = 64;

/// A request that the fast path takes, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Plain<'a> {
    /// Length of the head in bytes.
    pub length: usize,
    /// `GET`, `HEAD` or `OPTIONS`.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The one Host.
    pub host: &'a str,
    /// The client wants the connection closed afterwards.
    pub close: bool,
    /// Where the `Cookie` headers are.
    pub cookies: Vec<&'a [u8]>,
    headers: Vec<(&'a str, &'a [u8])>,
}

/// What the bytes read so far are.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// A whole head that the fast path takes.
    Plain(Plain<'a>),
    /// Not a whole head yet.
    Partial,
    /// Whole or not, something for the slow path.
    Other,
}

/// Looks at what a client sent.
pub fn parse<'a>(bytes: &'a [u8], settings: &Settings) -> Parsed<'a> {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut space);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < settings.max_head_bytes as usize => {
            return Parsed::Partial;
        }
        Ok(httparse::Status::Partial) | Err(_) => return Parsed::Other,
    };
    plain(length, &request, settings).map_or(Parsed::Other, Parsed::Plain)
}

fn plain<'a>(length: usize, request: &httparse::Request<'_, 'a>, settings: &Settings) -> Option<Plain<'a>> {
    let (method, target) = (request.method?, request.path?);
    let taken = request.version == Some(1)
        && matches!(method, "GET" | "HEAD" | "OPTIONS")
        && target.starts_with('/')
        && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !taken {
        return None;
    }
    let mut host = None;
    let mut plain = Plain {
        length,
        method,
        target,
        host: "",
        close: false,
        cookies: Vec::new(),
        headers: Vec::with_capacity(request.headers.len()),
    };
    for header in request.headers.iter() {
        let (name, value) = (header.name, header.value);
        match kind(name) {
            Kind::Kept => {}
            Kind::Cookie => plain.cookies.push(value),
            Kind::Dropped => continue,
            Kind::Forwarded if settings.trust_forwarded => return None,
            Kind::Forwarded => continue,
            Kind::Connection => {
                plain.close |= is_close(value)?;
                continue;
            }
            Kind::Host => {
                let text = std::str::from_utf8(value).ok().filter(|_| host.is_none())?;
                if !authority::is_valid(text) {
                    return None;
                }
                host = Some(text);
            }
            Kind::Unusual => return None,
        }
        plain.headers.push((name, value));
    }
    plain.host = host?;
    Some(plain)
}

/// Whether a `Connection` header asks to close; `None` where it says anything unusual.
fn is_close(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"keep-alive") {
        Some(false)
    } else {
        value.eq_ignore_ascii_case(b"close").then_some(true)
    }
}

enum Kind {
    Kept,
    Host,
    Cookie,
    Connection,
    /// Hop by hop and without further meaning.
    Dropped,
    /// What the balancer says itself.
    Forwarded,
    /// A body, a change of protocol, or something else that hyper is to judge.
    Unusual,
}

fn kind(name: &str) -> Kind {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    // By length first: most headers are compared with one or two names only.
    match name.len() {
        2 if is("te") => Kind::Unusual,
        4 if is("host") => Kind::Host,
        6 if is("cookie") => Kind::Cookie,
        6 if is("expect") => Kind::Unusual,
        7 if is("upgrade") || is("trailer") => Kind::Unusual,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Dropped,
        14 if is("content-length") => Kind::Unusual,
        16 if is("proxy-connection") => Kind::Dropped,
        17 if is("transfer-encoding") => Kind::Unusual,
        _ => match headers::claim(name) {
            Claim::None => Kind::Kept,
            Claim::Forwarded => Kind::Forwarded,
            Claim::Twin => Kind::Dropped,
        },
    }
}

impl Plain<'_> {
    /// Writes the head for a replica.
    pub fn write(&self, out: &mut Vec<u8>, client: &Client, settings: &Settings) {
        for part in [self.method, " ", self.target, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in &self.headers {
            line(out, name, value);
        }
        if settings.forwarded.x() {
            line(out, "x-forwarded-for", client.ip_value.as_bytes());
            line(out, "x-forwarded-proto", client.scheme().as_bytes());
            line(out, "x-forwarded-host", self.host.as_bytes());
        }
        if settings.forwarded.rfc() {
            line(out, "forwarded", headers::forwarded(client, self.host).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes one header.
pub fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a status line.
pub fn status_line(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut head = String::with_capacity(16);
    // Writing into a string cannot fail.
    let _ = write!(head, "HTTP/1.1 {code} ");
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn settings() -> Settings {
        Settings::parse_from(["swarmguard-balancer"])
    }

    fn rewritten(head: &str) -> Option<String> {
        let settings = settings();
        let Parsed::Plain(plain) = parse(head.as_bytes(), &settings) else { return None };
        assert_eq!(plain.length, head.len());
        let mut out = Vec::new();
        plain.write(&mut out, &Client::new([192, 0, 2, 1].into(), false), &settings);
        Some(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_plain_request_is_written_anew() {
        let head = "GET /a?b HTTP/1.1\r\nHost: x:1\nConnection: Keep-Alive\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_Proto: x\r\nX-Real-IP: 6\r\nA:  b \r\n\r\n";
        let expected = "GET /a?b HTTP/1.1\r\nHost: x:1\r\nA: b\r\nx-forwarded-for: 192.0.2.1\r\n\
            x-forwarded-proto: http\r\nx-forwarded-host: x:1\r\n\r\n";
        assert_eq!(rewritten(head).as_deref(), Some(expected));
    }

    #[test]
    fn everything_unusual_is_left_to_the_slow_path() {
        for head in [
            "POST / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
            "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@evil.com/x?y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close, x-a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(rewritten(head), None, "{head:?}");
        }
    }

    #[test]
    fn half_a_head_waits_and_an_endless_one_does_not() {
        let settings = settings();
        assert!(matches!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n", &settings), Parsed::Partial));
        let endless = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(70_000));
        assert!(matches!(parse(endless.as_bytes(), &settings), Parsed::Other));
    }
}
