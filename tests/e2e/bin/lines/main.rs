//! Lines of Rust code by folder: those that hold a token, without tests, comments and blank lines.
//!
//! `lines folder…`. An item is a test if its `cfg` asks for `test`; so is the file of a module that
//! is declared so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Parser;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use walkdir::WalkDir;

/// Lines of Rust code, without tests, comments and blank lines
#[derive(Parser)]
#[command(bin_name = "scripts/lines")]
struct Options {
    /// List files too
    #[arg(long)]
    files: bool,
    /// Files and folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// A file as it is counted.
#[derive(Default)]
struct Counted {
    lines: BTreeSet<usize>,
    /// Modules that are tests and lie in files of their own.
    tests: Vec<String>,
}

fn main() {
    let options = Options::parse();
    let mut files: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut tests: Vec<PathBuf> = Vec::new();
    for entry in options.paths.iter().flat_map(WalkDir::new) {
        let path = entry.expect("a readable folder").into_path();
        // Cargo's own name for integration tests.
        let is_test = path.parent().is_some_and(|folder| folder.ends_with("tests"));
        if is_test || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a readable file");
        let tokens = TokenStream::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut counted = Counted::default();
        count(tokens, &mut counted);
        tests.extend(counted.tests.iter().map(|name| folder_of(&path).join(name)));
        files.insert(path, counted.lines.len());
    }
    files.retain(|path, _| !tests.iter().any(|test| path.with_extension("").starts_with(test)));
    print(&files, options.files);
}

/// Where the modules lie that a file declares.
fn folder_of(file: &Path) -> PathBuf {
    let is_root = file.file_name().is_some_and(|name| name == "lib.rs" || name == "main.rs");
    if is_root { file.with_file_name("") } else { file.with_extension("") }
}

fn print(files: &BTreeMap<PathBuf, usize>, each: bool) {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, lines) in files {
        if each {
            println!("{lines:6} {}", path.display());
        }
        // "src/core/watch.rs" counts for "src/core/watch".
        let room: PathBuf = path.with_extension("").components().take(3).collect();
        *folders.entry(room).or_default() += lines;
    }
    for (folder, lines) in folders {
        println!("{lines:6} {}", folder.display());
    }
    println!("{:6} in all", files.values().sum::<usize>());
}

/// Notes the lines of all tokens that are no test's.
fn count(tokens: TokenStream, counted: &mut Counted) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let bang = |tree: &TokenTree| matches!(tree, TokenTree::Punct(p) if p.as_char() == '!');
        if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#') {
            let is_inner = tokens.next_if(bang).is_some();
            match tokens.next_if(|tree| matches!(tree, TokenTree::Group(_))) {
                Some(attribute) if is_comment(&attribute) => {}
                Some(attribute) if !is_inner && is_test(&attribute) => {
                    counted.tests.extend(skip_item(&mut tokens));
                }
                Some(attribute) => {
                    note(&token, counted);
                    note(&attribute, counted);
                }
                None => note(&token, counted),
            }
        } else {
            note(&token, counted);
        }
    }
}

fn note(token: &TokenTree, counted: &mut Counted) {
    match token {
        TokenTree::Group(group) => {
            if group.delimiter() != Delimiter::None {
                counted.lines.insert(group.span_open().start().line);
                counted.lines.insert(group.span_close().start().line);
            }
            count(group.stream(), counted);
        }
        other => counted.lines.extend(other.span().start().line..=other.span().end().line),
    }
}

/// Passes over an item with its further attributes; the name of the module that it declares.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>) -> Option<String> {
    let (mut module, mut was_mod) = (None, false);
    for token in tokens {
        match &token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return None,
            TokenTree::Punct(punct) if punct.as_char() == ';' => return module,
            TokenTree::Ident(name) if was_mod => module = Some(name.to_string()),
            _ => {}
        }
        was_mod = matches!(&token, TokenTree::Ident(name) if name == "mod");
    }
    None
}

/// `#[doc = "…"]`, as which a documentation comment is read.
fn is_comment(attribute: &TokenTree) -> bool {
    squeezed(attribute).starts_with("[doc=")
}

/// A `cfg` that holds in tests only. This project writes `test` first.
fn is_test(attribute: &TokenTree) -> bool {
    let text = squeezed(attribute);
    text.starts_with("[cfg(test") || text.starts_with("[cfg(all(test")
}

fn squeezed(attribute: &TokenTree) -> String {
    attribute.to_string().split_whitespace().collect()
}
