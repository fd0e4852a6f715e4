//! What reads the heads that clients and replicas write, to be called with any bytes at all: the fuzz targets in `fuzz/`
//! and the tests in `tests/heads.rs` do. Each function panics on a defect and answers nothing otherwise.
//!
//! A proxy's defects are not only crashes. What it writes must be what it read: one head stays one head, it ends where
//! it ended, and nobody behind it sees a header that frames a body where there is none.

use clap::Parser as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, request::Parts};
use swarmguard_common::labels::RouteLabels;

use crate::{
    proxy::{
        authority, exchange,
        fast::{
            request::{self, Parsed},
            response::{self, Body, Head},
        },
        framing,
        headers::{self, Client},
    },
    settings::Settings,
};

/// Headers that httparse, here the judge, has room for: those of a head and what the balancer adds.
const MAX_HEADERS: usize = 300;
/// Headers of an answer that are passed on.
const MOST_HEADERS: usize = 256;

/// A client's bytes, as the fast path reads them.
pub fn request_heads(data: &[u8]) {
    let settings = settings();
    let Parsed::Plain(plain) = request::parse(data, &settings) else { return };
    assert!(plain.length <= data.len(), "it ends where nothing was read");
    for cut in [plain.length / 3, plain.length / 2, plain.length.saturating_sub(1)] {
        let early = request::parse(&data[..cut], &settings);
        assert!(!matches!(early, Parsed::Plain(_)), "part of a head was taken for the whole");
    }
    let client = Client::new([192, 0, 2, 1].into(), false);
    let mut out = Vec::new();
    plain.write(&mut out, &client, &settings);
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut judge = httparse::Request::new(&mut space);
    let length = judge.parse(&out).expect("what was written is valid");
    assert_eq!(length, httparse::Status::Complete(out.len()), "one head, and nothing behind it");
    assert_eq!((judge.method, judge.path, judge.version), (Some(plain.method), Some(plain.target), Some(1)));
    assert_eq!(count(judge.headers, "host"), 1);
    for framing in ["content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"]
    {
        assert_eq!(count(judge.headers, framing), 0, "{framing} reached the replica");
    }
    let Parsed::Plain(again) = request::parse(&out, &settings) else {
        // With what was added there may be more headers than it has room for.
        return assert!(judge.headers.len() > request::MAX_HEADERS, "it would not be taken again");
    };
    let mut second = Vec::new();
    again.write(&mut second, &client, &settings);
    assert_eq!(out, second, "written anew once more it is the same");
}

/// A replica's bytes: whether the request was HEAD, where to cut the body, then head and body.
pub fn answers(data: &[u8]) {
    let [flags, cut, data @ ..] = data else { return };
    let to_head = flags & 1 != 0;
    let mut out = Vec::new();
    let Ok(Some(head)) = response::translate(data, to_head, MOST_HEADERS, &mut out) else { return };
    assert!(head.length <= data.len(), "it ends where nothing was read");
    if (100..200).contains(&head.status) {
        assert!(out.is_empty(), "an interim answer was passed on");
        return;
    }
    out.extend_from_slice(b"\r\n");
    head_for_the_client(&head, &out, to_head);
    body(&head, &data[head.length..], usize::from(*cut));
}

fn head_for_the_client(head: &Head, out: &[u8], to_head: bool) {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut judge = httparse::Response::new(&mut space);
    let length = judge.parse(out).expect("what was written is valid");
    assert_eq!(length, httparse::Status::Complete(out.len()), "one head, and nothing behind it");
    assert_eq!(judge.code, Some(head.status));
    let (lengths, codings) =
        (count(judge.headers, "content-length"), count(judge.headers, "transfer-encoding"));
    assert!(lengths + codings <= 1, "its end could be read in two ways");
    assert_eq!(count(judge.headers, "connection"), 0);
    match head.body {
        Body::Chunked(_) => assert_eq!(codings, 1),
        Body::UntilClose => assert!(lengths + codings == 0 && !head.keep_alive),
        Body::Length(length) if !to_head && !matches!(head.status, 204 | 304) => {
            let said = judge.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
            let said = said.and_then(|it| std::str::from_utf8(it.value).ok()?.parse().ok());
            assert_eq!(said, Some(length), "the client is told another length");
        }
        Body::Length(length) => assert_eq!(length, 0),
    }
}

/// However a body is cut into pieces, it ends at the same byte, or is refused.
fn body(head: &Head, bytes: &[u8], piece: usize) {
    let whole = head.body.clone().advance(bytes);
    let mut state = head.body.clone();
    let (mut taken, mut ended) = (0, false);
    for piece in bytes.chunks(piece.max(1)) {
        match state.advance(piece) {
            Ok((count, end)) => (taken, ended) = (taken + count, end),
            Err(_) => return assert!(whole.is_err(), "refused in pieces only"),
        }
        if ended {
            break;
        }
    }
    if !bytes.is_empty() {
        assert_eq!(whole, Ok((taken, ended)));
    }
}

