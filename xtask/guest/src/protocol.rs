//! Frames between xtask and a node's agent: one byte of kind, four of length (big endian), then the payload.
//!
//! One connection carries one request. Not JSON, so that the guest needs no dependencies; not the Docker API,
//! so that a node whose engine is dead can still be asked why.

use std::io::{self, Read, Write};

/// Largest payload, in bytes; longer frames are refused on both sides.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the node: run this, arguments separated by NUL.
    Run,
    /// To the node: write a file; payload is the mode in octal, NUL, the path. [`Kind::Data`] follows.
    Copy,
    /// To the node: standard input or file content; an empty one ends it.
    Data,
    /// From the node: standard output.
    Stdout,
    /// From the node: standard error.
    Stderr,
    /// From the node: finished; payload is the exit status as text (128 + signal where a signal ended it).
    Exit,
    /// From the node: the request failed; payload says why.
    Error,
}

impl Kind {
    const ALL: [(Self, u8); 7] = [
        (Self::Run, 1),
        (Self::Copy, 2),
        (Self::Data, 3),
        (Self::Stdout, 11),
        (Self::Stderr, 12),
        (Self::Exit, 13),
        (Self::Error, 14),
    ];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, code)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == code).map(|(kind, _)| *kind)
    }
}

/// Writes one frame in one write.
///
/// # Errors
/// Where the payload is longer than [`MAX_PAYLOAD`], or as the writer does.
pub fn write_frame(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
    let Some(length) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame payload over 1 MiB"));
    };
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind.code());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)?;
    out.flush()
}

/// Reads one frame; `None` where the stream ended between frames.
///
/// # Errors
/// An unknown kind, a payload over [`MAX_PAYLOAD`], a stream that ends within a frame, or as the reader does.
pub fn read_frame(input: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut first = [0_u8; 1];
    if read_some(input, &mut first)? == 0 {
        return Ok(None);
    }
    let kind = Kind::from_code(first[0]).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("unknown frame kind {}", first[0]))
    })?;
    let mut length = [0_u8; 4];
    input.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes, over 1 MiB"),
        ));
    }
    let mut payload = vec![0; length];
    input.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Joins words with NUL, as [`Kind::Run`] carries them. An argument cannot contain NUL on Linux.
pub fn join(words: &[String]) -> Vec<u8> {
    words.join("\0").into_bytes()
}

/// Splits what [`join`] joined; an empty payload is no words.
pub fn split(payload: &[u8]) -> Vec<String> {
    if payload.is_empty() {
        return Vec::new();
    }
    payload.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_sent() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Run, b"a\0b").expect("a vector takes everything");
        write_frame(&mut wire, Kind::Data, b"").expect("a vector takes everything");
        let mut input = wire.as_slice();
        assert_eq!(read_frame(&mut input).expect("valid"), Some((Kind::Run, b"a\0b".to_vec())));
        assert_eq!(read_frame(&mut input).expect("valid"), Some((Kind::Data, Vec::new())));
        assert_eq!(read_frame(&mut input).expect("end"), None);
    }

    #[test]
    fn bad_frames_are_refused() {
        assert!(read_frame(&mut [99_u8, 0, 0, 0, 0].as_slice()).is_err(), "unknown kind");
        assert!(read_frame(&mut [1_u8, 0xff, 0, 0, 0].as_slice()).is_err(), "oversized");
        assert!(read_frame(&mut [1_u8, 0, 0, 0, 9, 1].as_slice()).is_err(), "truncated");
        assert!(write_frame(&mut Vec::new(), Kind::Data, &vec![0; MAX_PAYLOAD + 1]).is_err(), "oversized");
    }

    #[test]
    fn words_with_spaces_and_empty_words_survive() {
        let words = ["sh".to_owned(), "-c".to_owned(), "echo 'a b'".to_owned(), String::new()];
        assert_eq!(split(&join(&words)), words);
        assert!(split(b"").is_empty());
    }
}
