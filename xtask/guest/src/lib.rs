//! What xtask and the guest binary share: the frames of the command protocol and the words on the console.

pub mod protocol;

/// TCP port of a VM's command agent, inside the cluster's own network.
pub const AGENT_PORT: u16 = 2374;

/// TCP port of a VM's Docker API, inside the cluster's own network.
pub const DOCKER_PORT: u16 = 2375;

/// Every line the guest prints on the console starts with this.
pub const MARK: &str = "sg-guest:";

/// Printed once userland runs: the proof that an accelerator really boots this kernel.
pub const ALIVE: &str = "sg-guest: alive";

/// Printed when the node is set up and its services start.
pub const READY: &str = "sg-guest: ready";

/// Starts the line that says why the guest gave up.
pub const FAILED: &str = "sg-guest: failed:";

/// Name of the virtio port that carries dockerd's log to the machine.
pub const LOG_PORT: &str = "sg.log";

/// Name of the virtio port that carries a `vm run` program's output, as frames.
pub const RUN_PORT: &str = "sg.run";
