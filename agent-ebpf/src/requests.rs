//! Requests in flight and time to answer, per container, seen at its sockets: no proxy, no change to the application.
//!
//! A connection that the container accepted has a request open from the first payload it receives until the first
//! payload it sends. That is exact where one request follows another on a connection (HTTP/1). Where several
//! share one (HTTP/2), the connection counts as one request while it owes anything; a TLS handshake counts as a
//! short request of its own. Connections accepted before the container was watched are not followed, nor is what
//! goes over loopback.

use aya_ebpf::bindings::{
    __sk_buff, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, sock_ops};
use aya_ebpf::programs::SockOpsContext;
use swarmguard_common::kernel::{GroupCounters, Waits};

use crate::net::{Direction, group_counters, tcp_payload};

/// What is kept with an accepted connection.
#[repr(C)]
pub struct Connection {
    /// When the open request began, ns; 0: none is open.
    since_ns: u64,
}

#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// Follows connections of the container from acceptance to end.
#[sock_ops]
pub fn group_connections(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if storage(socket(&ctx), BPF_SK_STORAGE_GET_F_CREATE.into()).is_some() {
                let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
            }
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            if let Some(connection) = storage(socket(&ctx), 0) {
                // SAFETY: the socket's own storage; it is closing, nobody else uses it.
                let connection = unsafe { &mut *connection };
                if connection.since_ns != 0 {
                    connection.since_ns = 0;
                    group_counters().requests_dropped += 1;
                }
            }
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk.cast::<c_void>() }
}

/// What is kept with a socket; `None` where it is not followed.
#[inline(always)]
fn storage(socket: *mut c_void, flags: u64) -> Option<*mut Connection> {
    if socket.is_null() {
        return None;
    }
    let map = (&raw const CONNECTIONS).cast_mut().cast::<c_void>();
    // SAFETY: a socket of the context, checked above; the helper answers null where it keeps nothing.
    let found = unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags) }.cast::<Connection>();
    if found.is_null() { None } else { Some(found) }
}

/// Looks at a packet of the container.
#[inline(always)]
pub fn follow(counters: &mut GroupCounters, skb: *mut __sk_buff, direction: Direction) {
    // First what needs no call: most packets carry no payload, or are not of TCP.
    if tcp_payload(skb) == 0 {
        return;
    }
    // SAFETY: the context is valid for the whole program.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk.cast::<c_void>() };
    let Some(connection) = storage(socket, 0) else { return };
    // SAFETY: the storage lives as long as the socket. Directions may meet on two CPUs; what can be lost then is
    // one request of one connection.
    let connection = unsafe { &mut *connection };
    let open = connection.since_ns != 0;
    if open == matches!(direction, Direction::Received) {
        return;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    match direction {
        Direction::Received => {
            connection.since_ns = now;
            counters.requests_started += 1;
        }
        Direction::Sent => {
            let took = now - connection.since_ns;
            connection.since_ns = 0;
            counters.answers.count += 1;
            counters.answers.total_ns += took;
            if let Some(slot) = counters.answers.slots.get_mut(Waits::slot(took)) {
                *slot += 1;
            }
        }
    }
}
