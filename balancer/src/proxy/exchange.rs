//! One request on hyper's path: which service, which replica, there and back, and again elsewhere where that is safe
//! ([`super::retry`]).

use std::{
    error::Error as _,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use swarmguard_common::labels::RouteLabels;
use swarmguard_runtime::clock;
use tokio::time::Instant;

use super::{
    NO_ANSWER, NO_MEMORY, UNREACHABLE, answer,
    body::{AnswerBody, BodyError, Pace, Patience, RequestBody},
    framing,
    headers::{self, Client},
    io::Turn,
    progress::Progress,
    retry::{Ended, Retry},
    tunnel,
    upstream::{self, Http1, Use},
    worker::Worker,
};
use crate::{
    choose::{Choice, Refusal, Wish},
    lease::Lease,
    memory::Charge,
    pick::Reason,
    replica::Replica,
    service::Service,
    settings::Settings,
    stats::bump,
    sticky,
};

/// Heads up to here are not charged one by one.
const FREE_HEAD_BYTES: usize = 4_096;

/// Of a large answer hyper reads so much from the replica before the client has taken it, in bytes.
const READ_AHEAD_BYTES: usize = 64 * 1_024;
/// Answers up to here are read at once and not charged, in bytes.
const SMALL_BYTES: u64 = 16 * 1_024;

/// What a client is answered with.
pub type Answer = Response<AnswerBody<Guard>>;

/// The lease, and the connection that an answer comes over, until the answer has ended.
#[derive(Debug)]
pub struct Guard {
    lease: Lease,
    connection: Option<Http1>,
    worker: Rc<Worker>,
}

impl super::body::Ended for Guard {
    fn ended(self) {
        if let Some(connection) = self.connection {
            self.worker.keep(self.lease.replica(), connection);
        }
    }

    fn broken(self) {
        self.worker.note_broken(self.lease.replica());
    }

    fn shed(self) {
        bump(&self.worker.stats.shed);
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
    Lost(Ended, String),
    /// The client broke off, fell silent or sent too much.
    Client(StatusCode, String),
}

struct Inbound<'a> {
    client: &'a Client,
    service: Arc<Service>,
    sticky: Option<u64>,
    /// The protocol that the client wants to change to, and its end of the connection.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    progress: Progress,
    /// Pays for the head.
    _charge: Option<Charge>,
}

type Sent = (Response<Incoming>, Option<Http1>);

impl Worker {
    /// Answers one request; never fails, errors are answers. `turn` is told of the request's body, `progress` of
    /// everything that moves.
    pub async fn answer(
        self: &Rc<Self>,
        client: &Client,
        request: Request<Incoming>,
        turn: Option<Turn>,
        progress: Progress,
    ) -> Answer {
        bump(&self.stats.requests);
        let path = request.uri().path();
        if self.global.settings.own_paths
            && let Some(own) = answer::own(&self.global, path, request.headers(), own_body)
        {
            return own;
        }
        self.route(client, request, turn, progress).await.unwrap_or_else(|refused| *refused)
    }

    async fn route(
        self: &Rc<Self>,
        client: &Client,
        mut request: Request<Incoming>,
        turn: Option<Turn>,
        progress: Progress,
    ) -> Result<Answer, Box<Answer>> {
        let settings = &self.global.settings;
        let charge = self.admit(request.headers())?;
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            let why = "CONNECT and TRACE are not served here";
            return Err(self.refuse_malformed(StatusCode::METHOD_NOT_ALLOWED, why));
        }
        let host = headers::host(request.uri(), request.headers(), request.version())
            .map_err(|why| self.refuse_malformed(StatusCode::BAD_REQUEST, why))?
            .to_owned();
        let service = self.find(&host, request.uri().path()).ok_or_else(|| {
            bump(&self.stats.refused_no_route);
            refusal(StatusCode::NOT_FOUND, "no service is balanced for this host and path")
        })?;
        progress.belongs_to(&service.shared.stalls);
        if let Some(turn) = &turn {
            turn.belongs_to(&service.shared.stalls);
        }
        service.shared.requests.fetch_add(1, Relaxed);
        service.shared.budget.deposit();
        self.within_rate(&service, client)?;
        let most = settings.max_body_bytes;
        if most > 0 && http_body::Body::size_hint(request.body()).lower() > most {
            return Err(self.refuse_malformed(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
        }
        let sticky =
            service.labels.sticky.then(|| sticky::read(request.headers(), &service.cookie)).flatten();
        let may_upgrade = request.version() == Version::HTTP_11 && !service.labels.http2;
        let on_upgrade = may_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let upgrade = prepare(&mut parts, client, &host, &service.labels, settings);
        let patience = Patience { client: settings.idle_timeout, exchange: settings.stream_timeout };
        let body = RequestBody::new(body, most, patience, progress.clone(), turn);
        let repeatable = body.is_empty() && upgrade.is_none() && headers::is_idempotent(&parts.method);
        let upgrade = upgrade.zip(on_upgrade);
        let inbound = Inbound { client, service, sticky, upgrade, progress, _charge: charge };
        self.exchange(inbound, Outbound { parts, body, repeatable }).await
    }

    /// Whether there is memory for one more request.
    fn admit(&self, headers: &HeaderMap) -> Result<Option<Charge>, Box<Answer>> {
        let memory = &self.global.memory;
        let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        let charge = if bytes > FREE_HEAD_BYTES { memory.charge(bytes) } else { None };
        if !self.has_memory() || (bytes > FREE_HEAD_BYTES && charge.is_none()) {
            bump(&self.stats.refused_memory);
            return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY));
        }
        Ok(charge)
    }

    fn within_rate(&self, service: &Service, client: &Client) -> Result<(), Box<Answer>> {
        let now = clock::now();
        let (counter, text) = if service.clients.as_ref().is_some_and(|rate| !rate.admit(client.ip, now)) {
            (&self.stats.refused_client_rate, "too many requests for this service from this address")
        } else if service.limit.as_ref().is_some_and(|limit| !limit.admit(now)) {
            (&self.stats.refused_rate, "too many requests for this service")
        } else {
            return Ok(());
        };
        bump(counter);
        service.shared.refused.fetch_add(1, Relaxed);
        Err(refusal(StatusCode::TOO_MANY_REQUESTS, text))
    }

    async fn exchange(
        self: &Rc<Self>,
        mut inbound: Inbound<'_>,
        outbound: Outbound,
    ) -> Result<Answer, Box<Answer>> {
        let mut retry = Retry::new(outbound.repeatable);
        let mut next = Some(outbound);
        let mut last: Option<Result<(Sent, Choice), Ended>> = None;
        while let Some(outbound) = next.take() {
            let choice = match self.lease(&mut inbound.service, retry.wish(inbound.sticky)).await {
                Ok(choice) => choice,
                // Every replica was tried: what the last one answered says more than that there is none.
                Err(_) if last.is_some() => break,
                Err(why) => return Err(self.refuse(&inbound.service, why)),
            };
            let replica = Arc::clone(choice.lease.replica());
            let spare = (retry.has_more() && outbound.repeatable).then(|| outbound.again());
            let (sent, took) = self.send(&replica, &inbound, outbound).await;
            let ended = match &sent {
                Ok((response, _)) => Ended::Answered(response.status().as_u16()),
                Err(failure) => failure.ended(),
            };
            self.ended(&inbound.service, &replica, ended, took);
            let again = retry.again(replica.key, ended, &inbound.service.shared.budget);
            match sent {
                Ok(sent) if again && spare.is_some() => {
                    next = spare;
                    last = Some(Ok((sent, choice)));
                }
                Ok(sent) => return Ok(self.pass(inbound, sent, choice)),
                Err(Failure::Client(status, why)) => return Err(self.refuse_malformed(status, &why)),
                Err(failure) => {
                    next = self.failed(&replica, failure).or(spare).filter(|_| again);
                    last = Some(Err(ended));
                }
            }
            if next.is_some() {
                self.retried(&inbound.service);
            }
        }
        match last {
            Some(Ok((sent, choice))) => Ok(self.pass(inbound, sent, choice)),
            Some(Err(ended)) => Err(self.answer_failure(&inbound.service, ended)),
            None => Err(self.refuse(&inbound.service, Refusal::NoReplica)),
        }
    }

    /// What can be sent again after a failure, because none of it was sent.
    fn failed(&self, replica: &Replica, failure: Failure) -> Option<Outbound> {
        let (outbound, why) = match failure {
            Failure::Unsent(outbound, why) => (Some(*outbound), why),
            Failure::Lost(_, why) | Failure::Client(_, why) => (None, why),
        };
        tracing::debug!(task = %replica.task, address = %replica.address, why, "a replica failed");
        outbound
    }

    /// What a client is told after all attempts have failed.
    fn answer_failure(&self, service: &Service, ended: Ended) -> Box<Answer> {
        let status = self.count_failure(service, ended).unwrap_or(StatusCode::BAD_GATEWAY);
        let unreachable = status == StatusCode::SERVICE_UNAVAILABLE;
        refusal(status, if unreachable { UNREACHABLE } else { NO_ANSWER })
    }

    /// A replica and a lease there; waits for room where all are full.
    async fn lease(&self, service: &mut Arc<Service>, wish: Wish<'_>) -> Result<Choice, Refusal> {
        match self.choose(service, wish) {
            Err(Refusal::Full) => {}
            other => return other,
        }
        let settings = &self.global.settings;
        let Some(waiter) = service.shared.queue(settings.queue_length) else { return Err(Refusal::Full) };
        let deadline = Instant::now() + settings.queue_timeout;
        loop {
            if service.shared.stalls.make_room(clock::now()) {
                bump(&self.stats.cut_for_room);
            }
            // A short wait at a time: a replica may also become ready, which returns no lease.
            let step = deadline.min(Instant::now() + Duration::from_millis(100));
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

    /// Sends a request; answers with what came of it and how long the replica took once it had the whole request.
    async fn send(
        self: &Rc<Self>,
        replica: &Arc<Replica>,
        inbound: &Inbound<'_>,
        outbound: Outbound,
    ) -> (Result<Sent, Failure>, Duration) {
        let progress = &inbound.progress;
        progress.moved();
        let sent = async {
            if inbound.service.labels.http2 {
                self.send_http2(replica, outbound).await.map(|response| (response, None))
            } else {
                let (response, connection) = self.send_http1(replica, outbound).await?;
                Ok((response, Some(connection)))
            }
        };
        let sent = tokio::select! {
            biased;
            sent = sent => sent,
            () = progress.no_answer(inbound.service.labels.timeout) => {
                Err(Failure::Lost(Ended::TimedOut, "the replica did not answer in time".into()))
            }
        };
        let took = progress.last().elapsed();
        if sent.is_ok() {
            progress.answered();
        }
        (sent, took)
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
        (mut response, connection): Sent,
        choice: Choice,
    ) -> Answer {
        let service = &inbound.service;
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let upgrades: &[String] = if switches { &service.labels.upgrades } else { &[] };
        let protocol = headers::strip_hop_by_hop(response.headers_mut(), upgrades);
        *response.version_mut() = Version::HTTP_11;
        service.shared.answered(response.status().as_u16());
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
        let charge = if is_large(&body) {
            let Some(charge) = self.global.memory.charge(READ_AHEAD_BYTES) else {
                bump(&self.stats.refused_memory);
                return *refusal(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY);
            };
            Some(Arc::new(charge))
        } else {
            None
        };
        let guard = Guard { lease: choice.lease, connection, worker: Rc::clone(self) };
        let silence = self.global.settings.stream_timeout;
        let memory = Arc::clone(&self.global.memory);
        let pace = Pace { progress: inbound.progress, silence, memory, charge };
        Response::from_parts(parts, AnswerBody::stream(body, guard, pace))
    }

    fn switch(
        &self,
        inbound: Inbound<'_>,
        mut response: Response<Incoming>,
        protocol: Option<HeaderValue>,
        lease: Lease,
    ) -> Answer {
        let (Some((asked, client)), Some(protocol)) = (inbound.upgrade, protocol) else {
            return self.not_switched(&lease);
        };
        if !asked.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()) {
            return self.not_switched(&lease);
        }
        let Some(charge) = self.global.memory.charge(tunnel::BASE_BYTES) else {
            bump(&self.stats.refused_memory);
            return *refusal(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY);
        };
        let replica = hyper::upgrade::on(&mut response);
        let (seat, stats) = (inbound.client.seat.clone(), Arc::clone(&self.stats));
        let silence = self.global.settings.stream_timeout;
        let tunnel = tunnel::Tunnel { lease, seat, silence, charge, stats };
        tokio::task::spawn_local(tunnel.run(client, replica));
        headers::set_upgrade(response.headers_mut(), protocol);
        response.map(|_| AnswerBody::own(None))
    }

    fn not_switched(&self, lease: &Lease) -> Answer {
        self.note_broken(lease.replica());
        bump(&self.stats.failed_unreadable);
        *refusal(StatusCode::BAD_GATEWAY, "the service changed the protocol unasked")
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
        let timeout = status == StatusCode::REQUEST_TIMEOUT;
        bump(if timeout { &self.stats.refused_client_timeout } else { &self.stats.refused_malformed });
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
            Some(why @ (BodyError::Stalled(_) | BodyError::Displaced)) => {
                Self::Client(StatusCode::REQUEST_TIMEOUT, why.to_string())
            }
            Some(why @ BodyError::Broken(_)) => Self::Client(StatusCode::BAD_REQUEST, why.to_string()),
            None => Self::Lost(what(error), error.to_string()),
        }
    }

    fn ended(&self) -> Ended {
        match self {
            Self::Unsent(..) => Ended::Unsent,
            Self::Lost(ended, _) => *ended,
            Self::Client(..) => Ended::Client,
        }
    }
}

