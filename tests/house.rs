//! The rules of the house, checked: what a module may import, where `unsafe` may stand, how long a
//! file and a function may be, how a file opens, what no source may hold.
//!
//! Sources are read as tokens (so code inside macros counts too) and as syntax trees. Each rule is a
//! function from a [`Source`] to complaints (`file:line: what`), a test that it has none for any
//! source of the project, and a test that a bad snippet is caught.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "house/source.rs"]
mod source;

use proc_macro2::{TokenStream, TokenTree};
use source::{Source, files_below, is_test, mentions, relative, root, sources};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// The rows of the house, top to bottom: a module imports only from its own row and rows above.
const ROWS: [&str; 9] = [
    "units",
    "region",
    "wire",
    "sys",
    "transport",
    "store",
    "node",
    "frontend",
    "cli",
];

/// What a row never mentions, beside the rows below it: paths by their first segments, except that
/// one with a leading `..` is found anywhere in a path.
const NEVER: [(&str, &[&str]); 6] = [
    (
        "region",
        &[
            "std::net",
            "std::fs",
            "std::io",
            "std::sync",
            "std::thread",
            "std::os",
            "tokio",
            "parking_lot",
            "quinn",
            "rustix",
            "libc",
            "..Instant::now",
            "..SystemTime::now",
        ],
    ),
    (
        "wire",
        &[
            "std::net",
            "std::os::unix::net",
            "tokio",
            "quinn",
            "rustix::net",
        ],
    ),
    ("sys", &["crate::region"]),
    ("store", &["quinn", "fuser", "clap"]),
    ("node", &["fuser", "clap", "clap_complete", "indicatif"]),
    ("frontend", &["clap", "quinn", "crate::store"]),
];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// A module imports only from its own row and the rows above it; frontends not from each other.
fn imports(source: &Source) -> Vec<String> {
    let Some(row) = source.row() else {
        return Vec::new(); // lib.rs and main.rs hold the house together
    };
    let Some(own) = ROWS.iter().position(|r| *r == row) else {
        return vec![source.complain(1, format!("`{row}` is no row of the house"))];
    };
    let module = source.module().unwrap_or_default();
    let mut complaints = Vec::new();
    for mention in mentions(source) {
        let [first, target, rest @ ..] = mention.segments.as_slice() else {
            continue;
        };
        if first != "crate" {
            continue;
        }
        let what = match ROWS.iter().position(|r| r == target) {
            None => format!("`crate::{target}` is no row of the house"),
            Some(its) if its > own => format!("`{row}` imports from `{target}`, a row below"),
            Some(its) if its == own && row == "frontend" => match (module.get(1), rest.first()) {
                (Some(mine), Some(other)) if mine != other && is_module("src/frontend", other) => {
                    format!("frontend `{mine}` imports from frontend `{other}`")
                }
                _ => continue,
            },
            Some(_) => continue,
        };
        complaints.push(source.complain(mention.line, what));
    }
    complaints
}

fn is_module(folder: &str, name: &str) -> bool {
    let folder = root().join(folder);
    folder.join(name).is_dir() || folder.join(format!("{name}.rs")).is_file()
}

/// A row never mentions what its line of the design's table excludes.
fn exclusions(source: &Source) -> Vec<String> {
    let row = source.row().unwrap_or_default();
    let Some((_, never)) = NEVER.iter().find(|(r, _)| *r == row) else {
        return Vec::new();
    };
    let mut complaints = Vec::new();
    for mention in mentions(source) {
        let path = mention.segments.join("::");
        let hit = never.iter().find(|never| match never.strip_prefix("..") {
            // Tests begin their virtual time somewhere.
            Some(inner) => !mention.test && format!("::{path}").contains(&format!("::{inner}")),
            None => {
                path.starts_with(&format!("{never}::")) || path == **never && path.contains("::")
            }
        });
        if let Some(hit) = hit {
            let what = format!("`{row}` never touches `{}`", hit.trim_start_matches('.'));
            complaints.push(source.complain(mention.line, what));
        }
    }
    complaints
}

