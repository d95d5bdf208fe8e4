//! Where `build.rs` finds the bit fields of nginx's structs, next to where C code finds them when it
//! runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nginx_consul_e2e::nginx::workspace;

use crate::native::{compile, headers};

#[path = "../../../src/module/ffi/bits/probe.rs"]
mod probe;

/// Prints each field of a list, as a program that sets it.
const PROGRAM: &str = r#"
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>
#include <stdio.h>

#define FIELD(type, field)                                                     \
    {                                                                          \
        type     value;                                                        \
        size_t   i;                                                            \
        memset(&value, 0, sizeof(type));                                       \
        value.field = ~value.field;                                            \
        printf("%s.%s ", #type, #field);                                       \
        for (i = 0; i < sizeof(type); i++) {                                   \
            printf("%02x", ((unsigned char *) &value)[i]);                     \
        }                                                                      \
        printf("\n");                                                          \
    }

int main(void) {
#include "list.c"
    return 0;
}
"#;

fn folder() -> PathBuf {
    workspace().join("src/module/ffi/bits")
}

/// What a list looks like in its object file.
fn probed(list: &str) -> Vec<probe::Field> {
    // A folder of its own: tests run side by side.
    let scratch = tempfile::tempdir().expect("a folder");
    let (source, object) = (scratch.path().join("list.c"), scratch.path().join("list.o"));
    fs::write(&source, list).expect("the list");
    compile(&object, &source, &[&["-c".to_owned(), "-w".to_owned()], &headers()[..]].concat());
    let fields = probe::read(&fs::read(&object).expect("the object file"));
    fields.expect("the object file holds the fields")
}

#[test]
fn bit_fields_are_where_a_running_program_sets_them() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (source, program) = (scratch.path().join("program.c"), scratch.path().join("program"));
    fs::write(&source, PROGRAM).expect("the program");
    let list = format!("-I{}", folder().display());
    compile(&program, &source, &[&["-w".to_owned(), list], &headers()[..]].concat());
    let output = Command::new(&program).output().expect("the program runs");
    let text = String::from_utf8(output.stdout).expect("it prints text");
    let set = text.lines().filter_map(|line| line.split_once(' '));
    let set: BTreeMap<String, String> = set.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert!(set.contains_key("ngx_event_t.timer_set"), "{text}");

    let list = fs::read_to_string(folder().join("list.c")).expect("the list");
    let name = |field: &probe::Field| format!("{}.{}", field.owner, field.name);
    let hex = |field: &probe::Field| field.value.iter().map(|b| format!("{b:02x}")).collect();
    let probed: BTreeMap<String, String> =
        probed(&list).iter().map(|field| (name(field), hex(field))).collect();
    assert_eq!(probed, set);
}

/// bindgen starts anew with bit fields that follow a short one; C puts them into the same word. That
/// is how nginx 1.30 has them in its request.
#[test]
fn bit_fields_behind_a_short_one_are_found() {
    let list = r#"
#include "list.c"
typedef struct {
    unsigned short  port;
    unsigned        count:16;
    unsigned        subrequests:8;
    unsigned        blocked:25;
    unsigned        waited:1;
} ngx_http_planted_t;
FIELD(ngx_http_planted_t, count)
FIELD(ngx_http_planted_t, subrequests)
FIELD(ngx_http_planted_t, blocked)
FIELD(ngx_http_planted_t, waited)
"#;
    let list = list.replace("list.c", &folder().join("list.c").display().to_string());
    let mut fields = probed(&list);
    fields.retain(|field| field.owner == "ngx_http_planted_t");
    let constants = probe::constants(&fields, cfg!(target_endian = "little"));
    let constants = constants.expect("all lie in a word");
    assert!(constants.contains("pub(crate) mod planted {\n    use nginx_sys::ngx_http_planted_t"));
    let has = |line: &str| assert!(constants.contains(line), "{line} in\n{constants}");
    has("assert!(size_of::<Owner>() == 12)");
    if cfg!(target_endian = "little") {
        has("COUNT: Number<Owner> = Number::at(2, 0x0000ffff)");
        has("SUBREQUESTS: Number<Owner> = Number::at(4, 0x000000ff)");
        // 25 bits have no room behind 8 others.
        has("BLOCKED: Number<Owner> = Number::at(8, 0x01ffffff)");
        has("WAITED: Flag<Owner> = Flag::at(11, 0x02)");
    }
}

#[test]
fn an_object_file_without_bit_fields_is_an_error() {
    assert!(probe::read(b"\x7fELF and nothing else").is_err());
    assert!(probe::read(b"nginx-bit-field:ngx_event_t.timer_set\0").is_err());
}