fn what(error: &hyper::Error) -> Ended {
    if error.is_parse_too_large() {
        Ended::TooLarge
    } else if error.is_parse() {
        Ended::Unreadable
    } else {
        Ended::Broken
    }
}

async fn hand_over(connection: &mut Http1, outbound: Outbound) -> Result<Response<Incoming>, Failure> {
    let repeatable = outbound.repeatable;
    let request = Request::from_parts(outbound.parts, outbound.body);
    let sent = connection.sender.try_send_request(request).await;
    let mut response =
        sent.map_err(|mut error| Failure::of(error.take_message(), error.error(), repeatable))?;
    let http11 = response.version() == Version::HTTP_11;
    let settled = framing::settle(response.headers_mut(), http11);
    connection.spent = settled.map_err(|why| Failure::Lost(Ended::Unreadable, why.into()))?;
    Ok(response)
}

/// What to send over a new connection after a kept one failed; an error where that could send something twice.
fn after_stale(failure: Failure, spare: Option<Outbound>) -> Result<Outbound, Failure> {
    match failure {
        Failure::Unsent(outbound, _) => Ok(*outbound),
        failure if failure.ended().is_stale(spare.is_some()) => spare.ok_or(failure),
        failure => Err(failure),
    }
}

/// Makes a client's head a replica's; answers the protocol of an upgrade.
pub(crate) fn prepare(
    parts: &mut Parts,
    client: &Client,
    host: &str,
    labels: &RouteLabels,
    settings: &Settings,
) -> Option<HeaderValue> {
    let http2 = labels.http2;
    let trailers = http2 && parts.headers.get(header::TE).is_some_and(|te| te == "trailers");
    let may_upgrade = parts.version == Version::HTTP_11 && !http2;
    let upgrades: &[String] = if may_upgrade { &labels.upgrades } else { &[] };
    let upgrade = headers::strip_hop_by_hop(&mut parts.headers, upgrades);
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

fn is_large(body: &Incoming) -> bool {
    let known = http_body::Body::size_hint(body).exact();
    known.is_none_or(|bytes| bytes > SMALL_BYTES) && !http_body::Body::is_end_stream(body)
}

fn refusal(status: StatusCode, text: &str) -> Box<Answer> {
    Box::new(answer::error(status, text, own_body))
}

fn own_body(bytes: bytes::Bytes) -> AnswerBody<Guard> {
    AnswerBody::own(Some(bytes))
}
