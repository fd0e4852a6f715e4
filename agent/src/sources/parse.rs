//! Numbers out of kernel text, on bytes and without allocation. Whatever is not understood is `None`, never a panic.

/// A decimal number with nothing but white space around it; `None` when there is anything else or it exceeds 64 bits.
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii();
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The number behind `key` in lines of the form `key number`.
pub fn field(text: &[u8], key: &[u8]) -> Option<u64> {
    lines(text).find_map(|line| number(line.strip_prefix(key)?.strip_prefix(b" ")?))
}

/// The number behind `key=` in a line of the form `word key=number key=number`.
pub fn assigned(line: &[u8], key: &[u8]) -> Option<u64> {
    words(line).find_map(|word| number(word.strip_prefix(key)?.strip_prefix(b"=")?))
}

/// The lines of a text, without their ends.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// The words of a line; spaces and tabs part them.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_whole_or_not_at_all() {
        assert_eq!(number(b"  42\n"), Some(42));
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in [
            &b"18446744073709551616"[..],
            b"",
            b" ",
            b"-1",
            b"1 2",
            b"0x10",
            b"max",
            b"000000000000000000001",
        ] {
            assert_eq!(number(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = b"inactive_file_x 1\ninactive_file 2\nfile 3\n";
        assert_eq!(field(text, b"inactive_file"), Some(2));
        assert_eq!(field(text, b"file"), Some(3));
        assert_eq!(field(text, b"anon"), None);
        assert_eq!(assigned(b"some avg10=0.12 total=77", b"total"), Some(77));
        assert_eq!(assigned(b"some avg10=0.12", b"avg10"), None);
    }

    proptest! {
        #[test]
        fn every_number_reads_back(value: u64) {
            prop_assert_eq!(number(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>, key in proptest::collection::vec(any::<u8>(), 0..8)) {
            let _ = (number(&text), field(&text, &key), assigned(&text, &key));
        }
    }
}
