//! A tar archive, the same for the same content.

use anyhow::{Context, Result};

/// A tar archive without anything that differs from one build to the next.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Archive(tar::Builder::new(Vec::new()))
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// Where its name is none.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        self.0.append_data(&mut header, format!("{path}/"), &[][..]).context("cannot pack a directory")
    }

    /// Adds a file.
    ///
    /// # Errors
    /// Where its name is none.
    pub fn file(&mut self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        let mut header = header(mode, data.len() as u64);
        self.0.append_data(&mut header, path, data).with_context(|| format!("cannot pack {path}"))
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// Never: it is in memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("cannot finish an archive")
    }
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
