//! A replica's answer: its head, and where its body ends. Pure.
//!
//! Bodies are passed on byte for byte, so all that is to be known is where they end. Whatever could be read in two
//! ways is refused ([`crate::proxy::framing`]).

use super::request::{line, status_line};
use crate::proxy::framing::{self, Ambiguous, Framing};

/// Headers for which there is always room; a head with more of them costs an allocation.
const USUAL_HEADERS: usize = 64;
/// Longest line of a chunk's size with its extensions, and of one trailer, in bytes.
const MAX_LINE_BYTES: u32 = 4_096;
/// Most bytes of all trailers together, as hyper has it on the other path.
const MAX_TRAILER_BYTES: u32 = 16 * 1_024;

/// How much of a body is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Until the replica closes the connection.
    UntilClose,
}

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes.
    pub length: usize,
    /// Its status.
    pub status: u16,
    /// What follows it.
    pub body: Body,
    /// Whether the connection can be used again afterwards.
    pub keep_alive: bool,
}

/// A head that cannot be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the replica's answer cannot be understood: {0}")]
pub struct Malformed(pub &'static str);

/// There are more headers than are passed on.
pub const TOO_MANY: Malformed = Malformed("too many headers");

/// Reads a head of at most `most` headers and writes it to `out` for the client, all but the empty line, so that more
/// headers can follow. `None` when it is not whole yet.
///
/// # Errors
/// When it is malformed, ambiguous, or has too many headers ([`TOO_MANY`]).
pub fn translate(
    bytes: &[u8],
    to_head: bool,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<Option<Head>, Malformed> {
    let mut usual = [httparse::EMPTY_HEADER; USUAL_HEADERS];
    match written(bytes, to_head, &mut usual[..most.min(USUAL_HEADERS)], out) {
        Err(TOO_MANY) if most > USUAL_HEADERS => {
            written(bytes, to_head, &mut vec![httparse::EMPTY_HEADER; most], out)
        }
        outcome => outcome,
    }
}

fn written<'a>(
    bytes: &'a [u8],
    to_head: bool,
    space: &mut [httparse::Header<'a>],
    out: &mut Vec<u8>,
) -> Result<Option<Head>, Malformed> {
    let mut response = httparse::Response::new(space);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY),
        Err(_) => return Err(Malformed("no valid head")),
    };
    // Three digits are all that the parser asks for; a client would take what begins with 0 for no answer at all.
    let status = response.code.filter(|status| *status >= 100).ok_or(Malformed("no status"))?;
    let persistent = response.version == Some(1);
    let named = named_by_connection(response.headers);
    let mut facts = Facts { keep_alive: persistent, http11: persistent, ..Facts::default() };
    // Known before the first line is written: a length that does not count is not passed on.
    let coded = response.headers.iter().any(|header| header.name.eq_ignore_ascii_case("transfer-encoding"));
    let begin = out.len();
    status_line(out, status, response.reason.unwrap_or_default());
    for header in response.headers.iter() {
        let kept = facts.learn(header.name, header.value)?;
        let sizes = header.name.eq_ignore_ascii_case("content-length");
        // A 204 has no body, whatever it says (RFC 9110, 8.6).
        let kept = kept && !((status == 204 || coded) && sizes);
        if kept && !named.iter().any(|name| name.eq_ignore_ascii_case(header.name)) {
            line(out, header.name, if sizes { framing::one(header.value) } else { header.value });
        }
    }
    if (100..200).contains(&status) {
        out.truncate(begin);
        return Ok(Some(Head { length, status, body: Body::Length(0), keep_alive: facts.keep_alive }));
    }
    let body = facts.body(status, to_head);
    if matches!(body, Body::Chunked(_)) || (facts.framing.chunked && to_head) {
        line(out, "transfer-encoding", b"chunked");
    }
    let keep_alive = facts.keep_alive && body != Body::UntilClose && !facts.framing.is_double();
    Ok(Some(Head { length, status, body, keep_alive }))
}

/// Headers that `Connection` names beyond the usual words: for the next hop only.
fn named_by_connection<'a>(headers: &[httparse::Header<'a>]) -> Vec<&'a str> {
    let connection = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let values = connection.filter_map(|header| std::str::from_utf8(header.value).ok());
    let tokens = values.flat_map(|value| value.split(',')).map(str::trim);
    tokens
        .filter(|token| {
            !["", "close", "keep-alive", "content-length"].iter().any(|it| token.eq_ignore_ascii_case(it))
        })
        .collect()
}

