//! What changes in a head on its way: hop-by-hop headers go, the client's address is added.

use std::{fmt::Write as _, net::IpAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};

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
}

impl Client {
    /// A client at `ip`; IPv4 addresses mapped into IPv6 are shown as IPv4.
    pub fn new(ip: IpAddr, secure: bool) -> Self {
        let ip = ip.to_canonical();
        let ip_value =
            HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { ip, ip_value, secure }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Which host a request is for; `Err` says what is wrong with it.
///
/// # Errors
/// When an HTTP/1.1 request has no or several `Host` headers, or one that is not text.
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap, version: Version) -> Result<&'a str, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one Host header");
    }
    // RFC 9112, 3.2.2: the absolute form's authority counts, not Host.
    if let Some(authority) = uri.authority() {
        return Ok(authority.as_str());
    }
    match first {
        Some(value) => value.to_str().map_err(|_| "a Host header that is not ASCII"),
        None if version == Version::HTTP_10 => Ok(""),
        None => Err("no Host header"),
    }
}

/// Takes hop-by-hop headers out; answers the protocol that an upgrade asks for, whose headers stay.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, may_upgrade: bool) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        let wants = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
        if wants && may_upgrade {
            upgrade = headers.get(header::UPGRADE).cloned();
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
    if !trust {
        for name in [&FOR, &PROTO, &HOST, &header::FORWARDED] {
            headers.remove(name);
        }
    }
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
    Uri::from(path)
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
        assert_eq!(strip_hop_by_hop(&mut headers, true), None);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn an_upgrade_is_recognised_only_with_its_connection_token() {
        let mut real = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut real, true), Some(HeaderValue::from_static("websocket")));
        let mut stray = map(&[("upgrade", "h2c")]);
        assert_eq!(strip_hop_by_hop(&mut stray, true), None);
        assert!(stray.is_empty());
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
    }
}
