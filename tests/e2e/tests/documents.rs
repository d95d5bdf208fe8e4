//! What the documentation names is there: files, headings behind links, tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nginx_consul_e2e::nginx;

/// Folders that a path in the documentation begins with.
const FOLDERS: [&str; 5] = ["src/", "tests/", "scripts/", "docs/", "nginx-conf/"];

/// README, CHANGELOG and `docs/*.md`, with their texts.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(nginx::workspace().join("docs")).expect("docs").flatten();
    let markdown =
        docs.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "md"));
    let top = ["README.md", "CHANGELOG.md"].map(|name| nginx::workspace().join(name));
    let paths: Vec<PathBuf> = markdown.chain(top).collect();
    assert!(paths.len() >= 9, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of a document outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Texts in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The anchors of a document: its headings, as GitHub makes them, and those of its own.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let title = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: char| match c {
            ' ' => Some('-'),
            c => (c.is_alphanumeric() || "-_".contains(c)).then_some(c),
        };
        Some(title.chars().filter_map(kept).collect())
    };
    let own = text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
    prose(text).filter_map(heading).chain(own.map(str::to_owned)).collect()
}

#[test]
fn every_path_that_the_documentation_names_exists() {
    let (mut count, mut missing) = (0, Vec::new());
    for (document, text) in documents() {
        for word in quoted(&text).into_iter().filter_map(|q| q.split_whitespace().next()) {
            let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder));
            if !is_path || word.contains(['<', '*', '…', '{']) {
                continue;
            }
            count += 1;
            if !nginx::workspace().join(word).exists() {
                missing.push(format!("{}: {word}", document.display()));
            }
        }
    }
    assert!(count > 60, "{count} paths found");
    assert!(missing.is_empty(), "no such file:\n{}", missing.join("\n"));
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    let (mut count, mut broken) = (0, Vec::new());
    for (document, text) in documents() {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().expect("a folder").join(file),
            };
            let is_there = target.exists();
            if !is_there || !anchor.is_empty() && !anchors(&read(&target)).contains(anchor) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(count > 100, "{count} links found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_test_that_the_list_of_faults_names_exists() {
    let text = read(&nginx::workspace().join("docs/faults.md"));
    let tests = nginx::workspace().join("tests/e2e/tests");
    let (mut count, mut missing) = (0, Vec::new());
    for (path, name) in quoted(&text).into_iter().filter_map(|quoted| quoted.rsplit_once("::")) {
        count += 1;
        let file = tests.join(format!("{}.rs", path.replace("::", "/")));
        let has = |text: String| text.contains(&format!("\nfn {name}("));
        if !fs::read_to_string(file).is_ok_and(has) {
            missing.push(format!("{path}::{name}"));
        }
    }
    assert!(count > 80, "{count} tests found");
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}

#[test]
fn a_heading_has_the_anchor_that_github_gives_it() {
    let text = "# A `b_c`: d\n```\n# code\n```\n## nginx's own, \"x\"\n<a id=\"y\"></a>\n";
    let expected = ["a-b_c-d", "nginxs-own-x", "y"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
}
