//! The ACL token of a request.

use std::io;
use std::path::{Path, PathBuf};

use crate::file;
use crate::model::Secret;

/// A token longer than this is a wrong file, not a token.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// Where the token of an endpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// `consul_token`.
    Value(Secret),
    /// `consul_token_file`: read again for each request.
    File {
        /// The file.
        path: PathBuf,
        /// What it held when the configuration was read; used until it can be read again.
        initial: Secret,
    },
}

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Missing, not permitted, not a regular file, or longer than 64 KiB.
    #[error("cannot read token file {path:?} ({source})")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing but white space.
    #[error("empty token")]
    Empty,
    /// A line break, a control character or a character outside ASCII: no HTTP header can hold it.
    #[error("the token has a character that no HTTP header can hold")]
    Invalid,
}

impl Token {
    /// A token given in the configuration; white space around it is dropped.
    ///
    /// # Errors
    ///
    /// [`TokenError::Empty`] and [`TokenError::Invalid`].
    pub fn value(text: &str) -> Result<Self, TokenError> {
        Ok(Token::Value(check(text)?))
    }

    /// A token in a file, read now.
    ///
    /// # Errors
    ///
    /// The file cannot be read or holds no token.
    pub fn file(path: &Path) -> Result<Self, TokenError> {
        Ok(Token::File { path: path.to_owned(), initial: read(path)? })
    }
}

/// The token in use by one thread: follows its file.
#[derive(Debug)]
pub(crate) struct CurrentToken {
    source: Option<Token>,
    value: Option<Secret>,
}

impl CurrentToken {
    pub(crate) fn new(source: Option<Token>) -> Self {
        let value = source.as_ref().map(|token| match token {
            Token::Value(value) | Token::File { initial: value, .. } => value.clone(),
        });
        CurrentToken { source, value }
    }

    /// The token for the next request. A file is read each time, which costs less than the request;
    /// while it can't be used (one that is being written is empty), the last token is.
    pub(crate) fn get(&mut self) -> Option<&Secret> {
        if let Some(Token::File { path, .. }) = &self.source {
            self.value = read(path).ok().or(self.value.take());
        }
        self.value.as_ref()
    }

    /// The token of the last request.
    pub(crate) fn last(&self) -> Option<&Secret> {
        self.value.as_ref()
    }
}

fn read(path: &Path) -> Result<Secret, TokenError> {
    let unreadable = |source| TokenError::Unreadable { path: path.to_owned(), source };
    let bytes = file::read(path, MAX_TOKEN_FILE).map_err(unreadable)?;
    check(std::str::from_utf8(&bytes).map_err(|_| TokenError::Invalid)?)
}

fn check(text: &str) -> Result<Secret, TokenError> {
    let text = text.trim();
    if text.is_empty() {
        Err(TokenError::Empty)
    } else if text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        Ok(Secret::new(text))
    } else {
        Err(TokenError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn current(token: &mut CurrentToken) -> String {
        token.get().map(|t| t.expose().to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_rotated_file_is_read_again_and_a_lost_one_keeps_the_last_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "first\n").unwrap();
        let mut token = CurrentToken::new(Some(Token::file(&path).unwrap()));
        assert_eq!(current(&mut token), "first");
        fs::write(&path, "  second  \n").unwrap();
        assert_eq!(current(&mut token), "second");
        fs::write(&path, "").unwrap();
        assert_eq!(current(&mut token), "second", "an empty file");
        fs::remove_file(&path).unwrap();
        assert_eq!(current(&mut token), "second", "no file");
        fs::write(&path, "third").unwrap();
        assert_eq!(current(&mut token), "third");
    }

    #[test]
    fn refuses_what_no_header_can_hold() {
        assert_eq!(Token::value(" \n").unwrap_err().to_string(), "empty token");
        assert!(matches!(Token::value("a\nb"), Err(TokenError::Invalid)));
        assert!(matches!(Token::value("ä"), Err(TokenError::Invalid)));
        let missing = Token::file(Path::new("/nonexistent/token")).unwrap_err().to_string();
        assert!(
            missing.starts_with("cannot read token file \"/nonexistent/token\" ("),
            "{missing}"
        );
    }

    #[test]
    fn never_shows() {
        let token = Token::value("s3cret").unwrap();
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
