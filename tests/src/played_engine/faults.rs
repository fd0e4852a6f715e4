//! What an engine can do wrong, and to which requests.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// A wrong answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and no answer comes.
    Hang,
    /// It is done and answered after this long, whether or not anybody still waits.
    Late(Duration),
    /// It is done, and the connection ends without an answer.
    Lost,
    /// It is done, and the connection ends in the middle of the answer.
    Half,
    /// It is done, and the answer stops in the middle while the connection stays.
    Stuck,
    /// It is done once, and answered twice.
    Twice,
}

/// Faults that are still to happen.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<(String, Fault, usize)>>);

impl Faults {
    /// The next `times` requests that begin so get it.
    pub fn add(&self, request: &str, fault: Fault, times: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((request.into(), fault, times));
    }

    /// None any more.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The fault that a request is to get.
    pub fn of(&self, request: &str) -> Option<Fault> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, fault, left) =
            faults.iter_mut().find(|(begins, _, left)| *left > 0 && request.starts_with(begins.as_str()))?;
        *left -= 1;
        Some(*fault)
    }
}
