//! Answers that the balancer gives itself: errors, and its own paths.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use swarmguard_runtime::clock;

use super::Global;

/// An error in plain text.
pub fn error<B>(status: StatusCode, text: &str, body: impl FnOnce(Bytes) -> B) -> Response<B> {
    let mut response = Response::new(body(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// `/metrics` and `/healthz`; `None` for any other path.
pub fn own<B>(
    global: &Global,
    path: &str,
    headers: &HeaderMap,
    body: impl FnOnce(Bytes) -> B,
) -> Option<Response<B>> {
    let (status, kind, text) = match path {
        "/metrics" if wants_prometheus(headers) => (
            StatusCode::OK,
            swarmguard_runtime::exposition::CONTENT_TYPE,
            crate::scrape::text(global, clock::now()),
        ),
        "/metrics" => (StatusCode::OK, "application/json", global.stats.json(&global.table.load())),
        "/healthz" if *global.closing.borrow() => {
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "stopping\n".to_owned())
        }
        "/healthz" if !global.ready() => {
            let why = "no service is known, and no coordinator can be reached\n";
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", why.to_owned())
        }
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => return None,
    };
    let mut response = Response::new(body(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Some(response)
}

/// Prometheus names its formats in `Accept`; everyone else gets the JSON that was proposed.
fn wants_prometheus(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts
        .flat_map(|value| value.split(','))
        .map(|kind| kind.split(';').next().unwrap_or_default().trim())
        .find(|kind| matches!(*kind, "application/json" | "text/plain" | "application/openmetrics-text"))
        .is_some_and(|kind| kind != "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        wants_prometheus(&headers)
    }

    #[test]
    fn json_unless_prometheus_asks() {
        assert!(accepts("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*;q=0.1"));
        assert!(accepts("text/plain"));
        assert!(!accepts("*/*") && !accepts("application/json, text/plain"));
        assert!(!wants_prometheus(&HeaderMap::new()));
    }

    #[test]
    fn an_error_says_when_to_try_again() {
        let response = error(StatusCode::SERVICE_UNAVAILABLE, "no replica", |bytes| bytes);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.body(), "no replica\n");
    }
}