/// `unsafe` stands only in src/sys/ and bench/src/sys/, and there always with its reason.
fn unsafety(source: &Source) -> Vec<String> {
    let of_bench = source.path.starts_with("bench/src/sys/");
    let inside = of_bench || source.row().as_deref() == Some("sys");
    let lines: Vec<&str> = source.text.lines().collect();
    let mut complaints = Vec::new();
    for line in unsafe_lines(source.tokens.clone()) {
        if !inside {
            complaints.push(source.complain(line, "`unsafe` outside src/sys/"));
        } else if !has_reason(&lines, line - 1) {
            complaints.push(source.complain(line, "`unsafe` without a SAFETY comment"));
        }
    }
    complaints
}

/// Lines with the keyword `unsafe`, counted from 1.
fn unsafe_lines(stream: TokenStream) -> Vec<usize> {
    let mut lines = Vec::new();
    for token in stream {
        match token {
            TokenTree::Ident(word) if word == "unsafe" => lines.push(word.span().start().line),
            TokenTree::Group(group) => lines.extend(unsafe_lines(group.stream())),
            _ => {}
        }
    }
    lines
}

/// Whether the statement or item that the line belongs to has its reason in the comment before it.
fn has_reason(lines: &[&str], at: usize) -> bool {
    let is_reason = |line: &str| line.contains("// SAFETY: ") || line.contains("/// # Safety");
    if is_reason(lines[at]) {
        return true;
    }
    for line in lines[..at].iter().rev().map(|line| line.trim()) {
        if is_reason(line) {
            return true;
        }
        let comment = line.starts_with("//") || line.starts_with("#[");
        if line.is_empty() || !comment && line.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

/// No file and no function outgrows its limit; functions of tests are free.
fn lengths(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        let what = format!("a file of {lines} lines, at most {FILE_LINES_MAX} are allowed");
        complaints.push(source.complain(lines, what));
    }
    if !source.test_only {
        let mut functions = Functions(Vec::new());
        functions.visit_file(&source.tree);
        for (line, name, lines) in functions.0 {
            if lines > FUNCTION_LINES_MAX {
                let what = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}");
                complaints.push(source.complain(line, what));
            }
        }
    }
    complaints
}

/// Line, name and lines of each function (and macro) outside tests.
struct Functions(Vec<(usize, String, usize)>);

impl Functions {
    fn add(&mut self, name: &syn::Ident, body: proc_macro2::Span) {
        let lines = body.end().line + 1 - body.start().line;
        self.0
            .push((name.span().start().line, name.to_string(), lines));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            self.add(&item.sig.ident, item.block.span());
            syn::visit::visit_item_fn(self, item);
        }
    }
    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig.ident, item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }
    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.add(&item.sig.ident, body.span());
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if let Some(name) = &item.ident {
            self.add(name, item.span());
        }
    }
}

/// A file opens with what it is and how it works.
fn opening(source: &Source) -> Vec<String> {
    let opens = source.text.lines().next().is_some_and(|line| {
        let words = line.strip_prefix("//!").map(str::trim);
        words.is_some_and(|words| !words.is_empty())
    });
    if opens {
        Vec::new()
    } else {
        vec![source.complain(1, "the file does not open with `//!` documentation")]
    }
}

/// Nothing is left unfinished.
fn unfinished(source: &Source) -> Vec<String> {
    let lines = macros_called(source.tokens.clone(), &["todo", "unimplemented", "dbg"]);
    let complain = |(line, name)| source.complain(line, format!("`{name}!` is left"));
    lines.into_iter().map(complain).collect()
}

fn macros_called(stream: TokenStream, names: &[&str]) -> Vec<(usize, String)> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match (token, tokens.get(at + 1)) {
            (TokenTree::Ident(name), Some(TokenTree::Punct(bang)))
                if bang.as_char() == '!' && names.iter().any(|n| name == n) =>
            {
                found.push((name.span().start().line, name.to_string()));
            }
            (TokenTree::Group(group), _) => found.extend(macros_called(group.stream(), names)),
            _ => {}
        }
    }
    found
}

