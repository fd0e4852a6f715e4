//! Where figures come from: one file per cgroup controller or kernel source. Each opens a file once, keeps the
//! descriptor, and reads it with one `pread` and no allocation; parsing works on the bytes that were read.
//!
//! Files instead of a library's structures: a library opens, reads and allocates anew each time, which at ten readings
//! a second of some hundred containers is most of the cost.

pub mod cpu;
pub mod group;
pub mod limits;
pub mod memory;
pub mod network;
pub mod node;
pub mod node_group;
pub mod own;
pub mod parse;
pub mod pressure;
pub mod trigger;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Room for the largest file that is read whole (`memory.stat` of a current kernel has about 2 KiB), in bytes.
pub const BUFFER_BYTES: usize = 16 * 1024;

/// A file that stays open and is read from its beginning each time.
#[derive(Debug)]
pub struct KeptFile(File);

impl KeptFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The file's content now, at most as much as `buffer` holds.
    ///
    /// # Errors
    /// `ENODEV` when the cgroup is gone (see [`is_gone`]); anything else as the system says.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.0, &mut *buffer, 0))?;
        Ok(buffer.get(..length).unwrap_or_default())
    }
}

/// Whether a read failed because the cgroup or process behind the file is no more.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH))
}

/// Why a source gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The file says something that this build does not understand.
    #[error("{path} has no usable {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_shows_what_stands_there_now() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "1\n").expect("written");
        let kept = KeptFile::open(file.path()).expect("there");
        let mut buffer = [0; 16];
        assert_eq!(kept.read(&mut buffer).expect("readable"), b"1\n");
        std::fs::write(file.path(), "22\n").expect("written");
        assert_eq!(kept.read(&mut buffer).expect("readable"), b"22\n");
        assert_eq!(kept.read(&mut buffer[..2]).expect("readable"), b"22");
    }
}
