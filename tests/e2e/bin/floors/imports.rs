//! What a file imports and which paths it names.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, File, Item, ItemUse, Lit, Macro, Meta, Path, UseTree};

use crate::house::Name;

/// What the names stand for that a file imports, and all paths into its crate, with their lines.
pub(crate) type Imports = (Vec<(String, Name)>, Vec<(usize, Name)>);

/// Of the file of the module `own`, which declares these children.
pub(crate) fn of(file: &File, own: &Name, children: &[String]) -> Imports {
    let mut finder =
        Finder { own: own.clone(), names: BTreeMap::new(), aliases: Vec::new(), paths: Vec::new() };
    for child in children {
        finder.names.insert(child.clone(), [own.clone(), vec![child.clone()]].concat());
    }
    // An import may stand below what uses it.
    for item in &file.items {
        if let Item::Use(item) = item {
            finder.add_use(item);
        }
    }
    for item in &file.items {
        finder.visit_item(item);
    }
    (finder.aliases, finder.paths)
}

/// Whether an item is there in tests only. This project writes `test` first.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let text: String = list.tokens.to_string().split_whitespace().collect();
            text == "test" || text.starts_with("all(test")
        }
        _ => false,
    })
}

/// `#[path = "…"]`.
pub(crate) fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

struct Finder {
    own: Name,
    /// What a first element stands for.
    names: BTreeMap<String, Name>,
    aliases: Vec<(String, Name)>,
    paths: Vec<(usize, Name)>,
}

impl Finder {
    fn add_use(&mut self, item: &ItemUse) {
        if is_test(&item.attrs) || item.leading_colon.is_some() {
            return;
        }
        let line = item.use_token.span.start().line;
        self.add_tree(&item.tree, &[], line);
    }

    fn add_tree(&mut self, tree: &UseTree, before: &[String], line: usize) {
        let joined = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => {
                self.add_tree(&path.tree, &joined(path.ident.to_string()), line);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(tree, before, line));
            }
            UseTree::Name(name) if name.ident == "self" => {
                let alias = before.last().cloned().unwrap_or_default();
                self.import(alias, before, line);
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                self.import(name.clone(), &joined(name), line);
            }
            UseTree::Rename(rename) => {
                let path = joined(rename.ident.to_string());
                self.import(rename.rename.to_string(), &path, line);
            }
            UseTree::Glob(_) => self.import("*".to_owned(), before, line),
        }
    }

    fn import(&mut self, alias: String, path: &[String], line: usize) {
        if let Some(target) = self.resolve(path) {
            self.paths.push((line, target.clone()));
            self.aliases.push((alias.clone(), target.clone()));
            self.names.insert(alias, target);
        }
    }

    /// The path from the root, if it leads into this crate.
    fn resolve(&self, path: &[String]) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([&self.own, rest].concat()),
            "super" => {
                let outer = self.own.len().checked_sub(1)?;
                let ups = rest.iter().take_while(|name| *name == "super").count();
                let depth = outer.checked_sub(ups)?;
                Some([&self.own[..depth], &rest[ups..]].concat())
            }
            _ => Some([self.names.get(first)?, rest].concat()),
        }
    }

    fn name(&mut self, path: &[String], line: usize) {
        // A single name is an import's, which is counted already, or the file's own.
        if path.len() > 1 {
            self.paths.extend(self.resolve(path).map(|target| (line, target)));
        }
    }

    /// Paths in the arguments of a macro.
    fn name_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut colons, mut line) = (0, 0);
        for token in tokens {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.name(&path, line);
                        path.clear();
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                }
                other => {
                    self.name(&path, line);
                    path.clear();
                    if let TokenTree::Group(group) = other {
                        self.name_tokens(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.name(&path, line);
    }
}

impl Visit<'_> for Finder {
    fn visit_item(&mut self, item: &Item) {
        if !is_test(attributes(item)) && !matches!(item, Item::Use(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        // In a function.
        self.add_use(item);
    }

    fn visit_path(&mut self, path: &Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |first| first.ident.span().start().line);
        if path.leading_colon.is_none() {
            self.name(&names, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &Macro) {
        self.visit_path(&call.path);
        self.name_tokens(call.tokens.clone());
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
