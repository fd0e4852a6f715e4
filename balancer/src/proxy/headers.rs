//! What changes in a head on its way: hop-by-hop headers go, the client's address is added.

use std::{fmt::Write as _, net::IpAddr, rc::Rc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};

use super::{authority, seats::Seat};
use crate::settings::Forwarded;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where a request came from.
#[derive(Clone, Debug)]
pub struct Client {
    /// The peer's address.
    pub ip: IpAddr,
    /// The same, ready to be sent.
    pub ip_value: HeaderValue,
    /// Whether it came over TLS.
    pub secure: bool,
    /// Its place among the connections, held by all that comes of it.
    pub seat: Option<Rc<Seat>>,
}

impl Client {
    /// A client at `ip`; IPv4 addresses mapped into IPv6 are shown as IPv4.
    pub fn new(ip: IpAddr, secure: bool) -> Self {
        let ip = ip.to_canonical();
        let ip_value =
            HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { ip, ip_value, secure, seat: None }
    }

    /// The same with a place.
    pub fn with_seat(self, seat: Rc<Seat>) -> Self {
        Self { seat: Some(seat), ..self }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Which host a request is for; `Err` says what is wrong with it.
///
/// # Errors
/// When an HTTP/1.1 request has no or several `Host` headers, one that is no host, or a target with a user in it.
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap, version: Version) -> Result<&'a str, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one Host header");
    }
    let first =
        first.map(|value| value.to_str().map_err(|_| "a Host header that is not ASCII")).transpose()?;
    if first.is_some_and(|host| !host.is_empty() && !authority::is_valid(host)) {
        return Err("a Host header that is no host");
    }
    // RFC 9112, 3.2.2: the absolute form's authority counts, not Host.
    if let Some(authority) = uri.authority() {
        if !authority::is_valid(authority.as_str()) {
            return Err("a target whose host is none, or that names a user");
        }
        // RFC 9113, 8.3.1.
        if version == Version::HTTP_2
            && first.is_some_and(|host| !host.eq_ignore_ascii_case(authority.as_str()))
        {
            return Err("a Host header that says another host than :authority");
        }
        return Ok(authority.as_str());
    }
    match first {
        Some(host) => Ok(host),
        None if version == Version::HTTP_10 => Ok(""),
        None => Err("no Host header"),
    }
}

/// What a header claims that only a proxy can know, or pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing of the kind.
    None,
    /// Who the client is, or what it asked for: only a proxy that is trusted may say so.
    Forwarded,
    /// Another spelling of a name that means something to a proxy or frames the message. Servers in the manner of CGI fold
    /// it together with the right one, so nobody may say it.
    Twin,
}

/// Beside all that begins with `x-forward` or `x-original-`.
const FORWARDED: [&str; 24] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-proxyuser-ip",
    "x-rewrite-url",
    "x-http-host-override",
    "x-host",
    "x-scheme",
    "x-url-scheme",
    "x-envoy-external-address",
    "x-azure-clientip",
    "x-azure-socketip",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "fastly-client-ip",
    "client-ip",
    "remote-addr",
    "front-end-https",
    // Becomes HTTP_PROXY, by which programs choose their own proxy (CVE-2016-5385).
    "proxy",
];

/// Names that frame a message or concern one hop.
const FRAMING: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "upgrade",
    "trailer",
    "te",
    "expect",
];

/// Judges a header by its name, in any case.
pub fn claim(name: &str) -> Claim {
    let bytes = name.as_bytes();
    let twin = bytes.contains(&b'_');
    // Most headers end here.
    let likely =
        bytes.first().is_some_and(|first| matches!(first | 0x20, b'x' | b'f' | b't' | b'c' | b'r' | b'p'));
    if !likely && !twin {
        return Claim::None;
    }
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let folds_to = |known: &[u8]| bytes.iter().zip(known).all(|(byte, known)| fold(*byte) == *known);
    let is = |known: &&str| known.len() == bytes.len() && folds_to(known.as_bytes());
    let begins = |known: &str| bytes.len() >= known.len() && folds_to(known.as_bytes());
    let forwarded = begins("x-forward") || begins("x-original-") || FORWARDED.iter().any(&is);
    match (forwarded, twin) {
        (true, false) => Claim::Forwarded,
        (true, true) => Claim::Twin,
        (false, true) if FRAMING.iter().any(is) => Claim::Twin,
        (false, _) => Claim::None,
    }
}