#[derive(Default)]
struct Facts {
    framing: Framing,
    keep_alive: bool,
    http11: bool,
}

impl From<Ambiguous> for Malformed {
    fn from(why: Ambiguous) -> Self {
        Self(why)
    }
}

impl Facts {
    /// Takes a header into account; false for those that end here.
    fn learn(&mut self, name: &str, value: &[u8]) -> Result<bool, Malformed> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            10 if is("connection") => {
                let text = String::from_utf8_lossy(value);
                let has = |word: &str| text.split(',').any(|token| token.trim().eq_ignore_ascii_case(word));
                if has("close") {
                    self.keep_alive = false;
                }
                return Ok(false);
            }
            14 if is("content-length") => return Ok(self.framing.length(value)?),
            17 if is("transfer-encoding") => {
                self.framing.coding(value, self.http11)?;
                return Ok(false);
            }
            2 if is("te") => return Ok(false),
            7 if is("upgrade") => return Ok(false),
            10 if is("keep-alive") => return Ok(false),
            16 if is("proxy-connection") => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    /// RFC 9112, 6.3.
    fn body(&self, status: u16, to_head: bool) -> Body {
        if to_head || (100..200).contains(&status) || status == 204 || status == 304 {
            return Body::Length(0);
        }
        match (self.framing.chunked, self.framing.length) {
            (true, _) => Body::Chunked(Chunks::default()),
            (false, Some(length)) => Body::Length(length),
            (false, None) => Body::UntilClose,
        }
    }
}

impl Body {
    /// Takes the next bytes into account: how many of them belong to the body, and whether it ends with them.
    ///
    /// # Errors
    /// When chunks are malformed.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= u64::try_from(taken).unwrap_or(u64::MAX);
                Ok((taken, *left == 0))
            }
            Self::Chunked(chunks) => chunks.advance(bytes),
            Self::UntilClose => Ok((bytes.len(), false)),
        }
    }
}

