//! The BPF programs of the agent: what only the kernel sees, counted where it happens.
//!
//! One object; the agent loads each program by itself, so that a kernel that refuses one still runs the others.
//! Programs drop nothing: every one of them lets its packet, event or call pass, always; those of `connect` may send a
//! call elsewhere. No CO-RE relocations exist for Rust, so offsets into kernel structures come from the agent as
//! read-only globals.
#![no_std]
#![no_main]
// The target has no compare-and-swap, so core's atomics lack even addition, which every BPF kernel has.
#![feature(asm_experimental_arch)]

mod connect;
mod events;
mod groups;
mod net;
mod requests;
mod run_queue;
mod storage;
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
