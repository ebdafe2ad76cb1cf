//! Reads a crate's module tree and what each module refers to.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// `["link", "frames"]` is `crate::link::frames`; the crate's root is empty.
pub(crate) type ModulePath = Vec<String>;

/// One module: what it defines, imports and mentions, unit tests left out.
#[derive(Debug, Default)]
pub(crate) struct Module {
    pub(crate) path: ModulePath,
    /// Names of items it defines, child modules among them.
    pub(crate) items: BTreeSet<String>,
    /// `use` declarations: local name to the path it stands for, as written.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// Paths of `use …::*`.
    pub(crate) globs: Vec<Vec<String>>,
    /// Every path of two or more segments in its code, as written, and every import.
    pub(crate) mentions: BTreeSet<Vec<String>>,
}

impl Module {
    /// Reads the crate whose root file this is, following `mod name;`.
    pub(crate) fn read_crate(root: &Path) -> Result<Vec<Self>, String> {
        let mut modules = Vec::new();
        let directory = root.parent().map(Path::to_path_buf).unwrap_or_default();
        let file = parse(root)?;
        read_module(&file.items, &[], &directory, &mut modules)?;
        Ok(modules)
    }

    /// A crate given as `(module, source)` pairs, for tests of the rules themselves.
    #[cfg(test)]
    pub(crate) fn from_text(sources: &[(&str, &str)]) -> Vec<Self> {
        let mut modules = Vec::new();
        for (path, text) in sources {
            let path = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            let file = syn::parse_file(text).unwrap();
            let mut reader = Reader { module: Self { path, ..Self::default() } };
            file.items.iter().for_each(|item| reader.visit_item(item));
            modules.push(reader.module);
        }
        modules
    }
}

fn parse(path: &Path) -> Result<syn::File, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    syn::parse_file(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads one module and its children. `directory` is where the files of its child modules lie.
fn read_module(items: &[Item], path: &[String], directory: &Path, modules: &mut Vec<Module>) -> Result<(), String> {
    let mut reader = Reader { module: Module { path: path.to_vec(), ..Module::default() } };
    for item in items {
        reader.visit_item(item);
    }
    modules.push(reader.module);
    for item in items {
        let Item::Mod(child) = item else { continue };
        if is_test_only(&child.attrs) {
            continue;
        }
        let name = child.ident.to_string();
        let child_path = [path, std::slice::from_ref(&name)].concat();
        let child_directory = directory.join(&name);
        match &child.content {
            Some((_, items)) => read_module(items, &child_path, &child_directory, modules)?,
            None => {
                let file = file_of(&name, directory)?;
                read_module(&parse(&file)?.items, &child_path, &child_directory, modules)?;
            }
        }
    }
    Ok(())
}

fn file_of(name: &str, directory: &Path) -> Result<PathBuf, String> {
    let candidates = [directory.join(format!("{name}.rs")), directory.join(name).join("mod.rs")];
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("no file for module {name} in {}", directory.display()))
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

struct Reader {
    module: Module,
}

impl Reader {
    fn import(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.import(&path.tree, prefix);
                prefix.pop();
            }
            UseTree::Name(name) => self.import_as(prefix, name.ident.to_string(), name.ident.to_string()),
            UseTree::Rename(rename) => self.import_as(prefix, rename.ident.to_string(), rename.rename.to_string()),
            UseTree::Glob(_) => {
                self.module.globs.push(prefix.clone());
                self.module.mentions.insert(prefix.clone());
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, prefix)),
        }
    }

    fn import_as(&mut self, prefix: &[String], name: String, local: String) {
        // `use a::b::{self}` is `use a::b`.
        let (path, local) = match prefix.last() {
            Some(last) if name == "self" => {
                let local = if local == "self" { last.clone() } else { local };
                (prefix.to_vec(), local)
            }
            _ => ([prefix, &[name]].concat(), local),
        };
        self.module.mentions.insert(path.clone());
        self.module.imports.insert(local, path);
    }

    /// Paths inside a macro call, which syn leaves as tokens.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.mention(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.mention(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.read_tokens(group.stream());
                    }
                }
            }
        }
        self.mention(path);
    }

    fn mention(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.module.mentions.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, Some(&item.ident)),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if is_test_only(attributes) {
            return;
        }
        self.module.items.extend(name.map(ToString::to_string));
        // A child module is read on its own.
        if !matches!(item, Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.mention(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.read_tokens(call.tokens.clone());
    }
}

/// Names of functions that carry `#[ignore]`, also under `#[cfg_attr(…)]`.
pub(crate) fn ignored_tests(file: &syn::File) -> Vec<String> {
    #[derive(Default)]
    struct Finder(Vec<String>);
    impl<'ast> Visit<'ast> for Finder {
        fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
            let ignored = function.attrs.iter().any(|attribute| match &attribute.meta {
                syn::Meta::List(list) if list.path.is_ident("cfg_attr") => {
                    list.tokens.clone().into_iter().any(|token| token.to_string() == "ignore")
                }
                meta => meta.path().is_ident("ignore"),
            });
            if ignored {
                self.0.push(function.sig.ident.to_string());
            }
            visit::visit_item_fn(self, function);
        }
    }
    let mut finder = Finder::default();
    finder.visit_file(file);
    finder.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(text: &str) -> Vec<String> {
        ignored_tests(&syn::parse_file(text).unwrap())
    }

    #[test]
    fn ignored_tests_are_found_however_they_are_written() {
        assert_eq!(ignored("mod t { #[test] #[ignore] fn a() {} }"), ["a"]);
        assert_eq!(ignored("#[test] #[ignore = \"slow\"] fn b() {}"), ["b"]);
        assert_eq!(ignored("#[cfg_attr(unix, ignore)] #[test] fn c() {}"), ["c"]);
        assert!(ignored("#[test] fn ignore() {}").is_empty());
    }

    #[test]
    fn imports_are_read_in_every_form() {
        let modules = Module::from_text(&[("", "use a::{self, b::C as D, e::*}; fn f() { x::y(); m!(p::q, r); }")]);
        let imports: Vec<_> =
            modules[0].imports.iter().map(|(name, path)| format!("{name}={}", path.join("::"))).collect();
        assert_eq!(imports, ["D=a::b::C", "a=a"]);
        assert_eq!(modules[0].globs, [["a", "e"]]);
        for path in [["x", "y"], ["p", "q"]] {
            assert!(modules[0].mentions.contains(path.map(str::to_owned).as_slice()), "{path:?}");
        }
    }

    #[test]
    fn module_files_are_followed_and_test_modules_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        std::fs::create_dir_all(directory.path().join("b")).unwrap();
        write("lib.rs", "mod a; mod b; mod inline { fn f() {} } #[cfg(test)] mod tests;");
        write("a.rs", "fn f() {}");
        write("b/mod.rs", "mod c;");
        write("b/c.rs", "use crate::a;");
        let modules = Module::read_crate(&directory.path().join("lib.rs")).unwrap();
        let paths: Vec<_> = modules.iter().map(|module| module.path.join("::")).collect();
        assert_eq!(paths, ["", "a", "b", "b::c", "inline"]);
    }
}
