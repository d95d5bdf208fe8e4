//! `consul_state path [valid=time] | off`.

use std::fs;
use std::io;
use std::path::Path;

use super::args::{self, Args, Parsed};
use crate::upstreams::{StateFile, parent};

/// `None` is `off`.
pub(super) fn state_file(args: &Args<'_>) -> Parsed<Option<StateFile>> {
    let (name, mut valid) = (args.name, None);
    match args.words {
        [b"off"] => return Ok(None),
        [b"off", word, ..] | [word @ b"", ..] => return Err(args::invalid(name, word)),
        _ => {}
    }
    args.parameters(1, |parameter, time| {
        let time = args::positive_time(name, time.as_bytes()).ok().filter(|_| parameter == "valid");
        valid = Some(time.ok_or(None)?);
        Ok(())
    })?;
    let path = args::prefix_path(args.cf, args.words[0])?;
    check_path(&path).map_err(|why| {
        format!("can't use \"{}\" of the \"{name}\" directive ({why})", path.display())
    })?;
    Ok(Some(StateFile { path, valid }))
}

/// What is certain to be wrong while the configuration is read.
fn check_path(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let directory = parent(path);
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("\"{}\" is no directory", directory.display())),
        // The last one is made, as nginx does for its cache paths.
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent(directory).is_dir() => Ok(()),
        Err(e) => Err(format!("directory \"{}\": {e}", directory.display())),
    }
}
