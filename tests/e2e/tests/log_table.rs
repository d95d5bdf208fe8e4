//! `docs/logs.md` has every line that the source writes, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nginx_consul_e2e::nginx;

/// Functions that make lines for a call that only hands them on.
const MAKERS: [&str; 6] = [
    "fn removal_line(",
    "pub(super) fn notice(",
    "pub fn set_line(",
    "pub fn removed_line(",
    "pub fn expired_line(",
    "fn not_taken(",
];
/// What such a function puts into a line.
const PARTS: [&str; 5] = [
    "overview watches show",
    "every service is polled",
    "connections of earlier workers",
    "*s",
    "until it is",
];

/// A line as the source has it: its level, if that is fixed, and its text with `*` for what differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    text: String,
    level: Option<String>,
    place: String,
}

/// Rust files without their tests.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders = vec![nginx::workspace().join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["tests", "testing", "examples", "model"].contains(&&*name) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && name != "tests" {
                let text = fs::read_to_string(&path).expect("a source");
                let end =
                    ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(all(test, not(loom)))]\nmod tests {"]
                        .iter()
                        .filter_map(|mark| text.find(mark))
                        .min();
                let text = text[..end.unwrap_or(text.len())].to_owned();
                sources.push((path, text));
            }
        }
    }
    assert!(sources.len() > 60, "{} sources", sources.len());
    sources
}

/// The string literals of a piece of source, as patterns.
fn literals(source: &str) -> Vec<String> {
    let (mut literals, mut rest) = (Vec::new(), source);
    while let Some(start) = rest.find('"') {
        let mut literal = String::new();
        let mut chars = rest[start + 1..].char_indices().peekable();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = start + 1 + at + 1;
                    break;
                }
                '\\' => match chars.next() {
                    Some((_, '\n')) => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                    Some((_, c)) => literal.push(c),
                    None => {}
                },
                '{' => {
                    while chars.next().is_some_and(|(_, c)| c != '}') {}
                    literal.push('*');
                }
                c => literal.push(c),
            }
        }
        literals.push(literal);
        rest = &rest[end.min(rest.len())..];
    }
    literals
}

/// The arguments of the call whose parenthesis or brace is the last character of `source[..at]`.
fn arguments(source: &str, at: usize) -> &str {
    let (mut depth, mut in_text, mut escaped) = (1, false, false);
    for (n, c) in source[at..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = in_text,
            '"' => in_text = !in_text,
            '(' | '{' | '[' if !in_text => depth += 1,
            ')' | '}' | ']' if !in_text => {
                depth -= 1;
                if depth == 0 {
                    return &source[at..at + n];
                }
            }
            _ => {}
        }
    }
    panic!("a call without an end: {}", &source[at..(at + 80).min(source.len())]);
}

/// The lines that a file's calls write.
fn lines_of(path: &Path, source: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for call in ["ngx_log_error!(", ".log(", "trace!(", ".push(("] {
        let mut from = 0;
        while let Some(found) = source[from..].find(call) {
            let at = from + found + call.len();
            from = at;
            let arguments = arguments(source, at);
            let number = source[..at].lines().count();
            let place = format!("{}:{number}", path.display());
            if let Some(level) = level(call, arguments) {
                let own = literals(arguments);
                let texts = match own.first() {
                    Some(text) => vec![text.clone()],
                    None => made_before(source, at, arguments, &place),
                };
                lines.extend(texts.into_iter().map(|text| Line {
                    text: text.strip_prefix("consul: ").unwrap_or(&text).to_owned(),
                    level: level.clone(),
                    place: place.clone(),
                }));
            }
        }
    }
    lines
}

/// The level of a call, `Some(None)` if the call has it from elsewhere; `None` if it only hands a
/// line on, or isn't about the log.
fn level(call: &str, arguments: &str) -> Option<Option<String>> {
    let first = arguments.split(',').next().unwrap_or_default().trim();
    let handed_on = [
        "level, line",
        "level, self.as_ptr(), \"consul: {}\"",
        "level: Level, line",
        "Level::Notice, override_line",
        "Level::Notice, notice",
        "nginx_sys::NGX_LOG_EMERG, cf.log()",
    ];
    if handed_on.iter().any(|start| arguments.trim().starts_with(start)) {
        return None;
    }
    match call {
        "trace!(" => Some(Some("debug".to_owned())),
        // In the macro itself.
        "ngx_log_error!(" if first.contains("::nginx_sys") => None,
        "ngx_log_error!(" => Some(match first.strip_prefix("NGX_LOG_") {
            Some("ERR") => Some("error".to_owned()),
            Some(name) => Some(name.to_lowercase()),
            None => None,
        }),
        ".log(" if first == "level" => Some(None),
        _ => Some(Some(first.split("Level::").nth(1)?.to_lowercase())),
    }
}

/// The texts of a line that was made before the call.
fn made_before(source: &str, at: usize, arguments: &str, place: &str) -> Vec<String> {
    let before = &source[..at];
    let just_before = &before[before.len().saturating_sub(120)..];
    let is_made =
        |name: &&str| arguments.contains(name) || just_before.contains(&format!("= {name}"));
    let makers =
        ["removal_line(", "set_line(", "removed_line(", "expired_line(", "notice(", "not_taken("];
    if makers.iter().any(is_made) {
        return Vec::new();
    }
    let name = if arguments.contains("text") { "let text =" } else { "let line =" };
    let made = before.rfind(name).unwrap_or_else(|| panic!("{place}: can't see the text"));
    let text = literals(&before[made..]).into_iter().next();
    vec![text.unwrap_or_else(|| panic!("{place}: can't see the text"))]
}

fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    let mut makers = 0;
    for (path, source) in sources() {
        if path.ends_with("src/module/log.rs") {
            continue;
        }
        let shown = path.strip_prefix(nginx::workspace()).expect("a file of ours").to_owned();
        let source = source.replace("macro_rules! trace", "");
        lines.extend(lines_of(&shown, &source));
        for maker in MAKERS {
            let Some(start) = source.find(maker) else { continue };
            makers += 1;
            let body = source[start..].find('{').expect("a body") + start + 1;
            let texts = literals(arguments(&source, body));
            let is_line =
                |text: &String| text.len() > 14 && !PARTS.iter().any(|p| text.starts_with(p));
            lines.extend(texts.into_iter().filter(is_line).map(|text| Line {
                text,
                level: None,
                place: format!("{}: {maker}", shown.display()),
            }));
        }
    }
    assert_eq!(makers, MAKERS.len());
    lines
}

fn table() -> String {
    let path = nginx::workspace().join("docs/logs.md");
    fs::read_to_string(&path).expect("docs/logs.md")
}

/// The table's rows: text and level.
fn rows() -> Vec<(String, String)> {
    let text = table();
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        assert!(cells.len() == 4, "a row has four cells: {line}");
        let text = cells[0].strip_suffix('`').expect("a line in backquotes");
        assert!(cells[2].len() > 8 && cells[3].len() > 5, "no cause or nothing to do: {line}");
        Some((text.to_owned(), cells[1].to_owned()))
    };
    let tables = text.split_once("## Peers").expect("the tables").1;
    let tables = tables.split_once("## Reasons").expect("their end").0;
    tables.lines().filter_map(row).collect()
}

/// Whether a pattern with `*` fits a text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// How much of a pattern is text.
fn weight(pattern: &str) -> usize {
    pattern.chars().filter(|&c| c != '*').count()
}

#[test]
fn every_line_is_in_the_table_and_the_table_has_no_other() {
    let (lines, rows) = (lines(), rows());
    assert!(lines.len() > 40, "{} lines found: {lines:#?}", lines.len());
    // Each row is the line that fits it most closely.
    let mut described: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (text, level) in &rows {
        let best = lines.iter().filter(|l| fits(&l.text, text)).max_by_key(|l| weight(&l.text));
        let Some(line) = best else {
            wrong.push(format!("docs/logs.md has a line that no code writes: {text}"));
            continue;
        };
        described.entry(&line.text).or_default().push(text);
        let same = lines.iter().filter(|other| other.text == line.text);
        let levels: BTreeSet<&str> = same.filter_map(|l| l.level.as_deref()).collect();
        if !levels.is_empty() && *level != levels.iter().copied().collect::<Vec<_>>().join(", ") {
            wrong.push(format!("{text}: level {level} in docs/logs.md, {levels:?} in the source"));
        }
    }
    for line in &lines {
        match described.get(&*line.text).map(Vec::as_slice) {
            None => wrong.push(format!("{}: not in docs/logs.md: {}", line.place, line.text)),
            Some([_]) => {}
            Some(several) => wrong.push(format!(
                "{}: {} stands for several rows, so one of them is no line: {several:?}",
                line.place, line.text
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_reason_of_a_failure_is_explained() {
    let text = table();
    let told = text.split_once("## Reasons").expect("the reasons").1;
    let told: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
    let mut count = 0;
    for file in ["transport.rs", "client/error.rs", "fetch.rs"] {
        let path = nginx::workspace().join("src/core/consul").join(file);
        let source = fs::read_to_string(&path).expect("a source");
        for error in source.split("#[error(").skip(1).filter(|e| e.starts_with('"')) {
            let reason = literals(error).swap_remove(0);
            // These never get into the log by themselves.
            let is_inner = ["stopped", "the connection was closed"].contains(&&*reason);
            if is_inner || weight(&reason) < 8 {
                continue;
            }
            count += 1;
            let is_told = told.iter().any(|told| fits(&reason, told));
            assert!(is_told, "{file}: {reason:?} is not among the reasons in docs/logs.md");
        }
    }
    assert!(count >= 12, "{count} reasons found");
}

#[test]
fn every_reason_for_skipping_an_instance_is_explained() {
    let text = table();
    let told = text.split_once("### Why an instance is skipped").expect("the reasons").1;
    let told: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
    let files = ["instances.rs", "../address/host.rs", "kv.rs", "../watch/snapshot.rs"];
    let mut count = 0;
    for file in files {
        let path = nginx::workspace().join("src/core/consul").join(file);
        let source = fs::read_to_string(&path).expect("a source");
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        let code = source.lines().filter(|line| !line.trim_start().starts_with(['/', '#']));
        for reason in literals(&code.collect::<Vec<_>>().join("\n")) {
            if !reason.contains(' ') || reason == "an array" {
                continue;
            }
            count += 1;
            // What is wrong with `Service.Meta` is made of two parts.
            let is_told = told.iter().any(|told| fits(&format!("{reason}*"), told));
            assert!(is_told, "{file}: {reason:?} is not explained in docs/logs.md");
        }
    }
    assert!(count >= 14, "{count} reasons found");
}

#[test]
fn a_pattern_fits_what_it_stands_for() {
    assert!(fits("*: * peer* (+*), index *", "service \"<s>\": <n> peers (+<a>), index <i>"));
    assert!(!fits("*: gone", "service: here"));
    assert!(!fits("a line", "a line and more"));
    let source = "ngx_log_error!(NGX_LOG_ERR, log, \"consul: a \\\"{}\\\" b \\\n   c {x:?}\");";
    assert_eq!(lines_of(Path::new("x"), source)[0].text, "a \"*\" b c *");
}
