//! Busy CPUs: threads that compute and nothing else. They end with the process.

use std::{io, thread, time::Duration};

use swarmguard_runtime::clock;

/// Steps between two looks at the clock.
const STEPS: u32 = 100_000;

/// Starts the threads. Each ends by itself when its time is over, should nobody end the process.
pub(super) fn begin(threads: u16, span: Duration) -> io::Result<()> {
    let end = clock::now() + span;
    for number in 0..threads {
        let spin = move || {
            let mut value = u64::from(number) + 1;
            while clock::now() < end {
                for _ in 0..STEPS {
                    value =
                        std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17));
                }
            }
        };
        thread::Builder::new().name(format!("spin-{number}")).spawn(spin)?;
    }
    Ok(())
}
