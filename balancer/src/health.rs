//! Active health checks: each replica's health path is asked now and then, sick ones every second.
//!
//! Any answer below 500 counts as well: many services have no health path of their own, and 404 proves life as much as
//! 200. Two failures in a row make a replica sick (one, where nobody listens at all); one success makes it well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use swarmguard_common::time::Time;
use swarmguard_runtime::clock;
use tokio::{net::TcpStream, sync::Semaphore};

use crate::{breaker::Gate, proxy::Global, replica::Replica, service::Service};

/// How often is looked whose turn it is: one that is new waits no longer for its first check.
const LOOK: Duration = Duration::from_millis(50);
/// How often a sick or ejected replica is asked.
const SICK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Checks under way at once.
const AT_ONCE: usize = 64;
/// Failures in a row that make a replica sick.
const FAILURES: u32 = 2;

#[derive(Debug, Default)]
struct Record {
    due: Time,
    failures: u32,
    under_way: bool,
}

type Records = Arc<Mutex<BTreeMap<u64, Record>>>;

/// Checks all replicas until the process ends.
pub async fn run(global: Arc<Global>) {
    let records = Records::default();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let table = global.table.load_full();
        let now = clock::now();
        let mut known = std::collections::BTreeSet::new();
        for service in &table.services {
            for replica in service.replicas.iter().filter(|replica| replica.ready()) {
                known.insert(replica.key);
                if !due(&records, replica.key, now) {
                    continue;
                }
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                lock(&records).entry(replica.key).or_default().under_way = true;
                let interval = global.settings.health_check_interval;
                let (records, service, replica) =
                    (Arc::clone(&records), Arc::clone(service), Arc::clone(replica));
                tokio::spawn(async move {
                    check(&records, &service, &replica, interval).await;
                    drop(permit);
                });
            }
        }
        lock(&records).retain(|key, record| record.under_way || known.contains(key));
        tokio::time::sleep(LOOK).await;
    }
}

fn due(records: &Records, key: u64, now: Time) -> bool {
    lock(records).get(&key).is_none_or(|record| !record.under_way && now >= record.due)
}

fn lock(records: &Records) -> std::sync::MutexGuard<'_, BTreeMap<u64, Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn check(records: &Records, service: &Service, replica: &Replica, interval: Duration) {
    let result = tokio::time::timeout(PATIENCE, ask(service, replica)).await;
    let now = clock::now();
    let mut all = lock(records);
    let record = all.entry(replica.key).or_default();
    record.under_way = false;
    let trouble = match result {
        Ok(Ok(status)) if status < 500 => None,
        Ok(Ok(status)) => Some((1, format!("status {status}"))),
        // Nobody listens there: no need to ask twice.
        Ok(Err(Trouble::Connect(error))) => Some((FAILURES, error.to_string())),
        Ok(Err(Trouble::Http(error))) => Some((1, error.to_string())),
        Err(_) => Some((1, format!("no answer within {PATIENCE:?}"))),
    };
    let Some((weight, why)) = trouble else {
        record.failures = 0;
        let ejected = replica.gate(now) != Gate::Closed;
        record.due = now + if ejected { SICK_INTERVAL.min(interval) } else { interval };
        if replica.set_sick(false, now) {
            tracing::info!(service = service.name, task = %replica.task, node = replica.node, "replica is well again");
        }
        return;
    };
    record.failures = record.failures.saturating_add(weight);
    record.due = now + SICK_INTERVAL.min(interval);
    if record.failures >= FAILURES && !replica.set_sick(true, now) {
        tracing::warn!(service = service.name, task = %replica.task, node = replica.node, why, "replica is sick");
    }
}

enum Trouble {
    Connect(std::io::Error),
    Http(hyper::Error),
}

async fn ask(service: &Service, replica: &Replica) -> Result<u16, Trouble> {
    let stream = TcpStream::connect(replica.address).await.map_err(Trouble::Connect)?;
    let io = TokioIo::new(stream);
    let host = replica.address.to_string();
    let path: Uri = service.labels.health_path.parse().unwrap_or_default();
    let request = Request::builder().header(header::USER_AGENT, "swarmguard-balancer");
    let response = if service.labels.http2 {
        let uri = crate::proxy::headers::absolute_form(&path, &host).unwrap_or_default();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), io).await.map_err(Trouble::Http)?;
        let driver = tokio::spawn(connection);
        let request = request.uri(uri).body(Empty::<Bytes>::new()).unwrap_or_default();
        let response = sender.send_request(request).await;
        driver.abort();
        response
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(Trouble::Http)?;
        let driver = tokio::spawn(connection);
        let request = request.uri(path).header(header::HOST, host).header(header::CONNECTION, "close");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap_or_default()).await;
        driver.abort();
        response
    };
    Ok(response.map_err(Trouble::Http)?.status().as_u16())
}