/// Takes out what a client says and only a proxy may say; with `trust`, in other spellings only.
pub fn drop_claims(headers: &mut HeaderMap, trust: bool) {
    let unwanted = |name: &&HeaderName| match claim(name.as_str()) {
        Claim::None => false,
        Claim::Forwarded => !trust,
        Claim::Twin => true,
    };
    let unwanted: Vec<HeaderName> = headers.keys().filter(unwanted).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// Takes hop-by-hop headers out; answers the protocol that an upgrade asks for, if it is one of `upgrades`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrades: &[String]) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        let wants = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
        if wants && !upgrades.is_empty() {
            let allowed = |value: &&HeaderValue| {
                upgrades.iter().any(|known| value.as_bytes().eq_ignore_ascii_case(known.as_bytes()))
            };
            upgrade = headers.get(header::UPGRADE).filter(allowed).cloned();
        }
        let named: Vec<HeaderName> = connection_tokens(headers)
            .filter_map(|token| HeaderName::try_from(token).ok())
            // Naming Host or Content-Length would change what the request is.
            .filter(|name| {
                !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING)
            })
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [&header::UPGRADE, &header::TRANSFER_ENCODING, &header::TE, &KEEP_ALIVE, &PROXY_CONNECTION] {
        headers.remove(name);
    }
    upgrade
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Puts the headers of an upgrade back.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Tells the replica who asked, for which host and by which scheme.
pub fn forward(headers: &mut HeaderMap, client: &Client, host: &str, style: Forwarded, trust: bool) {
    drop_claims(headers, trust);
    if style.x() {
        append(headers, FOR, &client.ip_value);
        headers.entry(PROTO).or_insert(HeaderValue::from_static(client.scheme()));
        if let Ok(host) = HeaderValue::from_str(host)
            && !host.is_empty()
        {
            headers.entry(HOST).or_insert(host);
        }
    }
    if style.rfc()
        && let Ok(value) = HeaderValue::try_from(forwarded(client, host))
    {
        append(headers, header::FORWARDED, &value);
    }
}

/// One element of `Forwarded` (RFC 7239).
pub fn forwarded(client: &Client, host: &str) -> String {
    let mut text = String::with_capacity(64);
    let _ = match client.ip {
        IpAddr::V4(ip) => write!(text, "for={ip}"),
        IpAddr::V6(ip) => write!(text, "for=\"[{ip}]\""),
    };
    let _ = write!(text, ";proto={}", client.scheme());
    if !host.is_empty() && !host.contains(['"', '\\']) {
        let _ = write!(text, ";host=\"{host}\"");
    }
    text
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let Some(before) = headers.get(&name) else {
        headers.insert(name, value.clone());
        return;
    };
    let joined = [before.as_bytes(), b", ", value.as_bytes()].concat();
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(name, joined);
    }
}

/// The target for an HTTP/1.1 replica: path and query only.
pub fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let target = Uri::from(path);
    // An empty path is one that says nothing, and would leave a request line without a target.
    if target.path().is_empty() { Uri::from_static("/") } else { target }
}

/// The target for an HTTP/2 replica: scheme, authority and path.
pub fn absolute_form(uri: &Uri, host: &str) -> Option<Uri> {
    let authority: Authority = if host.is_empty() { "localhost".parse().ok()? } else { host.parse().ok()? };
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder().scheme("http").authority(authority).path_and_query(path).build().ok()
}

