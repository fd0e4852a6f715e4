//! Sticky sessions: a cookie that names a replica by a hash, so that clients learn neither task nor address.

use http::{HeaderMap, HeaderValue, header};

/// The replica that the client's cookie names, if it has one.
pub fn read(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get_all(header::COOKIE).iter().find_map(|value| read_bytes(value.as_bytes(), name))
}

/// The same from the value of one `Cookie` header.
pub fn read_bytes(cookies: &[u8], name: &str) -> Option<u64> {
    let cookies = std::str::from_utf8(cookies).ok()?;
    let value = cookies.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then_some(value.trim())
    })?;
    if value.len() == 16 { u64::from_str_radix(value, 16).ok() } else { None }
}

/// The `Set-Cookie` value that keeps a client at the replica `key`.
pub fn write(name: &str, key: u64, secure: bool) -> Option<HeaderValue> {
    HeaderValue::try_from(text(name, key, secure)).ok()
}

/// The same as text.
pub fn text(name: &str, key: u64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={key:016x}; Path=/; HttpOnly; SameSite=Lax{secure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_among_other_cookies() {
        let cookie = text("sg_1", 0xab, true);
        let pair = cookie.split(';').next().expect("a pair");
        assert_eq!(read_bytes(format!("a=b; {pair}; c").as_bytes(), "sg_1"), Some(0xab));
        assert_eq!(read_bytes(b"sg_1=zz; sg_2=00000000000000ab", "sg_1"), None);
        assert_eq!(read_bytes(b"\xff", "sg_1"), None);
    }
}
