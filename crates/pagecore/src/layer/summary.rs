//! Block 0 of a layer file (spec layer-files.md 4).
//!
//! ```text
//! delta  magic 5A61 | version 3 | tenant 16 | timeline 16 | key start 18 | key end 18 | lsn start 8 | lsn end 8 | index_start 4 | root 4
//! image  magic 5A60 | version 3 | tenant 16 | timeline 16 | key start 18 | key end 18 | lsn 8 | index_start 4 | root 4
//! ```

use crate::key::KEY_SIZE;
use crate::layer::names::{LayerKind, LayerName};
use crate::{Key, Lsn, BLCKSZ};

const DELTA_MAGIC: u16 = 0x5A61;
const IMAGE_MAGIC: u16 = 0x5A60;
const FORMAT_VERSION: u16 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub tenant_id: [u8; 16],
    pub timeline_id: [u8; 16],
    pub name: LayerName,
    /// First block of the index; block numbers inside the index are relative to it.
    pub index_start: u32,
    pub index_root: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SummaryError {
    #[error("summary ends after {0} bytes")]
    Short(usize),
    #[error("summary has magic {magic:#06x} and format version {version}")]
    Format { magic: u16, version: u16 },
    #[error("in-file summary does not match expected summary. actual = {actual}, expected = {expected}")]
    Mismatch { actual: String, expected: String },
}

struct Reader<'a>(&'a [u8], usize);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SummaryError> {
        let short = SummaryError::Short(self.0.len());
        let out = self.0.get(self.1..self.1 + N).and_then(|b| b.try_into().ok()).ok_or(short)?;
        self.1 += N;
        Ok(out)
    }

    fn key(&mut self) -> Result<Key, SummaryError> {
        Ok(Key::from_bytes(&self.array::<KEY_SIZE>()?))
    }

    fn lsn(&mut self) -> Result<Lsn, SummaryError> {
        Ok(Lsn(u64::from_be_bytes(self.array()?)))
    }
}

impl Summary {
    /// The whole block, zero padded.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLCKSZ);
        let magic = if self.name.is_delta() { DELTA_MAGIC } else { IMAGE_MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        out.extend_from_slice(&self.tenant_id);
        out.extend_from_slice(&self.timeline_id);
        out.extend_from_slice(&self.name.keys.start.to_bytes());
        out.extend_from_slice(&self.name.keys.end.to_bytes());
        out.extend_from_slice(&self.name.lsns.start.0.to_be_bytes());
        if self.name.is_delta() {
            out.extend_from_slice(&self.name.lsns.end.0.to_be_bytes());
        }
        out.extend_from_slice(&self.index_start.to_be_bytes());
        out.extend_from_slice(&self.index_root.to_be_bytes());
        out.resize(BLCKSZ, 0);
        out
    }

    /// Reads the prefix of block 0 and ignores the rest.
    pub fn decode(block: &[u8]) -> Result<Summary, SummaryError> {
        let mut r = Reader(block, 0);
        let magic = u16::from_be_bytes(r.array()?);
        let version = u16::from_be_bytes(r.array()?);
        let kind = match (magic, version) {
            (DELTA_MAGIC, FORMAT_VERSION) => LayerKind::Delta,
            (IMAGE_MAGIC, FORMAT_VERSION) => LayerKind::Image,
            _ => return Err(SummaryError::Format { magic, version }),
        };
        let tenant_id = r.array()?;
        let timeline_id = r.array()?;
        let keys = r.key()?..r.key()?;
        let start = r.lsn()?;
        let name = match kind {
            LayerKind::Delta => LayerName::delta(keys, start..r.lsn()?),
            LayerKind::Image => LayerName::image(keys, start),
        };
        let index_start = u32::from_be_bytes(r.array()?);
        let index_root = u32::from_be_bytes(r.array()?);
        Ok(Summary { tenant_id, timeline_id, name, index_start, index_root })
    }

    /// Compares with what the layer's name and the tenant say. The timeline id is exempt: layers are shared.
    pub fn check(&self, tenant_id: &[u8; 16], name: &LayerName) -> Result<(), SummaryError> {
        if self.tenant_id == *tenant_id && self.name == *name {
            return Ok(());
        }
        let text = |tenant: &[u8; 16], name: &LayerName| {
            let tenant: String = tenant.iter().map(|b| format!("{b:02x}")).collect();
            format!("{name} of tenant {tenant}")
        };
        Err(SummaryError::Mismatch { actual: text(&self.tenant_id, &self.name), expected: text(tenant_id, name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(kind: LayerKind) -> Summary {
        let keys = Key::MIN..Key::MAX;
        let name = match kind {
            LayerKind::Delta => LayerName::delta(keys, Lsn(0x10)..Lsn(0x20)),
            LayerKind::Image => LayerName::image(keys, Lsn(0x10)),
        };
        Summary { tenant_id: [7; 16], timeline_id: [8; 16], name, index_start: 5, index_root: 2 }
    }

    #[test]
    fn round_trip_and_every_compared_field() {
        for kind in [LayerKind::Delta, LayerKind::Image] {
            let summary = example(kind);
            let block = summary.encode();
            assert_eq!(block.len(), BLCKSZ);
            assert_eq!(Summary::decode(&block).as_ref(), Ok(&summary));
            let length = if kind == LayerKind::Delta { 96 } else { 88 };
            assert!(block[length..].iter().all(|b| *b == 0) && block[length - 1] == 2);
            let compared = length - 8;
            for at in 0..length {
                let mut damaged = block.clone();
                damaged[at] ^= 1;
                let result = Summary::decode(&damaged).and_then(|s| s.check(&[7; 16], &summary.name));
                let exempt = (20..36).contains(&at) || at >= compared;
                assert_eq!(result.is_ok(), exempt, "byte {at}");
            }
            assert!(Summary::decode(&block[..length - 1]).is_err());
        }
    }
}
