//! Names of layers and of the other files in a timeline directory (spec layer-files.md 2).

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use crate::{Key, Lsn};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerKind {
    Image,
    Delta,
}

/// The rectangle of keys and LSNs that identifies a layer inside one timeline. An image at L has the LSNs `L..L+1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerName {
    pub kind: LayerKind,
    pub keys: Range<Key>,
    pub lsns: Range<Lsn>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("neither delta nor image layer file name: {0:?}")]
pub struct LayerNameError(pub String);

fn parse_lsn(text: &str) -> Option<Lsn> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text, 16).ok().map(Lsn)
}

/// The part of `text` before a generation suffix; none if what follows the first `-` cannot be one.
fn without_suffix(text: &str) -> Option<&str> {
    match text.split_once('-') {
        None => Some(text),
        Some((head, tail)) => (tail.starts_with('v') || tail.len() == 8).then_some(head),
    }
}

impl LayerName {
    pub fn image(keys: Range<Key>, lsn: Lsn) -> LayerName {
        LayerName { kind: LayerKind::Image, keys, lsns: lsn..Lsn(lsn.0.saturating_add(1)) }
    }

    pub fn delta(keys: Range<Key>, lsns: Range<Lsn>) -> LayerName {
        LayerName { kind: LayerKind::Delta, keys, lsns }
    }

    /// A delta over the whole key range, as made by flushing an open layer.
    pub fn l0(lsns: Range<Lsn>) -> LayerName {
        LayerName::delta(Key::MIN..Key::MAX, lsns)
    }

    pub fn is_delta(&self) -> bool {
        self.kind == LayerKind::Delta
    }

    pub fn is_l0(&self) -> bool {
        self.is_delta() && self.keys == (Key::MIN..Key::MAX)
    }

    /// Reads a logical or any physical name; a generation suffix is dropped unseen (2.3).
    pub fn parse(text: &str) -> Result<LayerName, LayerNameError> {
        Self::parse_parts(text).ok_or_else(|| LayerNameError(text.to_string()))
    }

    fn parse_parts(text: &str) -> Option<LayerName> {
        let (keys, rest) = text.split_once("__")?;
        let (start, end) = keys.split_once('-')?;
        let keys = Key::from_hex(start)?..Key::from_hex(end)?;
        Self::parse_delta(&keys, rest).or_else(|| {
            let lsn = parse_lsn(without_suffix(rest)?)?;
            Some(LayerName::image(keys.clone(), lsn))
        })
    }

    fn parse_delta(keys: &Range<Key>, rest: &str) -> Option<LayerName> {
        let (start, tail) = rest.split_once('-')?;
        let lsns = parse_lsn(start)?..parse_lsn(without_suffix(tail)?)?;
        (lsns.start < lsns.end && keys.start < keys.end).then(|| LayerName::delta(keys.clone(), lsns))
    }

    /// The file name in the timeline directory.
    pub fn local_name(&self, generation: Option<u32>) -> String {
        match generation {
            None => self.to_string(),
            Some(generation) => format!("{self}-v1-{generation:08x}"),
        }
    }

    /// The last part of the object's path.
    pub fn remote_name(&self, generation: Option<u32>) -> String {
        match generation {
            None => self.to_string(),
            Some(generation) => format!("{self}-{generation:08x}"),
        }
    }

    /// The name while the file is being written; the end key of a delta is not known before the end (2.4).
    pub fn temporary_name(&self, attempt: u64) -> String {
        match self.kind {
            LayerKind::Image => format!("{self}.{attempt:x}.___temp"),
            LayerKind::Delta => format!(
                "{}-XXX__{:016X}-{:016X}.{attempt:x}.___temp",
                self.keys.start, self.lsns.start.0, self.lsns.end.0
            ),
        }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}__{:016X}", self.keys.start, self.keys.end, self.lsns.start.0)?;
        match self.kind {
            LayerKind::Image => Ok(()),
            LayerKind::Delta => write!(f, "-{:016X}", self.lsns.end.0),
        }
    }
}

impl Ord for LayerName {
    /// Images before deltas, then by key start, key end, LSNs.
    fn cmp(&self, other: &Self) -> Ordering {
        let parts = |n: &LayerName| (n.kind, n.keys.start, n.keys.end, n.lsns.start, n.lsns.end);
        parts(self).cmp(&parts(other))
    }
}

