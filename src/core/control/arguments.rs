//! What follows the question mark.

use percent_encoding::percent_decode;

use super::Refusal;
use crate::text::quote;

/// Which of several are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Only in this `upstream`.
    pub upstream: Option<String>,
    /// The instance of this node.
    pub node: Option<String>,
}

impl Arguments {
    /// Reads the arguments of a request.
    ///
    /// # Errors
    ///
    /// There is one that means nothing (400): what was to be narrowed would not be.
    pub fn parse(args: &[u8]) -> Result<Arguments, Refusal> {
        let mut arguments = Arguments::default();
        for arg in args.split(|byte| *byte == b'&').filter(|arg| !arg.is_empty()) {
            let mut parts = arg.splitn(2, |byte| *byte == b'=');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next());
            let value = percent_decode(value.unwrap_or_default()).decode_utf8_lossy();
            let place = match name {
                b"upstream" => &mut arguments.upstream,
                b"node" => &mut arguments.node,
                _ => {
                    let name = quote(&String::from_utf8_lossy(name));
                    return Err(bad(format!(
                        "there is no argument \"{name}\", only \"upstream\" and \"node\""
                    )));
                }
            };
            if value.is_empty() || place.replace(value.into_owned()).is_some() {
                let name = String::from_utf8_lossy(name);
                return Err(bad(format!("argument \"{name}\" must have one value")));
            }
        }
        Ok(arguments)
    }
}

fn bad(text: String) -> Refusal {
    Refusal::new(400, "ArgumentError", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_narrow_what_is_meant_and_others_are_refused() {
        assert_eq!(Arguments::parse(b""), Ok(Arguments::default()));
        let both = Arguments::parse(b"upstream=my%20api&node=a=b").unwrap();
        assert_eq!((both.upstream.as_deref(), both.node.as_deref()), (Some("my api"), Some("a=b")));
        for args in ["upsteam=api", "upstream", "upstream=", "node=a&node=b", "x", "=a"] {
            assert_eq!(Arguments::parse(args.as_bytes()).unwrap_err().status, 400, "{args}");
        }
    }
}
