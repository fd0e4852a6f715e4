//! A program run in a container through the engine, with its input and output as a stream of ours.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BytesMut};
use http::Method;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{Engine, connect::AnyStream};
use crate::failure::{Failure, Outcome};

/// What is kept of what the program says about its errors, in bytes.
const MAX_WORDS: usize = 4 * 1024;
/// What is read ahead, in bytes.
const BUFFER: usize = 64 * 1024;
/// Head of each piece: whether output or errors, three zeros, its length.
const HEAD: usize = 8;
const ERRORS: u8 = 2;

/// A program that runs in a container.
#[derive(Debug)]
pub struct Exec {
    id: String,
    words: Arc<Mutex<String>>,
}

impl Exec {
    /// Starts a program; its input and output are the stream.
    ///
    /// # Errors
    /// When the engine does not start it.
    pub async fn start(engine: &Engine, container: &str, command: &[&str]) -> Outcome<(Self, AnyStream)> {
        let wanted = json!({
            "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": false, "Cmd": command,
        });
        let made = engine.call(Method::POST, &format!("/containers/{container}/exec"), Some(&wanted)).await?;
        let id =
            made["Id"].as_str().ok_or_else(|| Failure::failed("the engine gave the exec no ID"))?.to_owned();
        let path = format!("/v{}/exec/{id}/start", engine.version);
        let body = json!({"Detach": false, "Tty": false}).to_string();
        let upgraded = engine.sender().await?.upgrade(&path, body.into()).await;
        let upgraded =
            upgraded.map_err(|why| Failure::failed(format!("{} does not run: {why}", command.join(" "))))?;
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let words = Arc::<Mutex<String>>::default();
        tokio::spawn(carry(upgraded, theirs, Arc::clone(&words)));
        Ok((Self { id, words }, Box::new(ours)))
    }

    /// What it said about its errors, and its exit code where it has ended.
    pub async fn ended(&self, engine: &Engine) -> (String, Option<i64>) {
        let state = engine.get(&format!("/exec/{}/json", self.id)).await.unwrap_or(Value::Null);
        let code = state["ExitCode"].as_i64().filter(|_| state["Running"] == Value::Bool(false));
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned();
        (words, code)
    }
}

/// Input goes as it is; output comes in pieces with heads.
async fn carry(upgraded: Upgraded, stream: DuplexStream, words: Arc<Mutex<String>>) {
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    let (mut input, mut output) = tokio::io::split(stream);
    let inwards = async {
        let _ = tokio::io::copy(&mut input, &mut to).await;
        let _ = to.shutdown().await;
    };
    let outwards = async {
        let mut buffer = BytesMut::with_capacity(BUFFER);
        loop {
            while let Some((kind, piece)) = take_piece(&mut buffer) {
                if kind == ERRORS {
                    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
                    if words.len() < MAX_WORDS {
                        words.push_str(&String::from_utf8_lossy(&piece));
                    }
                } else if output.write_all(&piece).await.is_err() {
                    return;
                }
            }
            if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
                break;
            }
        }
        let _ = output.shutdown().await;
    };
    // When the program is gone nobody reads what is still written.
    tokio::select! {
        () = outwards => {}
        () = async { inwards.await; std::future::pending().await } => {}
    }
}

/// A piece that is there, or what is there of it: pieces need not be whole to be passed on.
fn take_piece(buffer: &mut BytesMut) -> Option<(u8, BytesMut)> {
    let head: [u8; HEAD] = buffer.get(..HEAD)?.try_into().ok()?;
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let length = usize::try_from(length).ok()?;
    let there = buffer.len() - HEAD;
    if there == 0 && length > 0 {
        return None;
    }
    buffer.advance(HEAD);
    if there >= length {
        return Some((head[0], buffer.split_to(length)));
    }
    // The rest gets a head of its own.
    let piece = buffer.split_to(there);
    let left = u32::try_from(length - there).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&[head[0], 0, 0, 0]);
    buffer.extend_from_slice(&left.to_be_bytes());
    Some((head[0], piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(kind: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend_from_slice(&u32::try_from(text.len()).expect("small").to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    #[test]
    fn output_and_errors_are_told_apart_wherever_the_stream_is_cut() {
        let whole = [piece(1, "HTTP/1.1 "), piece(2, "oh no"), piece(1, ""), piece(1, "200 OK")].concat();
        for cut in 1..whole.len() {
            let (mut out, mut errors) = (Vec::new(), Vec::new());
            let mut buffer = BytesMut::new();
            for part in whole.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some((kind, piece)) = take_piece(&mut buffer) {
                    if kind == ERRORS {
                        errors.extend_from_slice(&piece);
                    } else {
                        out.extend_from_slice(&piece);
                    }
                }
            }
            assert_eq!((&*out, &*errors), (&b"HTTP/1.1 200 OK"[..], &b"oh no"[..]), "cut every {cut}");
        }
    }
}
