//! One request: which service, which replica, there and back, and again elsewhere where that is safe.
//!
//! Sent again are: requests of which nothing was sent (no connection), and idempotent requests without a body that got
//! no answer or 502, 503, 504. Both within the service's retry budget. Nothing else is ever sent twice.

use std::{
    error::Error as _,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use swarmguard_runtime::clock;

use super::{
    NO_ANSWER, UNREACHABLE, answer,
    body::{AnswerBody, BodyError, Ended, RequestBody},
    headers::{self, Client},
    tunnel,
    upstream::{self, Http1, Use},
    worker::Worker,
};
use crate::{
    choose::{Choice, Refusal, Wish},
    lease::Lease,
    pick::Reason,
    replica::{Outcome, Replica},
    service::Service,
    stats::bump,
    sticky,
};

/// Replicas tried for one request, the first included.
const ATTEMPTS: usize = 3;

/// What a client is answered with.
pub type Answer = Response<AnswerBody<Guard>>;

/// The lease, and the connection that an answer comes over, until the answer has ended.
#[derive(Debug)]
pub struct Guard {
    lease: Lease,
    connection: Option<Http1>,
    worker: Rc<Worker>,
}

impl Ended for Guard {
    fn ended(self) {
        if let Some(connection) = self.connection {
            self.worker.keep(self.lease.replica(), connection);
        }
    }

    fn broken(self) {
        self.worker.note(self.lease.replica(), Outcome::Failed);
    }
}

/// A request on its way to a replica.
struct Outbound {
    parts: Parts,
    body: RequestBody,
    repeatable: bool,
}

/// Why a replica gave no answer.
enum Failure {
    /// Nothing was sent; here it is again.
    Unsent(Box<Outbound>, String),
    /// Something may have been sent.
    Broken(String),
    /// No answer in time.
    Timeout,
    /// The client broke off, or sent too much: not the replica's fault.
    Client(StatusCode, String),
}

struct Inbound<'a> {
    client: &'a Client,
    service: Arc<Service>,
    sticky: Option<u64>,
    /// The protocol that the client wants to change to, and its end of the connection.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

impl Worker {
    /// Answers one request; never fails, errors are answers.
    pub async fn answer(self: &Rc<Self>, client: &Client, request: Request<Incoming>) -> Answer {
        bump(&self.stats.requests);
        let path = request.uri().path();
        if self.global.settings.own_paths
            && let Some(own) = answer::own(&self.global, path, request.headers(), own_body)
        {
            return own;
        }
        self.route(client, request).await.unwrap_or_else(|refused| *refused)
    }

    async fn route(
        self: &Rc<Self>,
        client: &Client,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Box<Answer>> {
        let settings = &self.global.settings;
        if request.method() == Method::CONNECT {
            return Err(self.refuse_malformed(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here"));
        }
        let host = headers::host(request.uri(), request.headers(), request.version())
            .map_err(|why| self.refuse_malformed(StatusCode::BAD_REQUEST, why))?
            .to_owned();
        let service = self.find(&host, request.uri().path()).ok_or_else(|| {
            bump(&self.stats.refused_no_route);
            refusal(StatusCode::NOT_FOUND, "no service is balanced for this host and path")
        })?;
        service.shared.requests.fetch_add(1, Relaxed);
        service.shared.budget.deposit();
        if service.limit.as_ref().is_some_and(|limit| !limit.admit(clock::now())) {
            bump(&self.stats.refused_rate);
            service.shared.refused.fetch_add(1, Relaxed);
            return Err(refusal(StatusCode::TOO_MANY_REQUESTS, "too many requests for this service"));
        }
        let most = settings.max_body_bytes;
        if most > 0 && http_body::Body::size_hint(request.body()).lower() > most {
            return Err(self.refuse_malformed(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
        }
        let sticky =
            service.labels.sticky.then(|| sticky::read(request.headers(), &service.cookie)).flatten();
        let may_upgrade = request.version() == Version::HTTP_11 && !service.labels.http2;
        let on_upgrade = may_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let upgrade = prepare(&mut parts, client, &host, &service, settings);
        let body = RequestBody::new(body, most, settings.idle_timeout);
        let repeatable = body.is_empty() && upgrade.is_none() && headers::is_idempotent(&parts.method);
        let inbound = Inbound { client, service, sticky, upgrade: upgrade.zip(on_upgrade) };
        self.exchange(inbound, Outbound { parts, body, repeatable }).await
    }

    async fn exchange(
        self: &Rc<Self>,
        mut inbound: Inbound<'_>,
        outbound: Outbound,
    ) -> Result<Answer, Box<Answer>> {
        let mut tried: Vec<u64> = Vec::new();
        let mut next = Some(outbound);
        let mut last = None;
        while let Some(outbound) = next.take() {
            let wish = Wish { sticky: inbound.sticky, tried: &tried, repeatable: outbound.repeatable };
            let choice = match self.lease(&mut inbound.service, wish).await {
                Ok(choice) => choice,
                // Every replica was tried: what the last one answered says more than that there is none.
                Err(_) if last.is_some() => break,
                Err(why) => return Err(self.refuse(&inbound.service, why)),
            };
            let replica = Arc::clone(choice.lease.replica());
            let retries_left = tried.len() + 1 < ATTEMPTS;
            let spare = (retries_left && outbound.repeatable).then(|| outbound.again());
            match self.send(&replica, &inbound.service, outbound).await {
                Ok((response, connection)) => {
                    let failed = response.status().is_server_error();
                    let again = matches!(response.status().as_u16(), 502..=504);
                    if again && spare.is_some() && inbound.service.shared.budget.withdraw() {
                        self.retried(&inbound.service);
                        last = Some(Ok((response, connection, choice)));
                        next = spare;
                    } else {
                        debug_assert!(!failed || response.status().as_u16() >= 500);
                        return Ok(self.pass(inbound, response, connection, choice));
                    }
                }
                Err(Failure::Client(status, why)) => return Err(self.refuse_malformed(status, &why)),
                Err(failure) => {
                    let (spare, answer) = self.failed(&replica, failure, spare, retries_left);
                    last = Some(Err(answer));
                    if spare.is_some() && inbound.service.shared.budget.withdraw() {
                        self.retried(&inbound.service);
                        next = spare;
                    }
                }
            }
            tried.push(replica.key);
        }
        match last {
            Some(Ok((response, connection, choice))) => Ok(self.pass(inbound, response, connection, choice)),
            Some(Err(answer)) => {
                self.count_failed(answer.status());
                Err(answer)
            }
            None => Err(self.refuse(&inbound.service, Refusal::NoReplica)),
        }
    }

    fn retried(&self, service: &Service) {
        bump(&self.stats.retries);
        service.shared.retries.fetch_add(1, Relaxed);
    }

    /// What can be sent again after a failure, and what the client hears if nothing is.
    fn failed(
        &self,
        replica: &Replica,
        failure: Failure,
        spare: Option<Outbound>,
        retries_left: bool,
    ) -> (Option<Outbound>, Box<Answer>) {
        self.note(replica, Outcome::Failed);
        let (spare, status, why) = match failure {
            Failure::Unsent(outbound, why) => {
                (retries_left.then_some(*outbound), StatusCode::SERVICE_UNAVAILABLE, why)
            }
            Failure::Broken(why) => (spare, StatusCode::BAD_GATEWAY, why),
            // A replica that is slow once will not be joined by a second one that does the same work.
            Failure::Timeout | Failure::Client(..) => {
                (None, StatusCode::GATEWAY_TIMEOUT, "the replica did not answer in time".to_owned())
            }
        };
        tracing::debug!(task = %replica.task, address = %replica.address, why, "a replica failed");
        let text = if status == StatusCode::SERVICE_UNAVAILABLE { UNREACHABLE } else { NO_ANSWER };
        (spare, refusal(status, text))
    }

    /// Counts what a client hears after all attempts have failed.
    fn count_failed(&self, status: StatusCode) {
        bump(match status {
            StatusCode::SERVICE_UNAVAILABLE => &self.stats.unreachable,
            StatusCode::GATEWAY_TIMEOUT => &self.stats.gateway_timeout,
            _ => &self.stats.bad_gateway,
        });
    }

    /// A replica and a lease there; waits for room where all are full.
    async fn lease(&self, service: &mut Arc<Service>, wish: Wish<'_>) -> Result<Choice, Refusal> {
        match self.choose(service, wish) {
            Err(Refusal::Full) => {}
            other => return other,
        }
        let settings = &self.global.settings;
        let Some(waiter) = service.shared.queue(settings.queue_length) else { return Err(Refusal::Full) };
        let deadline = tokio::time::Instant::now() + settings.queue_timeout;
        loop {
            // A short wait at a time: a replica may also become ready, which returns no lease.
            let step = deadline.min(tokio::time::Instant::now() + Duration::from_millis(100));
            let woken = tokio::time::timeout_at(step, waiter.room()).await.is_ok();
            if let Some(newer) = self.find_named(&service.name) {
                *service = newer;
            }
            match self.choose(service, wish) {
                Err(Refusal::Full) if woken || step < deadline => {}
                other => return other,
            }
        }
    }

    async fn send(
        self: &Rc<Self>,
        replica: &Arc<Replica>,
        service: &Service,
        outbound: Outbound,
    ) -> Result<(Response<Incoming>, Option<Http1>), Failure> {
        let patience = service.labels.timeout;
        let started = clock::now();
        let sent = tokio::time::timeout(patience, async {
            if service.labels.http2 {
                self.send_http2(replica, outbound).await.map(|response| (response, None))
            } else {
                let (response, connection) = self.send_http1(replica, outbound).await?;
                Ok((response, Some(connection)))
            }
        });
        let answered = sent.await.unwrap_or(Err(Failure::Timeout))?;
        let took = clock::now().since(started);
        self.stats.answered_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let failed = answered.0.status().is_server_error();
        self.note(replica, if failed { Outcome::Failed } else { Outcome::Answered(took) });
        Ok(answered)
    }

    async fn send_http1(
        &self,
        replica: &Arc<Replica>,
        mut outbound: Outbound,
    ) -> Result<(Response<Incoming>, Http1), Failure> {
        let settings = &self.global.settings;
        let kind = Use::of(outbound.repeatable);
        // A kept connection that turns out to be closed says nothing about the replica: once more over a new one.
        if let Some(mut kept) = self.pools.take(replica.key, kind, clock::now()) {
            let spare = outbound.repeatable.then(|| outbound.again());
            match hand_over(&mut kept, outbound).await {
                Ok(response) => return Ok((response, kept)),
                Err(failure) => outbound = after_stale(failure, spare)?,
            }
            bump(&self.stats.stale_connections);
        }
        bump(&self.stats.connects);
        match upstream::connect(replica.address, kind, settings).await {
            Ok(mut fresh) => hand_over(&mut fresh, outbound).await.map(|response| (response, fresh)),
            Err(error) => Err(Failure::Unsent(Box::new(outbound), error.to_string())),
        }
    }

    async fn send_http2(
        &self,
        replica: &Arc<Replica>,
        outbound: Outbound,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sender = match self.pools.shared(replica.key) {
            Some(sender) => sender,
            None => {
                bump(&self.stats.connects);
                match upstream::connect_http2(replica.address, &self.global.settings).await {
                    Ok(sender) => sender,
                    Err(error) => return Err(Failure::Unsent(Box::new(outbound), error.to_string())),
                }
            }
        };
        self.pools.share(replica.key, &sender);
        if let Err(error) = sender.ready().await {
            return Err(Failure::Unsent(Box::new(outbound), error.to_string()));
        }
        let repeatable = outbound.repeatable;
        sender
            .try_send_request(Request::from_parts(outbound.parts, outbound.body))
            .await
            .map_err(|mut error| Failure::of(error.take_message(), error.error(), repeatable))
    }

    /// The replica's answer, made the client's.
    fn pass(
        self: &Rc<Self>,
        inbound: Inbound<'_>,
        mut response: Response<Incoming>,
        connection: Option<Http1>,
        choice: Choice,
    ) -> Answer {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = headers::strip_hop_by_hop(response.headers_mut(), switches);
        *response.version_mut() = Version::HTTP_11;
        let service = &inbound.service;
        if service.labels.sticky && choice.reason != Reason::Sticky {
            let key = choice.lease.replica().key;
            if let Some(cookie) = sticky::write(&service.cookie, key, inbound.client.secure) {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
        }
        if switches {
            return self.switch(inbound, response, protocol, choice.lease);
        }
        let (parts, body) = response.into_parts();
        let guard = Guard { lease: choice.lease, connection, worker: Rc::clone(self) };
        Response::from_parts(parts, AnswerBody::stream(body, guard))
    }

    fn switch(
        &self,
        inbound: Inbound<'_>,
        mut response: Response<Incoming>,
        protocol: Option<HeaderValue>,
        lease: Lease,
    ) -> Answer {
        let (Some((_, client)), Some(protocol)) = (inbound.upgrade, protocol) else {
            self.note(lease.replica(), Outcome::Failed);
            bump(&self.stats.bad_gateway);
            return *refusal(StatusCode::BAD_GATEWAY, "the service changed the protocol unasked");
        };
        bump(&self.stats.upgrades);
        let replica = hyper::upgrade::on(&mut response);
        tokio::task::spawn_local(tunnel::run(client, replica, lease));
        headers::set_upgrade(response.headers_mut(), protocol);
        response.map(|_| AnswerBody::Own(None))
    }

    fn refuse(&self, service: &Service, why: Refusal) -> Box<Answer> {
        service.shared.refused.fetch_add(1, Relaxed);
        let (counter, text) = match why {
            Refusal::NoReplica => {
                (&self.stats.refused_no_replica, "no replica of the service can take requests")
            }
            Refusal::Full => (&self.stats.refused_full, "every replica of the service is busy"),
            Refusal::NoFigures => {
                (&self.stats.refused_no_replica, "there are no figures to choose a replica by")
            }
        };
        bump(counter);
        refusal(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    fn refuse_malformed(&self, status: StatusCode, why: &str) -> Box<Answer> {
        bump(&self.stats.refused_malformed);
        refusal(status, why)
    }
}

impl Outbound {
    /// The same request once more; only for those without a body.
    fn again(&self) -> Self {
        Self { parts: self.parts.clone(), body: RequestBody::Empty, repeatable: self.repeatable }
    }
}

impl Failure {
    fn of(unsent: Option<Request<RequestBody>>, error: &hyper::Error, repeatable: bool) -> Self {
        if let Some(request) = unsent {
            let (parts, body) = request.into_parts();
            return Self::Unsent(Box::new(Outbound { parts, body, repeatable }), error.to_string());
        }
        let cause = error.source().and_then(|source| source.downcast_ref::<BodyError>());
        match cause {
            Some(why @ BodyError::TooLarge(_)) => {
                Self::Client(StatusCode::PAYLOAD_TOO_LARGE, why.to_string())
            }
            Some(why @ BodyError::Stalled(_)) => Self::Client(StatusCode::REQUEST_TIMEOUT, why.to_string()),
            Some(why @ BodyError::Broken(_)) => Self::Client(StatusCode::BAD_REQUEST, why.to_string()),
            None => Self::Broken(error.to_string()),
        }
    }
}

async fn hand_over(connection: &mut Http1, outbound: Outbound) -> Result<Response<Incoming>, Failure> {
    let repeatable = outbound.repeatable;
    let request = Request::from_parts(outbound.parts, outbound.body);
    let sent = connection.sender.try_send_request(request).await;
    sent.map_err(|mut error| Failure::of(error.take_message(), error.error(), repeatable))
}

/// What to send over a new connection after a kept one failed; an error where that could send something twice.
fn after_stale(failure: Failure, spare: Option<Outbound>) -> Result<Outbound, Failure> {
    match (failure, spare) {
        (Failure::Unsent(outbound, _), _) => Ok(*outbound),
        (Failure::Broken(_), Some(spare)) => Ok(spare),
        (failure, _) => Err(failure),
    }
}

/// Makes a client's head a replica's; answers the protocol of an upgrade.
fn prepare(
    parts: &mut Parts,
    client: &Client,
    host: &str,
    service: &Service,
    settings: &crate::settings::Settings,
) -> Option<HeaderValue> {
    let http2 = service.labels.http2;
    let trailers = http2 && parts.headers.get(header::TE).is_some_and(|te| te == "trailers");
    let may_upgrade = parts.version == Version::HTTP_11 && !http2;
    let upgrade = headers::strip_hop_by_hop(&mut parts.headers, may_upgrade);
    // hyper answers "100-continue" itself as soon as the body is asked for.
    parts.headers.remove(header::EXPECT);
    headers::forward(&mut parts.headers, client, host, settings.forwarded, settings.trust_forwarded);
    if http2 {
        parts.version = Version::HTTP_2;
        parts.headers.remove(header::HOST);
        if trailers {
            parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some(uri) = headers::absolute_form(&parts.uri, host) {
            parts.uri = uri;
        }
        return upgrade;
    }
    parts.version = Version::HTTP_11;
    if parts.uri.authority().is_some() {
        parts.uri = headers::origin_form(&parts.uri);
        if let Ok(value) = HeaderValue::from_str(host) {
            parts.headers.insert(header::HOST, value);
        }
    }
    // HTTP/1.0 may leave it out, HTTP/1.1 may not, but it may be empty (RFC 9112, 3.2).
    parts.headers.entry(header::HOST).or_insert(HeaderValue::from_static(""));
    if let Some(protocol) = &upgrade {
        headers::set_upgrade(&mut parts.headers, protocol.clone());
    }
    upgrade
}

fn refusal(status: StatusCode, text: &str) -> Box<Answer> {
    Box::new(answer::error(status, text, own_body))
}

fn own_body(bytes: bytes::Bytes) -> AnswerBody<Guard> {
    AnswerBody::Own(Some(bytes))
}