/// No path of one machine: an absolute path into a home or a work folder.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || "._-~/}".contains(c);
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for folder in ["work", "home", "root"].map(|name| format!("/{name}")) {
            let found = line.match_indices(&folder).any(|(at, _)| {
                let (before, after) = (&line[..at], &line[at + folder.len()..]);
                !before.ends_with(is_part)
                    && (folder != "/root" || after.starts_with('/'))
                    && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-')
            });
            if found {
                complaints.push(format!(
                    "{path}:{}: a path of one machine: {folder}",
                    number + 1
                ));
            }
        }
    }
    complaints
}

// ---------------------------------------------------------------------------------------------
// The project keeps them

fn expect_none(rule: fn(&Source) -> Vec<String>) {
    let complaints: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn modules_import_only_from_rows_above() {
    expect_none(imports);
}

#[test]
fn rows_never_touch_what_the_design_excludes() {
    expect_none(exclusions);
}

#[test]
fn unsafe_stands_only_in_sys_and_with_its_reason() {
    expect_none(unsafety);
}

#[test]
fn files_and_functions_fit() {
    expect_none(lengths);
}

#[test]
fn every_file_opens_with_documentation() {
    expect_none(opening);
}

#[test]
fn nothing_is_unfinished() {
    expect_none(unfinished);
}

/// Lines of docs/promises.md that begin with a file name tests in it. Each is there.
#[test]
fn promises_have_their_tests() {
    let text = std::fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with("- `")) {
        let mut quoted = line.split('`').skip(1).step_by(2);
        let Some(file) = quoted.next().filter(|file| file.ends_with(".rs")) else {
            continue;
        };
        let source = std::fs::read_to_string(root().join(file)).expect(file);
        for test in quoted {
            let is_there = source.contains(&format!("fn {test}("));
            assert!(is_there, "docs/promises.md: no {test} in {file}");
            named += 1;
        }
    }
    assert!(named > 50, "only {named} tests were found");
}

