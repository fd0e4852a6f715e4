//! What reads the heads that clients and replicas write, to be called with any bytes at all: the fuzz targets in `fuzz/`
//! and the tests in `tests/heads.rs` do. Each function panics on a defect and answers nothing otherwise.
//!
//! A proxy's defects are not only crashes. What it writes must be what it read: one head stays one head, it ends where
//! it ended, and nobody behind it sees a header that frames a body where there is none.

use clap::Parser as _;

use crate::{
    proxy::{
        fast::{
            request::{self, Parsed},
            response::{self, Body, Head},
        },
        headers::Client,
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

fn count(headers: &[httparse::Header<'_>], name: &str) -> usize {
    headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name)).count()
}

/// The defaults, made once: reading them costs more than a head does.
fn settings() -> Settings {
    thread_local!(static SETTINGS: Settings = Settings::parse_from(["swarmguard-balancer"]));
    SETTINGS.with(Clone::clone)
}