/// Whether sending it twice does no more than sending it once (RFC 9110, 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hop_by_hop_headers_go_and_named_ones_with_them() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret"),
            ("connection", "content-length"),
            ("keep-alive", "5"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut headers, &websocket()), None);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn an_upgrade_is_recognised_only_with_its_connection_token() {
        let mut real = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut real, &websocket()), Some(HeaderValue::from_static("websocket")));
        let mut stray = map(&[("upgrade", "h2c")]);
        assert_eq!(strip_hop_by_hop(&mut stray, &websocket()), None);
        assert!(stray.is_empty());
        for other in ["h2c", "websocket, h2c", "WebSocketX"] {
            let mut headers = map(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", other)]);
            assert_eq!(strip_hop_by_hop(&mut headers, &websocket()), None, "{other}");
            assert!(headers.is_empty(), "{other} is not passed on");
        }
        let mut off = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut off, &[]), None);
    }

    fn websocket() -> Vec<String> {
        vec!["websocket".into()]
    }

    #[test]
    fn claims_are_known_in_every_spelling() {
        for name in [
            "X-Forwarded-For",
            "x-forwarded-port",
            "X-Forwarded-Prefix",
            "x-forwarded",
            "Forwarded",
            "X-Real-IP",
        ] {
            assert_eq!(claim(name), Claim::Forwarded, "{name}");
        }
        for name in [
            "True-Client-IP",
            "X-Original-URL",
            "X-Rewrite-Url",
            "CF-Connecting-IP",
            "Proxy",
            "x-forward-for",
        ] {
            assert_eq!(claim(name), Claim::Forwarded, "{name}");
        }
        for name in [
            "X_Forwarded_For",
            "x-forwarded_proto",
            "X_REAL_IP",
            "Content_Length",
            "Transfer_encoding",
            "te_",
        ] {
            let expected = if name == "te_" { Claim::None } else { Claim::Twin };
            assert_eq!(claim(name), expected, "{name}");
        }
        for name in
            ["accept", "cookie", "x-request-id", "content-length", "host", "x_custom", "x-for", "referer", ""]
        {
            assert_eq!(claim(name), Claim::None, "{name}");
        }
    }

    #[test]
    fn another_spelling_is_dropped_even_where_the_right_one_is_trusted() {
        let mut headers =
            map(&[("x_forwarded_for", "6.6.6.6"), ("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "7")]);
        drop_claims(&mut headers, true);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-forwarded-for", "x-real-ip"]);
        drop_claims(&mut headers, false);
        assert!(headers.is_empty());
    }

    #[test]
    fn what_a_stranger_says_about_itself_is_replaced() {
        let client = Client::new("::ffff:192.0.2.7".parse().expect("an address"), true);
        let said = map(&[("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=1.2.3.4")]);
        let mut headers = said.clone();
        forward(&mut headers, &client, "a.example:1", Forwarded::Both, false);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;proto=https;host=\"a.example:1\"");
        let mut headers = said;
        forward(&mut headers, &client, "a", Forwarded::X, true);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
    }

    #[test]
    fn the_host_must_be_there_once() {
        let uri = Uri::from_static("/x");
        assert_eq!(host(&uri, &map(&[("host", "a")]), Version::HTTP_11), Ok("a"));
        assert!(host(&uri, &map(&[]), Version::HTTP_11).is_err());
        assert!(host(&uri, &map(&[("host", "a"), ("host", "b")]), Version::HTTP_11).is_err());
        let absolute = Uri::from_static("http://b/x");
        assert_eq!(host(&absolute, &map(&[("host", "a")]), Version::HTTP_11), Ok("b"));
        assert!(host(&absolute, &map(&[("host", "a")]), Version::HTTP_2).is_err());
        assert_eq!(host(&uri, &map(&[("host", "")]), Version::HTTP_11), Ok(""));
        for bad in ["a@evil.com/x?y", "a@evil.com", "a/b"] {
            assert!(host(&uri, &map(&[("host", bad)]), Version::HTTP_11).is_err(), "{bad}");
        }
        let user = Uri::from_static("http://user:secret@b/x");
        assert!(host(&user, &map(&[("host", "b")]), Version::HTTP_11).is_err());
    }
}
