//! What a key is let in for: the options before a key in `authorized_keys`.
//!
//! ```text
//! line    = [ options space ] "memfs-ed25519" space BASE64 [ space comment ]
//! options = option *( "," option )          no space, except between quotes
//! option  = "read-only" | "subtree=" DIR    each at most once, in any case of letters
//! DIR     = a path below what is served, bare or between quotes, with \" and \\ for these two
//! ```
//!
//! As in sshd's file of that name. A line with anything else before its key lets nobody in: an option that was
//! misspelt must not leave its key with more than was meant.

use super::PublicKey;
use crate::wire::RelPath;
use std::fmt;

/// What a key is let in for. The default: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Changes are refused.
    pub read_only: bool,
    /// This directory of what is served is all there is: it is the root, and nothing outside of it can be reached.
    pub subtree: RelPath,
}

/// What may stand before a key, for messages.
const ALLOWED: &str = "allowed are read-only and subtree=\"DIR\", with a comma between them";

impl Grant {
    /// A directory below what is served, as it is typed.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse_subtree(text: &str) -> Result<RelPath, String> {
        let path = text.strip_suffix('/').unwrap_or(text);
        let control = path.contains(char::is_control);
        match RelPath::new(path).filter(|path| !path.is_root() && !control) {
            Some(path) => Ok(path),
            None => Err(format!(
                "'{}' is no directory below what is served: give its path from there, as photos/2024, without \
                 '.', '..' and a '/' in front",
                text.escape_debug()
            )),
        }
    }

    /// The key of a line of `authorized_keys` and what it is let in for.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub(super) fn parse_line(line: &str) -> Result<(PublicKey, Grant), String> {
        let bare = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (kind, base64) = (words.next()?, words.next()?);
            format!("{kind} {base64}").parse::<PublicKey>().ok()
        };
        if let Some(key) = bare(line) {
            return Ok((key, Grant::default()));
        }
        let (options, rest) = split_options(line)?;
        let key = bare(rest).ok_or("not '[OPTIONS] memfs-ed25519 BASE64 [comment]'");
        // What is wrong with an option says more than that no key follows.
        Grant::parse(&options).and_then(|grant| Ok((key?, grant)))
    }

    fn parse(options: &[String]) -> Result<Grant, String> {
        let mut grant = Grant::default();
        for option in options {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option.as_str(), None),
            };
            match (name.to_ascii_lowercase().as_str(), value) {
                ("read-only", None) if !grant.read_only => grant.read_only = true,
                ("subtree", Some(value)) if grant.subtree.is_root() => {
                    grant.subtree = Grant::parse_subtree(&unquote(value)?)?;
                }
                ("read-only", None) | ("subtree", Some(_)) => {
                    return Err(format!("'{name}' is there twice"));
                }
                ("read-only", Some(_)) => return Err("'read-only' takes no value".into()),
                ("subtree", None) => return Err(format!("'subtree' takes a value: {ALLOWED}")),
                _ => {
                    let shown: String = name.chars().take(100).collect();
                    return Err(format!("no option '{}': {ALLOWED}", shown.escape_debug()));
                }
            }
        }
        Ok(grant)
    }
}

/// As it stands before a key; empty for the default.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = match self.read_only && !self.subtree.is_root() {
            true => ",",
            false => "",
        };
        if self.read_only {
            f.write_str("read-only")?;
        }
        f.write_str(between)?;
        if !self.subtree.is_root() {
            let path = self.subtree.as_os().to_string_lossy();
            let path = path.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "subtree=\"{path}\"")?;
        }
        Ok(())
    }
}

/// The options at the beginning of a line, still quoted, and what follows them.
fn split_options(line: &str) -> Result<(Vec<String>, &str), String> {
    let mut options = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                options.push(String::new());
                continue;
            }
            c if c.is_ascii_whitespace() && !quoted => return Ok((options, &line[at..])),
            _ => {}
        }
        if let Some(last) = options.last_mut() {
            last.push(c);
        }
    }
    match quoted {
        true => Err("a quote (\") is not closed".into()),
        false => Ok((options, "")),
    }
}

/// A value, bare or between quotes.
fn unquote(value: &str) -> Result<String, String> {
    let Some(quoted) = value.strip_prefix('"') else {
        return match value.contains('"') {
            true => Err("a quote (\") begins within a value".into()),
            false => Ok(value.to_owned()),
        };
    };
    let mut plain = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.as_str().is_empty() => return Ok(plain),
            '"' => return Err("something follows a closing quote (\")".into()),
            '\\' => match chars.next() {
                Some(c @ ('"' | '\\')) => plain.push(c),
                _ => return Err("after a \\ between quotes only \" and \\ are allowed".into()),
            },
            c => plain.push(c),
        }
    }
    Err("a quote (\") is not closed".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Identity;

    fn grant(read_only: bool, subtree: &str) -> Grant {
        let subtree = RelPath::new(subtree).unwrap();
        Grant { read_only, subtree }
    }

    #[test]
    fn options_are_read_and_written() {
        let key = Identity::generate().public();
        for (options, expected) in [
            ("", grant(false, "")),
            ("read-only", grant(true, "")),
            ("Read-Only", grant(true, "")),
            ("subtree=a/b", grant(false, "a/b")),
            ("subtree=\"a/b/\"", grant(false, "a/b")),
            (
                "subtree=\"with space, comma\",read-only",
                grant(true, "with space, comma"),
            ),
            (r#"read-only,subtree="a\"b\\c""#, grant(true, r#"a"b\c"#)),
            (
                "subtree=\"memfs-ed25519 x\"",
                grant(false, "memfs-ed25519 x"),
            ),
        ] {
            for end in ["", " a comment", "\tread-only \"x"] {
                let line = format!("{options} {key}{end}");
                let read = Grant::parse_line(line.trim_ascii());
                assert_eq!(read, Ok((key, expected.clone())), "{line}");
            }
            let written = format!("{expected} {key}");
            assert_eq!(Grant::parse_line(written.trim_ascii()), Ok((key, expected)));
        }
    }

    #[test]
    fn what_is_no_option_is_told() {
        let key = Identity::generate().public();
        for (options, told) in [
            (
                "readonly",
                "no option 'readonly': allowed are read-only and subtree",
            ),
            ("read-only,", "no option ''"),
            (",", "no option ''"),
            ("read-only=yes", "takes no value"),
            ("read-only,read-only", "twice"),
            ("subtree", "takes a value"),
            ("subtree=", "no directory below"),
            ("subtree=\"\"", "no directory below"),
            ("subtree=a,subtree=b", "twice"),
            ("subtree=/a", "no directory below"),
            ("subtree=..", "no directory below"),
            ("subtree=\"a/../b\"", "no directory below"),
            ("subtree=\"a\u{7}\"", "no directory below"),
            ("subtree=\"a", "not closed"),
            ("subtree=\"a\"b", "follows a closing quote"),
            ("subtree=a\"b\"", "begins within a value"),
            (r#"subtree="a\n""#, "only \" and \\"),
            ("command=\"x\",read-only", "no option 'command'"),
            ("\u{1b}[31m", "no option '\\u{1b}[31m'"),
            ("subtree=a read-only", "not '[OPTIONS] memfs-ed25519"),
        ] {
            let said = Grant::parse_line(&format!("{options} {key}")).unwrap_err();
            assert!(said.contains(told), "{options}: {said}");
        }
        for line in ["", "x", "memfs-ed25519", "memfs-ed25519 AAAA", "read-only"] {
            assert!(Grant::parse_line(line).is_err(), "{line}");
        }
    }
}