impl PartialOrd for LayerName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a file in a timeline directory is, by its name (2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalFile {
    Layer(LayerName),
    /// Work in progress of an earlier process, or a backup of a dismissed layer: deleted at load.
    Leftover,
    Unknown,
}

impl LocalFile {
    /// Looks for temporary suffixes first: the lenient rule for layers would accept `…-v1-00000001.1.temp_download`.
    pub fn classify(name: &str) -> LocalFile {
        if name.ends_with(".___temp") || name.ends_with(".temp_download") || name.ends_with(".old") {
            return LocalFile::Leftover;
        }
        if let Some(number) = name.strip_prefix("ephemeral-") {
            if number.bytes().all(|b| b.is_ascii_digit()) && number.parse::<u32>().is_ok() {
                return LocalFile::Leftover;
            }
        }
        match LayerName::parse(name) {
            Ok(name) => LocalFile::Layer(name),
            Err(_) => LocalFile::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "000000000000000000000000000000000000-000000067F00000001000004DF0000000006__00000000014FED58";
    const DELTA: &str =
        "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__00000000014FED58-000000000154C481";

    #[test]
    fn every_form_of_a_name_parses_to_the_same_layer() {
        for logical in [IMAGE, DELTA] {
            let name = LayerName::parse(logical).unwrap();
            assert_eq!(name.to_string(), logical);
            assert_eq!(name.is_l0(), logical == DELTA);
            for suffix in ["-00000001", "-v1-00000001", "-vWhatever"] {
                assert_eq!(LayerName::parse(&format!("{logical}{suffix}")).as_ref(), Ok(&name), "{suffix}");
            }
            for suffix in ["-0001", "-000000001", "-w1-00000001", ".x"] {
                assert!(LayerName::parse(&format!("{logical}{suffix}")).is_err(), "{suffix}");
            }
        }
    }

    #[test]
    fn impossible_rectangles_are_not_layers() {
        let zero = "000000000000000000000000000000000000";
        let one = "000000000000000000000000000000000001";
        assert!(LayerName::parse(&format!("{zero}-{one}__0000000000000002-0000000000000002")).is_err());
        assert!(LayerName::parse(&format!("{zero}-{zero}__0000000000000001-0000000000000002")).is_err());
        assert!(LayerName::parse(&format!("{zero}-{one}__1-2")).is_ok());
        assert!(LayerName::parse(&format!("{zero}-{}__1-2", &one[1..])).is_err());
        assert!(LayerName::parse("foo").is_err());
    }

    #[test]
    fn physical_names_carry_the_generation() {
        let name = LayerName::parse(IMAGE).unwrap();
        assert_eq!(name.local_name(None), IMAGE);
        assert_eq!(name.local_name(Some(1)), format!("{IMAGE}-v1-00000001"));
        assert_eq!(name.remote_name(Some(0)), format!("{IMAGE}-00000000"));
        assert_eq!(name.remote_name(Some(u32::MAX)), format!("{IMAGE}-ffffffff"));
        assert_eq!(name.temporary_name(26), format!("{IMAGE}.1a.___temp"));
        let delta = LayerName::parse(DELTA).unwrap();
        assert_eq!(
            delta.temporary_name(1),
            "000000000000000000000000000000000000-XXX__00000000014FED58-000000000154C481.1.___temp"
        );
    }

    #[test]
    fn leftovers_are_never_taken_for_layers() {
        for name in [
            format!("{IMAGE}-v1-00000001.1.temp_download"),
            format!("{IMAGE}.1.___temp"),
            "ephemeral-3".into(),
            "x.old".into(),
        ] {
            assert_eq!(LocalFile::classify(&name), LocalFile::Leftover, "{name}");
        }
        assert_eq!(LocalFile::classify("foo"), LocalFile::Unknown);
        assert_eq!(LocalFile::classify("ephemeral-4294967296"), LocalFile::Unknown);
        assert!(matches!(LocalFile::classify(DELTA), LocalFile::Layer(_)));
    }

    #[test]
    fn images_sort_before_deltas() {
        assert!(LayerName::parse(IMAGE).unwrap() < LayerName::parse(DELTA).unwrap());
    }
}
