//! Where an answer's body ends, by RFC 9112, 6.3; the same for both paths. Pure.
//!
//! What could be read in two ways is refused: two different lengths, any transfer coding but `chunked`,
//! chunks in HTTP/1.0. A length beside chunks says nothing: the chunks count, the length is left out, and the connection
//! is not used again, because the replica may have meant the length.

use http::{HeaderMap, header};

/// What the headers of an answer say about its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// `Content-Length`.
    pub length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
}

/// Headers that cannot be passed on, in words.
pub type Ambiguous = &'static str;

impl Framing {
    /// Takes one `Content-Length` into account; false where it says what another one said before.
    ///
    /// # Errors
    /// When it is no length, or another one.
    pub fn length(&mut self, value: &[u8]) -> Result<bool, Ambiguous> {
        let first = self.length.is_none();
        // A list that says the same thing again says it once.
        for part in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let digits = !part.is_empty() && part.len() < 19 && part.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(part).ok().filter(|_| digits);
            let length = text.and_then(|text| text.parse().ok()).ok_or("no valid length")?;
            if self.length.replace(length).is_some_and(|before| before != length) {
                return Err("two lengths");
            }
        }
        Ok(first)
    }

    /// Takes one `Transfer-Encoding` into account.
    ///
    /// # Errors
    /// When it is not `chunked` alone, or not of HTTP/1.1.
    pub fn coding(&mut self, value: &[u8], http11: bool) -> Result<(), Ambiguous> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err("an unknown transfer coding");
        }
        if !http11 {
            return Err("chunks in HTTP/1.0");
        }
        self.chunked = true;
        Ok(())
    }

    /// Whether it says both, so that the length does not count and the connection is not to be used again.
    pub fn is_double(&self) -> bool {
        self.chunked && self.length.is_some()
    }
}

/// One of the lengths of a list that says the same thing several times.
pub fn one(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b',').next().unwrap_or(value).trim_ascii()
}

/// Makes the headers of an answer say one thing; true where the connection is not to be used again.
///
/// # Errors
/// When they could be read in two ways.
pub fn settle(headers: &mut HeaderMap, http11: bool) -> Result<bool, Ambiguous> {
    let mut framing = Framing::default();
    for coding in headers.get_all(header::TRANSFER_ENCODING) {
        framing.coding(coding.as_bytes(), http11)?;
    }
    let mut twice = false;
    for length in headers.get_all(header::CONTENT_LENGTH) {
        twice |= !framing.length(length.as_bytes())? || length.as_bytes().contains(&b',');
    }
    if framing.is_double() {
        headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = framing.length.filter(|_| twice) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(framing.is_double())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn settled(lines: &[(HeaderName, &str)], http11: bool) -> Result<(bool, usize), Ambiguous> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let last = settle(&mut headers, http11)?;
        Ok((last, headers.get_all(header::CONTENT_LENGTH).iter().count()))
    }

    #[test]
    fn chunks_count_and_a_length_beside_them_goes() {
        let (length, coding) = (header::CONTENT_LENGTH, header::TRANSFER_ENCODING);
        assert_eq!(settled(&[(length.clone(), "5"), (coding.clone(), "Chunked")], true), Ok((true, 0)));
        assert_eq!(settled(&[(coding.clone(), "chunked")], true), Ok((false, 0)));
        assert_eq!(settled(&[(length.clone(), "5"), (length.clone(), "5")], true), Ok((false, 1)));
        assert_eq!(settled(&[(length.clone(), "5, 5")], true), Ok((false, 1)));
        for (lines, http11) in [
            (vec![(length.clone(), "5"), (length.clone(), "6")], true),
            (vec![(length.clone(), "5, 6")], true),
            (vec![(length.clone(), "5,")], true),
            (vec![(length, "+5")], true),
            (vec![(coding.clone(), "gzip, chunked")], true),
            (vec![(coding.clone(), "chunked"), (coding.clone(), "chunked")], true),
            (vec![(coding, "chunked")], false),
        ] {
            assert!(settled(&lines, http11).is_err(), "{lines:?}");
        }
    }
}
