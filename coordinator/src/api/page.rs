//! The page for people: one document, one style sheet, a few modules, all of them part of the program. Nothing is fetched
//! from elsewhere, and the browser is told to refuse everything else, markup made from text included.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

use super::Api;

/// What the browser may do for this page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! files {
    ($($path:literal $kind:ident $name:literal),* $(,)?) => {
        [$(File { path: $path, kind: $kind, bytes: include_bytes!(concat!("../../page/", $name)) }),*]
    };
}

const FILES: [File; 12] = files![
    "/" HTML "index.html",
    "/page.css" CSS "page.css",
    "/favicon.svg" SVG "favicon.svg",
    "/page/main.js" SCRIPT "main.js",
    "/page/dom.js" SCRIPT "dom.js",
    "/page/api.js" SCRIPT "api.js",
    "/page/overview.js" SCRIPT "overview.js",
    "/page/heat.js" SCRIPT "heat.js",
    "/page/timeline.js" SCRIPT "timeline.js",
    "/page/migration.js" SCRIPT "migration.js",
    "/page/service.js" SCRIPT "service.js",
    "/page/balancer.js" SCRIPT "balancer.js",
];

/// Routes of all files.
pub(super) fn routes() -> Router<Api> {
    let mut router = Router::new();
    for file in FILES {
        router = router.route(file.path, get(move |headers: HeaderMap| async move { file.answer(&headers) }));
    }
    router
}

impl File {
    fn answer(self, asked: &HeaderMap) -> Response {
        let digest = Sha256::digest(self.bytes);
        let tag: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tag = HeaderValue::from_str(&format!("\"{tag}\"")).unwrap_or(HeaderValue::from_static("*"));
        let known = asked.get(header::IF_NONE_MATCH) == Some(&tag);
        let headers = [
            (header::ETAG, tag),
            // Asked for again each time, so that a newer coordinator's page is not mixed with an older one's.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::CONTENT_TYPE, HeaderValue::from_static(self.kind)),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        ];
        if known {
            (StatusCode::NOT_MODIFIED, headers).into_response()
        } else {
            (headers, self.bytes).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_asks_nobody_else_and_makes_no_markup_from_text() {
        let all: usize = FILES.iter().map(|file| file.bytes.len()).sum();
        assert!(all <= 80 * 1_024, "{all} bytes");
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).expect("text");
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "https://",
                "localStorage",
            ] {
                assert!(!text.contains(forbidden), "{} has {forbidden}", file.path);
            }
            assert!(!text.contains(" style=\""), "{}: the policy forbids styles in markup", file.path);
        }
    }

    #[test]
    fn every_module_that_is_imported_is_served() {
        let served: Vec<&str> = FILES.iter().map(|file| file.path).collect();
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            let text = std::str::from_utf8(file.bytes).expect("text");
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let name = line.split('\'').nth(1).expect("a module").trim_start_matches("./");
                assert!(served.contains(&format!("/page/{name}").as_str()), "{}: {name}", file.path);
            }
        }
    }
}