/// Where in a chunked body the next byte is (RFC 9112, 7.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes left of the chunk, or its size while that is read.
    left: u64,
    /// Bytes of the line so far.
    line: u32,
    /// Bytes of all trailers so far.
    trailers: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a trailer line.
    Trailer,
    InTrailer,
    TrailerEnd,
    End,
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::End {
            if self.state == State::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= u64::try_from(taken).unwrap_or(u64::MAX);
                at += taken;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
            } else {
                self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok((at, self.state == State::End))
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        const BAD: Malformed = Malformed("a chunk that is none");
        self.line += 1;
        if self.line > MAX_LINE_BYTES {
            return Err(Malformed("a line of a chunk is too long"));
        }
        if matches!(self.state, State::Trailer | State::InTrailer) {
            self.trailers += 1;
            if self.trailers > MAX_TRAILER_BYTES {
                return Err(Malformed("the trailers are too long"));
            }
        }
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.line <= 15 => {
                let digit = char::from(byte).to_digit(16).ok_or(BAD)?;
                self.left = self.left * 16 + u64::from(digit);
                State::Size
            }
            (State::Size, b';' | b' ' | b'\t') if self.line > 1 => State::Extension,
            (State::Size, b'\r') if self.line > 1 => State::SizeEnd,
            (State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, b'\n') => return Err(BAD),
            (State::Extension, _) => State::Extension,
            (State::SizeEnd, b'\n') => {
                self.line = 0;
                if self.left == 0 { State::Trailer } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size
            }
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::Trailer | State::InTrailer, b'\n') => {
                if self.state == State::Trailer {
                    return Err(BAD);
                }
                self.line = 0;
                State::Trailer
            }
            (State::Trailer | State::InTrailer, _) => State::InTrailer,
            (State::TrailerEnd, b'\n') => State::End,
            _ => return Err(BAD),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert_eq, proptest};

    use super::*;

    fn read(head: &str, to_head: bool) -> Result<Option<(Head, String)>, Malformed> {
        let mut out = Vec::new();
        let head = translate(head.as_bytes(), to_head, 256, &mut out)?;
        Ok(head.map(|head| (head, String::from_utf8(out).expect("text"))))
    }

    #[test]
    fn a_head_is_written_without_what_is_for_this_hop_only() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n\
            Keep-Alive: timeout=5\r\nA: b\r\n\r\nabc";
        let (head, out) = read(text, false).expect("valid").expect("whole");
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n");
        assert_eq!(head.body, Body::Length(3));
        assert!(head.keep_alive && head.length == text.len() - 3);
    }

    #[test]
    fn where_a_body_ends_follows_the_rfc() {
        let body = |text: &str, to_head| {
            read(text, to_head).map(|it| it.map(|(head, _)| (head.body, head.keep_alive)))
        };
        let none = Ok(Some((Body::Length(0), true)));
        assert_eq!(body("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", false), none);
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true), none);
        let close = Ok(Some((Body::UntilClose, false)));
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", false), close);
        let old = Ok(Some((Body::Length(5), false)));
        assert_eq!(body("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false), old);
        assert_eq!(body("HTTP/1.1 200 OK\r\nConte", false), Ok(None));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for head in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Content-Length: 5, 6",
            "Content-Length:",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            assert!(read(&text, false).is_err(), "{head}");
        }
    }

    #[test]
    fn chunks_count_where_there_is_a_length_too_and_the_connection_is_not_kept() {
        for lines in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\nContent-Length: 5",
        ] {
            let (head, out) =
                read(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n"), false).expect("valid").expect("whole");
            assert_eq!((head.body, head.keep_alive), (Body::Chunked(Chunks::default()), false));
            assert_eq!(out, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n");
        }
        for twice in ["Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5, 5"] {
            let text = format!("HTTP/1.1 200 OK\r\n{twice}\r\n\r\n");
            let (head, out) = read(&text, false).expect("valid").expect("whole");
            assert_eq!((head.body, &*out), (Body::Length(5), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"));
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false).is_err());
    }

    #[test]
    fn a_status_that_clients_do_not_take_is_refused() {
        for status in ["000", "099", "20", "2000"] {
            let text = format!("HTTP/1.1 {status} OK\r\nContent-Length: 0\r\n\r\n");
            assert!(read(&text, false).is_err(), "{status}");
        }
    }

    #[test]
    fn many_headers_pass_and_too_many_are_told_apart_from_nonsense() {
        let many = |count: usize| {
            let cookies: String = (0..count).map(|n| format!("Set-Cookie: c{n}=1\r\n")).collect();
            format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: 0\r\n\r\n")
        };
        let (_, out) = read(&many(200), false).expect("valid").expect("whole");
        assert_eq!(out.matches("Set-Cookie").count(), 200);
        assert_eq!(read(&many(300), false), Err(TOO_MANY));
    }

    #[test]
    fn trailers_have_an_end() {
        let mut chunks = Body::Chunked(Chunks::default());
        chunks.advance(b"0\r\n").expect("the last chunk");
        let sent = (0..100_000).take_while(|_| chunks.advance(b"a: b\r\n").is_ok()).count();
        assert!((1_000..4_000).contains(&sent), "{sent} trailers");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in
            ["\r\n", "g\r\n", "3\nabc\r\n", "3\r\nabcd\r\n", "fffffffffffffffff\r\n", "0\r\n\n", "-1\r\n"]
        {
            let mut chunks = Body::Chunked(Chunks::default());
            assert!(chunks.advance(body.as_bytes()).is_err(), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn the_end_of_chunks_is_found_wherever_they_are_cut(
            sizes in prop::collection::vec(1_usize..300, 0..10), cut in 1_usize..50, trailer: bool,
        ) {
            let mut text = String::new();
            for size in sizes {
                text += &format!("{size:x};ext=\"1\"\r\n{}\r\n", "x".repeat(size));
            }
            text += "0\r\n";
            text += if trailer { "a: b\r\n\r\n" } else { "\r\n" };
            let whole = text.len();
            text += "HTTP/1.1 200 OK";
            let mut body = Body::Chunked(Chunks::default());
            let (mut taken, mut ended) = (0, false);
            for piece in text.as_bytes().chunks(cut) {
                if ended { break; }
                let (count, end) = body.advance(piece).expect("valid");
                taken += count;
                ended = end;
            }
            prop_assert_eq!((taken, ended), (whole, true));
        }
    }
}
