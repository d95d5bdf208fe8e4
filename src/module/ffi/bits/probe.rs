//! Reads from the object file of `list.c` where the C compiler has put the bit fields, and writes
//! that as constants for `ffi::bits`. Part of build.rs.

use std::collections::BTreeMap;
use std::fmt::Write;

const NAME: &[u8] = b"nginx-bit-field:";
const END: &[u8] = b"nginx-field-end\0";
/// `char name[96]`, which every struct of nginx is aligned behind.
const NAME_SIZE: usize = 96;

/// A bit field of an nginx struct.
#[derive(Debug)]
pub(crate) struct Field {
    /// The struct's type, such as `ngx_event_t`.
    pub(crate) owner: String,
    /// The field's name.
    pub(crate) name: String,
    /// The struct, with all bits of this field set and no other.
    pub(crate) value: Vec<u8>,
}

/// The fields that are in an object file.
///
/// # Errors
///
/// There is none, or one is damaged: something other than a C compiler of the target made the file.
pub(crate) fn read(object: &[u8]) -> Result<Vec<Field>, String> {
    let starts = find(object, NAME);
    if starts.is_empty() {
        return Err(
            "the object file holds no bit field (is it made for link-time optimization?)".into()
        );
    }
    starts.into_iter().map(|start| read_field(&object[start..])).collect()
}

fn read_field(bytes: &[u8]) -> Result<Field, String> {
    let (name, rest) = bytes.split_at_checked(NAME_SIZE).ok_or("a bit field is cut short")?;
    let name = name[NAME.len()..].split(|b| *b == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let end = find(rest, END).first().copied().ok_or_else(|| format!("{name} has no end"))?;
    let (owner, field) = name.split_once('.').ok_or_else(|| format!("{name} is no field"))?;
    Ok(Field { owner: owner.to_owned(), name: field.to_owned(), value: rest[..end].to_vec() })
}

fn find(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    let at = bytes.windows(what.len()).enumerate();
    at.filter(|(_, window)| *window == what).map(|(at, _)| at).collect()
}

impl Field {
    /// A `Flag`, for one bit, or a `Number`, as an expression.
    fn place(&self, is_little_endian: bool) -> Result<String, String> {
        let first = self.value.iter().position(|byte| *byte != 0);
        let first = first.ok_or_else(|| format!("{} has no bit", self.name))?;
        let bits: u32 = self.value.iter().map(|byte| byte.count_ones()).sum();
        if bits == 1 {
            return Ok(format!("Flag<Owner> = Flag::at({first}, {:#04x})", self.value[first]));
        }
        let at = first.min(self.value.len().saturating_sub(4));
        let word = self.value.get(at..at + 4).and_then(|word| word.try_into().ok());
        let word: [u8; 4] = word.ok_or_else(|| format!("{} is in no word", self.name))?;
        let mask =
            if is_little_endian { u32::from_le_bytes(word) } else { u32::from_be_bytes(word) };
        if mask.count_ones() != bits || (mask >> mask.trailing_zeros()).trailing_ones() != bits {
            return Err(format!("{} does not lie together in a word", self.name));
        }
        Ok(format!("Number<Owner> = Number::at({at}, {mask:#010x})"))
    }
}

/// The constants: a module for each struct, with the struct's name but for what all of nginx's
/// have in theirs.
///
/// # Errors
///
/// A field is wider than 32 bits, or none.
pub(crate) fn constants(fields: &[Field], is_little_endian: bool) -> Result<String, String> {
    let mut owners = BTreeMap::<&str, Vec<&Field>>::new();
    for field in fields {
        owners.entry(&field.owner).or_default().push(field);
    }
    let mut code = String::new();
    for (owner, fields) in owners {
        let module = owner.strip_prefix("ngx_").unwrap_or(owner).trim_end_matches("_t");
        let module = module.strip_prefix("http_").unwrap_or(module);
        let size = fields[0].value.len();
        let _ = writeln!(code, "/// Bit fields of `{owner}`.\npub(crate) mod {module} {{");
        let _ = writeln!(code, "    use nginx_sys::{owner} as Owner;");
        let _ = writeln!(code, "    #[allow(unused_imports)]\n    use super::{{Flag, Number}};");
        let _ = writeln!(code, "    const _: () = assert!(size_of::<Owner>() == {size});");
        for field in fields {
            let name = field.name.to_uppercase();
            let place = field.place(is_little_endian)?;
            let _ = writeln!(code, "    pub(crate) const {name}: {place};");
        }
        code.push_str("}\n");
    }
    Ok(code)
}
