//! Upgraded connections: after 101 the bytes are nobody's business but the two ends'.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::lease::Lease;

/// Copies both ways until one side closes; the lease lasts as long, so that a drain waits for it.
pub async fn run(client: OnUpgrade, replica: OnUpgrade, lease: Lease) {
    let (client, replica) = match tokio::join!(client, replica) {
        (Ok(client), Ok(replica)) => (client, replica),
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(%error, "an upgrade did not come about");
            return;
        }
    };
    let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(replica)).await;
    if let Err(error) = copied {
        tracing::debug!(%error, task = %lease.replica().task, "an upgraded connection broke");
    }
}