#[test]
fn no_source_names_a_path_of_one_machine() {
    let mut files = vec![root().join("README.md"), root().join("Cargo.toml")];
    for folder in ["src", "tests", "scripts", "bench", "docs", ".ci"] {
        files.extend(files_below(folder, |_| true));
    }
    let mut complaints = Vec::new();
    for file in files {
        if let Ok(text) = std::fs::read_to_string(&file) {
            complaints.extend(machine_paths(&relative(&file), &text));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

// ---------------------------------------------------------------------------------------------
// The rules catch what they should

/// Asserts on which lines a rule complains about a snippet.
#[track_caller]
fn expect_lines(rule: fn(&Source) -> Vec<String>, path: &str, text: &str, lines: &[usize]) {
    let complaints = rule(&Source::new(path, text));
    let found: Vec<usize> = complaints
        .iter()
        .map(|c| c.split(':').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!(found, lines, "{complaints:?}");
}

#[test]
fn imports_from_below_are_caught() {
    let caught = |path: &str, text: &str| expect_lines(imports, path, text, &[1]);
    caught("src/wire/frame.rs", "use crate::node::X;");
    caught("src/wire/frame.rs", "use crate::{units::A, cli::B};");
    caught("src/wire/frame.rs", "use crate::nowhere::x;");
    caught("src/wire/frame.rs", "use super::super::transport::X;");
    caught(
        "src/wire/frame.rs",
        "mod t { fn f() { super::super::super::store::g() } }",
    );
    caught("src/units.rs", "fn f(x: Vec<crate::wire::Name>) {}");
    caught(
        "src/units.rs",
        "fn f() { println!(\"{}\", memfs::cli::main()) }",
    );
    caught(
        "src/units.rs",
        "macro_rules! m { () => { $crate::wire::x() } }",
    );
    caught("src/units.rs", "use crate::*;");
    caught("src/other/mod.rs", "use std::fmt;");
    let allowed = "use crate::{units, wire::{self, Name}};\nuse super::x;\nuse self::y::z;\n\
                   fn f() { super::super::units::g(); crate::node::h() }\nmod t { use super::*; }";
    expect_lines(imports, "src/node/replica/mod.rs", allowed, &[]);
}

#[test]
fn exclusions_are_caught() {
    let caught = |path: &str, text: &str| expect_lines(exclusions, path, text, &[1]);
    caught("src/region/lease.rs", "use std::{fmt, sync::Mutex};");
    caught(
        "src/region/lease.rs",
        "fn f() -> Instant { std::time::Instant::now() }",
    );
    caught("src/region/lease.rs", "use parking_lot::Mutex;");
    caught("src/region/lease.rs", "fn f(x: ::std::net::IpAddr) {}");
    caught("src/wire/mod.rs", "use tokio::net::UdpSocket;");
    caught("src/sys/mod.rs", "use crate::region::PageSet;");
    caught("src/node/mod.rs", "fn f() { fuser::mount() }");
    caught("src/frontend/fuse.rs", "use crate::store::memory::Memory;");
    let virtual_time = "#[cfg(test)]\nmod tests {\n fn f() { Instant::now(); }\n}\n\
                        fn g() { Instant::now(); }";
    expect_lines(exclusions, "src/region/lease.rs", virtual_time, &[5]);
    expect_lines(
        exclusions,
        "src/transport/key.rs",
        "use std::sync::Arc;",
        &[],
    );
}

#[test]
fn unsafety_is_caught() {
    let block = "fn f() {\n    unsafe { g() }\n}";
    expect_lines(unsafety, "src/node/mod.rs", block, &[2]);
    expect_lines(unsafety, "src/sys/mod.rs", block, &[2]);
    expect_lines(unsafety, "bench/src/link/mod.rs", block, &[2]);
    expect_lines(unsafety, "bench/src/sys/tun.rs", block, &[2]);
    expect_lines(unsafety, "src/wire/mod.rs", "m! { unsafe { g() } }", &[1]);
    let reason_of_another =
        "fn f() {\n // SAFETY: g asks nothing.\n let x = 1;\n unsafe { g() }\n}";
    expect_lines(unsafety, "src/sys/mod.rs", reason_of_another, &[4]);
    let with_reason = "fn f() {\n // SAFETY: g asks nothing.\n let x =\n unsafe { g() };\n}";
    expect_lines(unsafety, "src/sys/mod.rs", with_reason, &[]);
    expect_lines(unsafety, "bench/src/sys/tun.rs", with_reason, &[]);
    expect_lines(
        unsafety,
        "src/node/mod.rs",
        "/* unsafe */ fn f() { \"unsafe\"; }",
        &[],
    );
}

#[test]
fn lengths_are_caught() {
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "g();\n".repeat(lines - 2));
    expect_lines(lengths, "src/node/mod.rs", &function(70), &[]);
    expect_lines(lengths, "src/node/mod.rs", &function(71), &[1]);
    let test = format!("#[cfg(test)]\nmod tests {{\n{}}}", function(100));
    expect_lines(lengths, "src/node/mod.rs", &test, &[]);
    let method = format!("struct S;\nimpl S {{\n{}}}", function(71));
    expect_lines(lengths, "src/node/mod.rs", &method, &[3]);
    expect_lines(lengths, "src/node/mod.rs", &"//\n".repeat(600), &[]);
    expect_lines(lengths, "src/node/mod.rs", &"//\n".repeat(601), &[601]);
}

#[test]
fn openings_are_caught() {
    expect_lines(opening, "src/node/mod.rs", "use std::fmt;", &[1]);
    expect_lines(opening, "src/node/mod.rs", "//!\n//! Late.", &[1]);
    expect_lines(opening, "src/node/mod.rs", "", &[1]);
    expect_lines(opening, "src/node/mod.rs", "//! What it is.", &[]);
}

#[test]
fn the_unfinished_is_caught() {
    let text = "fn f() {\n todo!()\n}\nfn g() { h(dbg!(1)) }\nfn i() { todo(); \"todo!\"; }";
    expect_lines(unfinished, "src/node/mod.rs", text, &[2, 4]);
}

#[test]
fn machine_paths_are_caught() {
    for folder in ["work", "home", "root"] {
        let text = format!("fine\nlet path = \"/{folder}/somebody\";");
        let complaints = machine_paths("src/x.rs", &text);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("src/x.rs:2: "), "{complaints:?}");
        assert!(machine_paths("x", &format!("a/{folder}/b src/{folder}er.rs")).is_empty());
    }
}
