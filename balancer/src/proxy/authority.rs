//! What a request may name as its host: a name or an address, and perhaps a port. Pure, and the same on both paths.

/// Longest host with its port, in bytes: a name has at most 253 (RFC 1035).
const MAX_BYTES: usize = 253 + ":65535".len();

/// Whether `host` is what RFC 9110 (7.2) allows, without what nobody needs: no user, no path, no escapes.
pub fn is_valid(host: &str) -> bool {
    if host.len() > MAX_BYTES {
        return false;
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or("none")) })
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    // A port may be empty (RFC 3986, 3.2.3).
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok_and(|_| !port.starts_with('+'));
    !name.is_empty() && name.bytes().all(in_name) && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn names_and_addresses_with_and_without_a_port() {
        for host in [
            "a",
            "shop_web",
            "www.Example.org.",
            "a:80",
            "a:",
            "192.0.2.1:8081",
            "[::1]",
            "[2001:db8::1]:443",
        ] {
            assert!(is_valid(host), "{host}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for host in [
            "",
            "a@evil.com",
            "a@evil.com/x?y",
            "a/b",
            "a?b",
            "a#b",
            "a b",
            "a\"b",
            "a\\b",
            "a%2fb",
            "*",
            "a:b",
            "a:99999",
            "a:+1",
            "a:1:2",
            ":80",
            "[::1",
            "[::1]x",
            "[x]",
            "\u{e9}",
        ] {
            assert!(!is_valid(host), "{host}");
        }
        assert!(!is_valid(&"a".repeat(300)));
    }
}
