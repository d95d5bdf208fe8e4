//! The query arguments of a request.

use super::response::Refusal;
use crate::text::quote;

/// Query arguments, which narrow a request.
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
    /// An argument is unknown (400): a request that was meant to be narrowed would not be.
    pub fn parse(args: &[u8]) -> Result<Arguments, Refusal> {
        let mut arguments = Arguments::default();
        for (name, value) in form_urlencoded::parse(args) {
            let argument = match &*name {
                "upstream" => &mut arguments.upstream,
                "node" => &mut arguments.node,
                name => {
                    let name = quote(name);
                    return Err(bad(format!(
                        "there is no argument \"{name}\", only \"upstream\" and \"node\""
                    )));
                }
            };
            if value.is_empty() || argument.replace(value.into_owned()).is_some() {
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