/// An answer's head, as both paths judge it: they must find the same end of its body, or both refuse it.
pub fn framing(data: &[u8]) {
    let mut out = Vec::new();
    let fast = response::translate(data, false, MOST_HEADERS, &mut out);
    let mut space = vec![httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Response::new(&mut space);
    let Ok(httparse::Status::Complete(_)) = head.parse(data) else { return };
    let (Some(version), Some(status)) = (head.version, head.code.filter(|status| *status >= 200)) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for header in head.headers.iter() {
        let pair = (HeaderName::from_bytes(header.name.as_bytes()), HeaderValue::from_bytes(header.value));
        // hyper refuses the answer where it could not have either.
        let (Ok(name), Ok(value)) = pair else { return };
        headers.append(name, value);
    }
    match (fast, framing::settle(&mut headers, version == 1)) {
        (Ok(Some(fast)), Ok(spent)) => {
            let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
            let chunked = headers.contains_key(header::TRANSFER_ENCODING);
            assert!(lengths.len() + usize::from(chunked) <= 1, "it could be read in two ways");
            assert!(!spent || !fast.keep_alive, "a connection is used again that should not be");
            let said = lengths.first().map(|it| it.to_str().ok().and_then(|it| it.parse().ok()));
            match (fast.body, status) {
                (_, 204 | 304) => {}
                (Body::Chunked(_), _) => assert!(chunked),
                (Body::UntilClose, _) => assert!(!chunked && said.is_none()),
                (Body::Length(length), _) => assert_eq!(said, Some(Some(length))),
            }
        }
        (Err(_), Err(_)) => {}
        (fast, other) => panic!("one path takes {fast:?}, the other says {other:?}"),
    }
}

/// A head as an HTTP/2 client sends it, one `name value` a line, and what becomes of it for a replica of either version.
pub fn http2_heads(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for http2 in [false, true] {
        let Some(mut parts) = http2_parts(&text) else { return };
        let Ok(host) = headers::host(&parts.uri, &parts.headers, parts.version).map(str::to_owned) else {
            return;
        };
        assert!(authority::is_valid(&host) || host.is_empty(), "{host:?} is no host");
        let mut labels = RouteLabels::of_port(80);
        labels.http2 = http2;
        let client = Client::new([192, 0, 2, 1].into(), false);
        let upgrade = exchange::prepare(&mut parts, &client, &host, &labels, &settings());
        assert_eq!(upgrade, None, "HTTP/2 knows no upgrades");
        for gone in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::EXPECT] {
            assert!(!parts.headers.contains_key(&gone), "{gone} reached the replica");
        }
        assert_eq!(parts.headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(parts.headers.get("x-forwarded-for").map(HeaderValue::as_bytes), Some(&b"192.0.2.1"[..]));
        for name in parts.headers.keys() {
            assert_ne!(headers::claim(name.as_str()), headers::Claim::Twin, "{name} reached the replica");
        }
        let hosts: Vec<_> = parts.headers.get_all(header::HOST).iter().collect();
        if http2 {
            assert!(hosts.is_empty() && parts.version == Version::HTTP_2);
        } else {
            assert_eq!(hosts, [host.as_str()], "the replica is told another host");
            assert!(parts.uri.authority().is_none() && parts.version == Version::HTTP_11);
            let target = parts.uri.to_string();
            assert!(target == "*" || target.starts_with('/'), "{target:?}");
            assert!(target.bytes().all(|byte| byte > b' ' && byte != 0x7f), "{target:?} ends a request line");
        }
    }
}

/// What h2 would hand to hyper; `None` where it would refuse it.
fn http2_parts(text: &str) -> Option<Parts> {
    let mut request = Request::builder().version(Version::HTTP_2);
    let (mut path, mut authority) = ("/", None);
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        match name {
            ":method" => request = request.method(value),
            // RFC 9113, 8.3.1: not empty.
            ":path" if value.is_empty() => return None,
            ":path" => path = value,
            ":authority" => authority = Some(value),
            name if name.bytes().any(|byte| byte.is_ascii_uppercase()) => return None,
            // RFC 9113, 8.2.2: h2 refuses all but `te: trailers` itself.
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => {
                return None;
            }
            "te" if value != "trailers" => return None,
            name => request = request.header(name, value),
        }
    }
    let mut uri = Uri::builder().path_and_query(path);
    if let Some(authority) = authority {
        uri = uri.scheme("http").authority(authority);
    }
    Some(request.uri(uri.build().ok()?).body(()).ok()?.into_parts().0)
}

fn count(headers: &[httparse::Header<'_>], name: &str) -> usize {
    headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name)).count()
}

/// The defaults, made once: reading them costs more than a head does.
fn settings() -> Settings {
    thread_local!(static SETTINGS: Settings = Settings::parse_from(["swarmguard-balancer"]));
    SETTINGS.with(Clone::clone)
}
