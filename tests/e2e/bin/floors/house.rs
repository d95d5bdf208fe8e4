//! The modules of a crate and what each of them names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Item, ItemMod};

use crate::imports;

/// The path of a module from the crate's root, which is empty.
pub(crate) type Name = Vec<String>;

/// The modules of a crate, tests left out.
pub(crate) struct House {
    pub(crate) modules: BTreeMap<Name, Module>,
}

pub(crate) struct Module {
    pub(crate) file: PathBuf,
    /// In the order of their declarations.
    pub(crate) children: Vec<String>,
    /// What a name that an import brings in stands for; `*` imports are under `*`.
    pub(crate) aliases: Vec<(String, Name)>,
    /// Paths that the code names, with their lines; the first element is resolved.
    pub(crate) paths: Vec<(usize, Name)>,
}

impl House {
    /// Reads a crate from its root file.
    pub(crate) fn read(root: &Path) -> House {
        let mut house = House { modules: BTreeMap::new() };
        house.add(Name::new(), root.to_owned());
        house
    }

    fn add(&mut self, name: Name, file: PathBuf) {
        let text =
            fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let folder =
            if name.is_empty() { file.with_file_name("") } else { file.with_extension("") };
        let declared = parsed.items.iter().filter_map(|item| match item {
            Item::Mod(module) if module.content.is_none() && !imports::is_test(&module.attrs) => {
                Some(module)
            }
            _ => None,
        });
        let mut children: Vec<(String, PathBuf)> = Vec::new();
        for module in declared {
            let child = module.ident.to_string();
            if children.iter().all(|(other, _)| *other != child) {
                let path = file_of(module, &file, &folder);
                children.push((child, path));
            }
        }
        let names: Vec<String> = children.iter().map(|(child, _)| child.clone()).collect();
        let (aliases, paths) = imports::of(&parsed, &name, &names);
        let module = Module { file, children: names, aliases, paths };
        self.modules.insert(name.clone(), module);
        for (child, file) in children {
            self.add([name.clone(), vec![child]].concat(), file);
        }
    }

    /// The module in which the item of a path stands: re-exports are followed.
    pub(crate) fn module_of(&self, path: &[String]) -> Option<Name> {
        self.follow(path, 16)
    }

    fn follow(&self, path: &[String], steps: usize) -> Option<Name> {
        let depth = (0..=path.len()).rev().find(|&n| self.modules.contains_key(&path[..n]))?;
        let (name, rest) = path.split_at(depth);
        let Some(item) = rest.first() else { return Some(name.to_vec()) };
        let module = &self.modules[name];
        let alias = module.aliases.iter().find(|(alias, _)| alias == item);
        if let (Some((_, target)), true) = (alias, steps > 0) {
            // A name from another crate is the importer's own matter.
            let target = [target, &rest[1..]].concat();
            return self.follow(&target, steps - 1).or_else(|| Some(name.to_vec()));
        }
        Some(name.to_vec())
    }
}

fn file_of(module: &ItemMod, file: &Path, folder: &Path) -> PathBuf {
    match imports::path_attribute(&module.attrs) {
        Some(path) => file.with_file_name(path),
        None => folder.join(format!("{}.rs", module.ident)),
    }
}
