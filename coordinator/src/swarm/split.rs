//! Finds the objects of a JSON list while its text arrives, so that never more than one of them is held: the tasks of a
//! large swarm are tens of megabytes.

/// Longest single object, in bytes. Swarm itself takes no spec of more than 4 MiB.
const MAX_OBJECT_BYTES: usize = 8 << 20;

/// Why a text is no list of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoList {
    /// Something stands where an object, a comma or the end should.
    #[error("not a list of objects")]
    Malformed,
    /// It ended too early.
    #[error("the list is cut off")]
    CutOff,
    /// One object is longer than any that Swarm can hold.
    #[error("one object is longer than {MAX_OBJECT_BYTES} bytes")]
    TooLong,
}

/// Where in the text we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the list.
    Start,
    /// This many bytes into `null`, which is an empty list to Go.
    Null(usize),
    /// Behind the opening bracket.
    First,
    /// Inside an object.
    Object,
    /// Behind an object.
    Behind,
    /// Behind a comma.
    Next,
    /// Behind the list.
    End,
}

/// A list whose text arrives in pieces.
#[derive(Debug)]
pub(super) struct Objects {
    place: Place,
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// The beginning of an object whose end has not arrived.
    held: Vec<u8>,
}

impl Objects {
    pub fn new() -> Self {
        Self { place: Place::Start, depth: 0, in_text: false, escaped: false, held: Vec::new() }
    }

    /// Takes in the next piece; `take` gets each object whose end is in it.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), NoList> {
        let mut begin = 0;
        for (at, byte) in bytes.iter().copied().enumerate() {
            if self.place != Place::Object {
                self.outside(byte)?;
                begin = at;
                continue;
            }
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.place = Place::Behind;
                        self.complete(&bytes[begin..=at], &mut take)?;
                    }
                }
                _ => {}
            }
        }
        if self.place == Place::Object { self.hold(&bytes[begin..]) } else { Ok(()) }
    }

    /// The text is at its end.
    pub fn end(&self) -> Result<(), NoList> {
        if self.place == Place::End { Ok(()) } else { Err(NoList::CutOff) }
    }

    fn outside(&mut self, byte: u8) -> Result<(), NoList> {
        if byte.is_ascii_whitespace() && !matches!(self.place, Place::Null(_)) {
            return Ok(());
        }
        self.place = match (self.place, byte) {
            (Place::Start, b'[') => Place::First,
            (Place::Start, b'n') => Place::Null(1),
            (Place::Null(3), b'l') => Place::End,
            (Place::Null(known), _) if b"null"[known] == byte => Place::Null(known + 1),
            (Place::First | Place::Next, b'{') => {
                self.depth = 1;
                Place::Object
            }
            (Place::First | Place::Behind, b']') => Place::End,
            (Place::Behind, b',') => Place::Next,
            _ => return Err(NoList::Malformed),
        };
        Ok(())
    }

    fn complete(&mut self, text: &[u8], take: &mut impl FnMut(&[u8])) -> Result<(), NoList> {
        // Nearly always the whole object is in one piece, and nothing is copied.
        if self.held.is_empty() {
            take(text);
            return Ok(());
        }
        self.hold(text)?;
        take(&self.held);
        self.held.clear();
        Ok(())
    }

    fn hold(&mut self, text: &[u8]) -> Result<(), NoList> {
        if self.held.len() + text.len() > MAX_OBJECT_BYTES {
            return Err(NoList::TooLong);
        }
        self.held.extend_from_slice(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The objects of a text that arrives in pieces of this many bytes.
    fn objects(text: &[u8], piece: usize) -> Result<Vec<Value>, NoList> {
        let (mut list, mut found) = (Objects::new(), Vec::new());
        for piece in text.chunks(piece) {
            list.push(piece, |text| found.push(serde_json::from_slice(text).expect("an object")))?;
        }
        list.end().map(|()| found)
    }

    #[test]
    fn the_same_objects_whatever_the_pieces() {
        let wanted = vec![json!({"a": "}],\"{\\"}), json!({}), json!({"b": [[{"c": "\u{00e9}\n"}], 1]})];
        for text in
            [serde_json::to_vec(&wanted).expect("json"), serde_json::to_vec_pretty(&wanted).expect("json")]
        {
            for piece in 1..=text.len() {
                assert_eq!(objects(&text, piece).as_ref(), Ok(&wanted), "pieces of {piece}");
            }
        }
        assert_eq!(objects(b" [ ] ", 1), Ok(vec![]));
        assert_eq!(objects(b"null\n", 2), Err(NoList::Malformed).or(objects(b"null", 2)));
        assert_eq!(objects(b"null", 3), Ok(vec![]));
    }

    #[test]
    fn what_is_no_whole_list_of_objects_is_refused() {
        for cut in [&b""[..], b"[", b"[{", b"[{}", b"[{},", b"nul", b"[{\"a\":\"]}"] {
            assert_eq!(objects(cut, 1), Err(NoList::CutOff), "{cut:?}");
        }
        for wrong in [&b"{}"[..], b"[1]", b"[{}{}]", b"[{},]", b"[{}]x", b"nil", b"[,]", b"[[]]"] {
            assert_eq!(objects(wrong, 1), Err(NoList::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn an_endless_object_is_given_up() {
        let mut list = Objects::new();
        list.push(b"[{\"a\":\"", |_| {}).expect("a beginning");
        let more = vec![b'x'; 1 << 20];
        let given_up = (0..9).find_map(|_| list.push(&more, |_| {}).err());
        assert_eq!(given_up, Some(NoList::TooLong));
    }
}
