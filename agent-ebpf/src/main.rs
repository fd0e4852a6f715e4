//! The BPF programs of the agent: what only the kernel sees, counted where it happens.
//!
//! One object; the agent loads each program by itself, so that a kernel that refuses one still runs the others.
//! Programs decide nothing and drop nothing: every one of them lets its packet or event pass, always. No
//! CO-RE relocations exist for Rust, so offsets into kernel structures come from the agent as read-only globals.
#![no_std]
#![no_main]

mod events;
mod groups;
mod net;
mod requests;
mod run_queue;
mod structs;

// The kernel allows some helpers only to programs under a licence that is compatible with its own.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Never reached: the verifier refuses a program that could loop here.
    loop {}
}
