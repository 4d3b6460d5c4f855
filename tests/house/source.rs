//! Reading the project's sources: files, and every path in their code, resolved.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::path::{Path, PathBuf};

/// A source file of the project.
pub struct Source {
    /// Relative to the root of the repository.
    pub path: String,
    pub text: String,
    pub tokens: TokenStream,
    pub tree: syn::File,
    /// Compiled for tests only: declared by a `#[cfg(test)] mod`.
    pub test_only: bool,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let wrong = |e: &dyn std::fmt::Display| format!("{path} is not Rust: {e}");
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            tokens: text
                .parse()
                .map_err(|e: proc_macro2::LexError| wrong(&e))
                .unwrap(),
            tree: syn::parse_file(text).map_err(|e| wrong(&e)).unwrap(),
            test_only: false,
        }
    }

    /// Segments of the module this file is, without `crate`; `None` outside src/.
    pub fn module(&self) -> Option<Vec<String>> {
        let inner = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let inner = inner.strip_suffix("/mod").unwrap_or(inner);
        match inner {
            "lib" | "main" => Some(Vec::new()),
            _ => Some(inner.split('/').map(str::to_owned).collect()),
        }
    }

    /// The row this file belongs to; `None` for lib.rs, main.rs and what is outside src/.
    pub fn row(&self) -> Option<String> {
        self.module()?.into_iter().next()
    }

    pub fn complain(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name `wanted` accepts, sorted.
pub fn files_below(folder: &str, wanted: fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue; // a folder that does not exist yet has no sources
        };
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if wanted(&name) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

pub fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every Rust source of the project.
pub fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = ["src", "tests", "bench"]
        .iter()
        .flat_map(|folder| files_below(folder, |name| name.ends_with(".rs")))
        .map(|path| Source::new(&relative(&path), &std::fs::read_to_string(&path).unwrap()))
        .collect();
    assert!(sources.len() > 10, "found only {} sources", sources.len());
    let test_only: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        let module = source.module().unwrap_or_default().join("/");
        source.test_only = source.path.starts_with("tests/")
            || source.path.starts_with("bench/tests/")
            || test_only
                .iter()
                .any(|m| module == *m || module.starts_with(&format!("{m}/")));
    }
    sources
}

/// Modules that `source` declares for tests only, in files of their own.
fn test_modules(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else {
        return Vec::new();
    };
    let declared = source.tree.items.iter().filter_map(|item| match item {
        syn::Item::Mod(m) if m.content.is_none() && is_test(&m.attrs) => Some(m.ident.to_string()),
        _ => None,
    });
    declared
        .map(|name| [module.clone(), vec![name]].concat().join("/"))
        .collect()
}

/// Whether attributes say `#[test]` or `#[cfg(test)]`.
pub fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        syn::Meta::NameValue(_) => false,
    })
}

/// A path as it stands in code, groups of a `use` written out.
pub struct Mention {
    /// With a leading `crate` where it leads into this crate, however it was written.
    pub segments: Vec<String>,
    pub line: usize,
    /// In a `#[cfg(test)]` module.
    pub test: bool,
}

/// Every path in a source, resolved from where it stands.
pub fn mentions(source: &Source) -> Vec<Mention> {
    let mut scan = Scan {
        module: source.module().unwrap_or_default(),
        test: source.test_only,
        found: Vec::new(),
    };
    scan.stream(source.tokens.clone());
    scan.found
}

struct Scan {
    module: Vec<String>,
    test: bool,
    found: Vec<Mention>,
}

impl Scan {
    fn stream(&mut self, stream: TokenStream) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        let mut for_tests = false;
        while at < tokens.len() {
            match &tokens[at..] {
                [TokenTree::Punct(p), TokenTree::Group(attr), ..] if p.as_char() == '#' => {
                    for_tests |= attr.stream().to_string().replace(' ', "") == "cfg(test)";
                    at += 1; // an attribute may hold paths: the group comes next
                }
                [
                    TokenTree::Ident(word),
                    TokenTree::Ident(name),
                    TokenTree::Group(body),
                    ..,
                ] if word == "mod" && body.delimiter() == Delimiter::Brace => {
                    let outer = self.test;
                    self.test |= for_tests;
                    for_tests = false;
                    self.module.push(name.to_string());
                    self.stream(body.stream());
                    self.module.pop();
                    self.test = outer;
                    at += 3;
                }
                [TokenTree::Ident(_), ..] => at = self.path(&tokens, at, &[]),
                [TokenTree::Group(group), ..] => {
                    for_tests &= group.delimiter() != Delimiter::Brace;
                    self.stream(group.stream());
                    at += 1;
                }
                [TokenTree::Punct(p), ..] => {
                    for_tests &= p.as_char() != ';';
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Reads the path that begins with the identifier at `at`, below `prefix`; returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize, prefix: &[String]) -> usize {
        let mut segments = prefix.to_vec();
        let line = tokens[at].span().start().line;
        segments.push(tokens[at].to_string());
        at += 1;
        while is_colons(&tokens[at..]) {
            match tokens.get(at + 2) {
                Some(TokenTree::Ident(segment)) => segments.push(segment.to_string()),
                Some(TokenTree::Punct(star)) if star.as_char() == '*' => segments.push("*".into()),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.group(group.stream(), &segments);
                    return at + 3;
                }
                _ => break,
            }
            at += 3;
        }
        if segments.last().is_some_and(|last| last == "self") && segments.len() > 1 {
            segments.pop();
        }
        let segments = self.resolve(segments);
        self.found.push(Mention {
            segments,
            line,
            test: self.test,
        });
        at.max(1)
    }

    /// The paths in a group of a `use`.
    fn group(&mut self, stream: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = match &tokens[at] {
                TokenTree::Ident(_) => self.path(&tokens, at, prefix),
                TokenTree::Punct(star) if star.as_char() == '*' => {
                    let segments = self.resolve([prefix, &["*".to_owned()]].concat());
                    self.found.push(Mention {
                        segments,
                        line: star.span().start().line,
                        test: self.test,
                    });
                    at + 1
                }
                _ => at + 1,
            };
        }
    }

    /// The path with `self`, `super` and the crate's own name replaced by where they lead.
    fn resolve(&self, segments: Vec<String>) -> Vec<String> {
        let supers = segments.iter().take_while(|s| *s == "super").count();
        let above = |levels: usize| {
            let keep = self.module.len().saturating_sub(levels);
            let module = self.module[..keep].iter().cloned();
            std::iter::once("crate".to_owned()).chain(module)
        };
        let rest = |from: usize| segments[from..].iter().cloned();
        match segments[0].as_str() {
            "super" => above(supers).chain(rest(supers)).collect(),
            "self" if segments.len() > 1 && segments[1] == "super" => {
                self.resolve(segments[1..].to_vec())
            }
            "self" if segments.len() > 1 => above(0).chain(rest(1)).collect(),
            "memfs" if segments.len() > 1 => {
                std::iter::once("crate".to_owned()).chain(rest(1)).collect()
            }
            "core" | "alloc" if segments.len() > 1 => {
                std::iter::once("std".to_owned()).chain(rest(1)).collect()
            }
            _ => segments,
        }
    }
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b), ..]
        if a.as_char() == ':' && a.spacing() == Spacing::Joint && b.as_char() == ':')
}
