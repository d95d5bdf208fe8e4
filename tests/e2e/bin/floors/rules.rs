//! Which imports are faults.

use std::collections::BTreeSet;
use std::fmt;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::house::{House, Name};

/// What is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An import from a module that is not declared above, or from the module's own head.
    Upward { place: String, from: String, to: String },
    /// Modules that import each other.
    Circle(Vec<String>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Upward { place, from, to } => write!(f, "{place}: {from} imports up from {to}"),
            Fault::Circle(modules) => write!(f, "circle: {}", modules.join(", ")),
        }
    }
}

/// All of a crate's faults.
pub(crate) fn faults(house: &House) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    let mut graph: DiGraphMap<&Name, ()> = DiGraphMap::new();
    let owned: Vec<(&Name, usize, Name)> = house
        .modules
        .iter()
        .flat_map(|(from, module)| {
            module.paths.iter().filter_map(move |(line, path)| {
                let to = house.module_of(path).filter(|to| to != from)?;
                Some((from, *line, to))
            })
        })
        .collect();
    for (from, line, to) in &owned {
        graph.add_edge(from, to, ());
        if is_upward(house, from, to) && seen.insert((*from, to)) {
            let place = format!("{}:{line}", house.modules[*from].file.display());
            faults.push(Fault::Upward { place, from: text(from), to: text(to) });
        }
    }
    let circles = tarjan_scc(&graph).into_iter().filter(|modules| modules.len() > 1);
    faults.extend(circles.map(|modules| {
        let mut names: Vec<String> = modules.into_iter().map(text).collect();
        names.sort();
        Fault::Circle(names)
    }));
    faults
}

/// Whether `to` is not below `from`. A head stands on its own modules.
fn is_upward(house: &House, from: &[String], to: &[String]) -> bool {
    let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let (Some(own), Some(other)) = (from.get(shared), to.get(shared)) else {
        return to.len() <= from.len();
    };
    let children = &house.modules[&from[..shared]].children;
    let floor = |name| children.iter().position(|child| child == name);
    floor(other) > floor(own)
}

fn text(name: &Name) -> String {
    if name.is_empty() { "lib".to_owned() } else { name.join("::") }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Faults of a crate of these files.
    fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let faults = faults(&House::read(&folder.path().join("lib.rs")));
        let prefix = format!("{}/", folder.path().display());
        faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect()
    }

    #[test]
    fn imports_that_run_down_are_no_fault() {
        let faults = faults_of(&[
            ("lib.rs", "mod ground;\nmod room;\nuse room::Chair;"),
            ("ground.rs", "pub struct Floor;"),
            ("room.rs", "mod leg;\npub mod chair;\npub use chair::Chair;\nfn f() { leg::new(); }"),
            ("room/leg.rs", "use crate::ground::Floor;\npub fn new() {}"),
            ("room/chair.rs", "use super::leg;\npub struct Chair;\nfn f() { super::leg::new() }"),
        ]);
        assert_eq!(faults, [""; 0]);
    }

    #[test]
    fn an_upward_import_is_named_with_its_line() {
        let faults = faults_of(&[
            ("lib.rs", "mod ground;\nmod room;"),
            ("ground.rs", "\nuse crate::room::Chair;"),
            ("room.rs", "pub struct Chair;"),
        ]);
        assert_eq!(faults, ["ground.rs:2: ground imports up from room"]);
    }

    #[test]
    fn a_circle_is_named_with_all_its_modules() {
        let faults = faults_of(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "fn f() -> crate::c::C { todo!() }\npub struct A;"),
            ("b.rs", "pub struct B(crate::a::A);"),
            ("c.rs", "use crate::b::{self, B};\npub struct C;"),
        ]);
        assert_eq!(faults, ["a.rs:1: a imports up from c", "circle: a, b, c"]);
    }

    #[test]
    fn a_module_that_imports_from_its_own_head_imports_up() {
        let faults = faults_of(&[
            ("lib.rs", "mod room;"),
            ("room.rs", "mod chair;\npub struct Room;\npub use chair::Chair;"),
            ("room/chair.rs", "use super::Room;\npub struct Chair(Room);"),
        ]);
        assert_eq!(
            faults,
            ["room/chair.rs:1: room::chair imports up from room", "circle: room, room::chair"]
        );
    }

    #[test]
    fn a_name_that_a_head_passes_on_is_where_it_stands() {
        let faults = faults_of(&[
            ("lib.rs", "mod room;"),
            ("room.rs", "mod leg;\nmod chair;\npub use chair::Chair;\npub use leg::*;"),
            ("room/leg.rs", "use super::Chair;\npub struct Leg;"),
            ("room/chair.rs", "pub struct Chair;"),
        ]);
        assert_eq!(faults, ["room/leg.rs:1: room::leg imports up from room::chair"]);
    }

    #[test]
    fn paths_in_macros_count_and_tests_do_not() {
        let faults = faults_of(&[
            ("lib.rs", "mod a;\nmod b;"),
            (
                "a.rs",
                "fn f() { println!(\"{}\", crate::b::B); }\n#[cfg(test)]\nmod tests { use crate::c; }",
            ),
            ("b.rs", "pub const B: u8 = 1;"),
        ]);
        assert_eq!(faults, ["a.rs:1: a imports up from b"]);
    }
}
