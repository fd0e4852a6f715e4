//! A cpio archive in the "newc" format, which is what the kernel unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds an empty directory, readable by everyone. Parents must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file with these permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, content);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // magic, inode, mode, uid, gid, links, time, size, device (2), special device (2), name length, checksum
        let fields = [
            self.inode as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_newc() {
        let mut archive = Archive::default();
        archive.directory("/mods");
        archive.file("/init", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000041ed", "a directory of mode 755");
        assert_eq!(&bytes[94..102], b"00000005", "name length with its NUL");
        assert_eq!(&bytes[110..115], b"mods\0");
        let text = String::from_utf8_lossy(&bytes);
        // Header and name fill 116 bytes; the next entry starts there.
        let second = &bytes[116..];
        assert_eq!(&second[14..22], b"000081ed", "a file of mode 755");
        assert_eq!(&second[54..62], b"00000005", "its size");
        assert_eq!(&second[110..121], b"init\0\0hello", "name padded to four, then the content");
        assert!(
            text.ends_with("TRAILER!!!\0\0\0\0"),
            "the end, padded to four: {:?}",
            &text[text.len() - 16..]
        );
    }

    #[test]
    fn the_machine_s_cpio_agrees_where_there_is_one() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/f", 0o644, b"12345");
        let bytes = archive.finish();
        let place = tempfile::tempdir().expect("a temporary directory");
        let file = place.path().join("a.cpio");
        std::fs::write(&file, bytes).expect("written");
        let listing = std::process::Command::new("cpio").arg("-it").arg("-F").arg(&file).output();
        let Ok(listing) = listing else { return };
        assert_eq!(String::from_utf8_lossy(&listing.stdout), "d\nd/f\n");
    }
}
