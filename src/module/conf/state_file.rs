//! `consul_state path [valid=time] | off`.

use std::fs;
use std::io;
use std::path::Path;

use nginx_consul_core::directives::words::{invalid, positive_time};

use super::args::{Args, Parsed, path};
use crate::ffi::Base;
use nginx_consul_core::table_writer::{StateFile, parent};

/// `None` is `off`.
pub(super) fn state_file(args: &Args<'_>) -> Parsed<Option<StateFile>> {
    let (words, mut valid) = (&args.words, None);
    match words.words {
        [b"off"] => return Ok(None),
        [b"off", word, ..] | [word @ b"", ..] => return Err(invalid(words.name, word)),
        _ => {}
    }
    words.parameters(1, |parameter, time| {
        let time = positive_time(words.name, time.as_bytes()).ok().filter(|_| parameter == "valid");
        valid = Some(time.ok_or(None)?);
        Ok(())
    })?;
    let path = path(args.cf, words.first(), Base::Prefix)?;
    check_path(&path).map_err(|why| {
        format!("can't use \"{}\" of the \"{}\" directive ({why})", path.display(), words.name)
    })?;
    Ok(Some(StateFile { path, valid, limit: 0 }))
}

/// Errors that are certain while the configuration is read.
fn check_path(path: &Path) -> Result<(), String> {
    let directory = parent(path);
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("\"{}\" is no directory", directory.display())),
        // The master creates the last directory of the path, as nginx does for its cache paths.
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent(directory).is_dir() => Ok(()),
        Err(e) => Err(format!("directory \"{}\": {e}", directory.display())),
    }
}
