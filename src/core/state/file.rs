//! Reads the state file, replaces it as a whole, and quarantines a damaged one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::content::{Damage, State};
use crate::file;

/// Only the workers' user, who writes it, and root may read it.
const MODE: u32 = 0o600;

/// Why a state file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It exists, but can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not as it was written.
    #[error("{0}")]
    Damaged(#[from] Damage),
}

/// The path with something appended to its last name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads the state file; `None` if there is none. Never blocks, whatever lies at the path, and
/// follows no link there: root reads in a directory that another user may write.
///
/// # Errors
///
/// It can't be read, which a directory is a case of, or is damaged or longer than `limit` bytes.
pub fn load(path: &Path, limit: u64) -> Result<Option<State>, LoadError> {
    let damage = |text: &str| Err(Damage::Content(text.to_owned()).into());
    let opened = match file::open(path, OFlags::NOFOLLOW) {
        Ok(opened) => opened,
        Err(error) => match (Errno::from_io_error(&error), error.kind()) {
            (_, ErrorKind::NotFound) => return Ok(None),
            (Some(Errno::LOOP), _) => return damage("it is a symbolic link"),
            (None, ErrorKind::InvalidInput) => return damage(&error.to_string()),
            _ => return Err(error.into()),
        },
    };
    match file::read_to_end(opened, limit) {
        Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(Damage::TooLong(limit).into()),
        bytes => Ok(Some(State::decode(&bytes?)?)),
    }
}

/// Renames a damaged file to `<path>.damaged`, in place of an earlier one, and gives that path.
///
/// # Errors
///
/// As `rename`.
pub fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let quarantined = beside(path, ".damaged");
    fs::rename(path, &quarantined)?;
    Ok(quarantined)
}

/// Replaces the state file: a reader finds the old bytes or the new ones, also after a crash at any
/// point. `false`, and nothing is done, if another process is writing it.
///
/// The bytes go to `<path>.tmp` first. That file is locked while it is written; the lock ends with the
/// process, and the next writer reuses a file that a killed one left.
///
/// # Errors
///
/// The file system's; the old file is still there.
pub fn save(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let temporary = beside(path, ".tmp");
    let Some(mut file) = lock(&temporary)? else { return Ok(false) };
    let written = fill(&mut file, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Frees the space, in case the disk is full.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(path)?;
    Ok(true)
}

/// Opens the temporary file and locks it; `None` if another process has it.
fn lock(temporary: &Path) -> io::Result<Option<File>> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(temporary)
    };
    let file = match open().and_then(own) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            // A killed writer that ran as another user left it, or it is something else altogether.
            fs::remove_file(temporary).map_err(|_| error)?;
            open().and_then(own)?
        }
        opened => opened?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Between open and lock, another writer may have renamed it to the state file.
    let mine = file.metadata()?;
    let is_still_there = fs::symlink_metadata(temporary)
        .is_ok_and(|there| there.ino() == mine.ino() && there.dev() == mine.dev());
    Ok(is_still_there.then_some(file))
}

/// Refuses a file that another user owns or that has another link: that user could read or change the
/// state, or have a file of another name overwritten.
fn own(file: File) -> io::Result<File> {
    let found = file.metadata()?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    if !(found.is_file() && is_own && found.nlink() == 1) {
        return Err(Errno::PERM.into());
    }
    Ok(file)
}

fn fill(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the rename durable. Some file systems can't, and return `EINVAL`.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    match File::open(directory.unwrap_or(Path::new(".")))?.sync_all() {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}
