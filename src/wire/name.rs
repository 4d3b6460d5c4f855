//! Names and paths as they travel: checked when made and when decoded, so that a value of these
//! types is always safe to hand to a store.

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The longest name of a directory entry, in bytes (Linux: `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest path below the root of an export, in bytes (Linux: `PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4095;

/// One component of a path: not empty, no `/`, no NUL, neither `.` nor `..`, at most
/// [`NAME_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode)]
pub struct Name(Box<[u8]>);

impl Name {
    /// The name, if it is one.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Name> {
        let bytes = bytes.into();
        let allowed = !bytes.is_empty()
            && bytes.len() <= NAME_BYTES_MAX
            && bytes != b"."
            && bytes != b".."
            && !bytes.contains(&b'/')
            && !bytes.contains(&0);
        allowed.then_some(Name(bytes.into_boxed_slice()))
    }

    /// The name, if it is one.
    pub fn from_os(name: &OsStr) -> Option<Name> {
        Name::new(name.as_bytes())
    }

    /// For calls that take paths.
    pub fn as_os(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os())
    }
}

/// A path below the root of an export: [`Name`]s joined by `/`; the root itself is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root of the export.
    pub const fn root() -> RelPath {
        RelPath(Vec::new())
    }

    /// The path, if every component is a [`Name`] and it has at most [`PATH_BYTES_MAX`] bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<RelPath> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Some(RelPath(bytes));
        }
        let allowed = bytes.len() <= PATH_BYTES_MAX
            && bytes
                .split(|&b| b == b'/')
                .all(|part| Name::new(part).is_some());
        allowed.then_some(RelPath(bytes))
    }

    /// This path with one more component, if that is not too long.
    pub fn join(&self, name: &Name) -> Option<RelPath> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.0.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(&name.0);
        (bytes.len() <= PATH_BYTES_MAX).then_some(RelPath(bytes))
    }

    /// What `path` is called from where this one begins, if that is not too long.
    pub fn join_path(&self, path: &RelPath) -> Option<RelPath> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() && !path.0.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(&path.0);
        (bytes.len() <= PATH_BYTES_MAX).then_some(RelPath(bytes))
    }

    /// Whether it is the root of the export.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in and its last component; `None` for the root.
    pub fn split(&self) -> Option<(RelPath, Name)> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => (
                RelPath(self.0[..at].to_vec()),
                Name(self.0[at + 1..].into()),
            ),
            None => (RelPath::root(), Name(self.0.as_slice().into())),
        })
    }

    /// For calls that take paths: `.` for the root.
    pub fn as_os(&self) -> &OsStr {
        OsStr::from_bytes(if self.0.is_empty() { b"." } else { &self.0 })
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os())
    }
}

impl From<Name> for OsString {
    fn from(name: Name) -> OsString {
        OsString::from_vec(name.0.into_vec())
    }
}

/// Decodes as a byte vector, then checks.
macro_rules! decode_checked {
    ($type:ty, $what:literal) => {
        impl<Context> Decode<Context> for $type {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                let bytes = Vec::<u8>::decode(decoder)?;
                <$type>::new(bytes).ok_or(DecodeError::Other(concat!("not a ", $what)))
            }
        }
        impl<'de, Context> BorrowDecode<'de, Context> for $type {
            fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, DecodeError> {
                <$type>::decode(decoder)
            }
        }
    };
}
decode_checked!(Name, "file name");
decode_checked!(RelPath, "path below the root");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
        assert!(Name::new(vec![b'x'; 255]).is_some() && Name::new(vec![b'x'; 256]).is_none());
        for bad in ["/", "/a", "a/", "a//b", "a/../b", "./a", "..", "a/\0"] {
            assert_eq!(RelPath::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn paths_join_and_split() {
        let name = Name::new("b").unwrap();
        let path = RelPath::new("a").unwrap().join(&name).unwrap();
        assert_eq!(path, RelPath::new("a/b").unwrap());
        assert_eq!(path.split(), Some((RelPath::new("a").unwrap(), name)));
        assert_eq!(RelPath::root().split(), None);
        let long = RelPath::new(vec![vec![b'x'; 200]; 20].join(&b'/')).unwrap();
        assert_eq!(long.join(&Name::new(vec![b'y'; 200]).unwrap()), None);
        let join = |a: &str, b: &str| RelPath::new(a)?.join_path(&RelPath::new(b)?);
        for (a, b, joined) in [
            ("", "", ""),
            ("a", "", "a"),
            ("", "b", "b"),
            ("a", "b/c", "a/b/c"),
        ] {
            assert_eq!(join(a, b), RelPath::new(joined));
        }
        assert_eq!(
            long.join_path(&RelPath::new("y".repeat(200)).unwrap()),
            None
        );
    }
}
