//! Reads files that others make: whatever lies at the path, it neither blocks nor takes more memory
//! than it may.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The content of a regular file, or of one that links lead to: tokens and certificates of Kubernetes
/// and of Vault's agent are such links.
///
/// # Errors
///
/// The system's; it is not a regular file, or longer than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_to_end(open(path, OFlags::empty())?, limit)
}

/// Opens a regular file, with more flags.
///
/// # Errors
///
/// The system's; it is a directory, or not a regular file.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    // Opening a FIFO would block until somebody writes to it.
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // Of what was opened: what lies at the path may be another file by now.
    let found = file.metadata()?.file_type();
    if found.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// What a file has from here on.
///
/// # Errors
///
/// The system's; it is longer than `limit` bytes.
pub(crate) fn read_to_end(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let error = format!("it is longer than {limit} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, error));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_a_regular_file_within_its_limit_is_read_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "1234").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("link", at("link of a link")).unwrap();
        for name in ["file", "link", "link of a link"] {
            assert_eq!(read(&at(name), 4).unwrap(), b"1234", "{name}");
        }
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
        symlink("fifo", at("link to a fifo")).unwrap();
        for (path, error) in [
            (at("fifo"), "it is not a regular file"),
            (at("link to a fifo"), "it is not a regular file"),
            ("/dev/zero".into(), "it is not a regular file"),
            (dir.path().to_owned(), "is a directory"),
        ] {
            assert_eq!(read(&path, 4).unwrap_err().to_string(), error, "{path:?}");
        }
        assert_eq!(read(&at("file"), 3).unwrap_err().to_string(), "it is longer than 3 bytes");
        assert_eq!(read(&at("none"), 3).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
