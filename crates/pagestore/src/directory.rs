//! What the page service asks beside pages: relations, databases, SLRU segments (spec keyspace.md 5, 8.5).

use bytes::Bytes;
use pagecore::directory::{decode_database_directory, decode_relation_directory, DirectoryError};
use pagecore::key::{FSM_FORK, VM_FORK};
use pagecore::{Key, Lsn, RelTag, SlruKind};

use crate::error::StoreError;
use crate::timeline::TimelineStore;

/// First byte of the keys of relation directories of the second form.
const RELDIR_V2: u8 = 0x65;

fn corrupt(key: Key, lsn: Lsn) -> impl Fn(DirectoryError) -> StoreError {
    move |e| StoreError::CorruptValue { key, lsn, detail: e.to_string() }
}

/// A size value: the first four bytes, little-endian.
fn decode_size(key: Key, lsn: Lsn, value: &[u8]) -> Result<u32, StoreError> {
    match value.get(..4) {
        Some(&[a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
        _ => Err(StoreError::CorruptValue { key, lsn, detail: format!("size of {} bytes", value.len()) }),
    }
}

fn check_relnode(rel: &RelTag) -> Result<(), StoreError> {
    match rel.relnode {
        0 => Err(StoreError::Invalid("invalid relnode".into())),
        _ => Ok(()),
    }
}

impl TimelineStore {
    fn database_exists(&self, spcnode: u32, dbnode: u32, lsn: Lsn) -> Result<bool, StoreError> {
        let directory = self.get(Key::DBDIR, lsn)?;
        let databases = decode_database_directory(&directory).map_err(corrupt(Key::DBDIR, lsn))?;
        Ok(databases.contains_key(&(spcnode, dbnode)))
    }

    /// Relation forks of a database: relation and fork number; none if there is no such database.
    pub fn relations(&self, spcnode: u32, dbnode: u32, lsn: Lsn) -> Result<Option<Vec<(u32, u8)>>, StoreError> {
        if !self.database_exists(spcnode, dbnode, lsn)? {
            return Ok(None);
        }
        if self.reads_reldir_v2(lsn) {
            return self.relations_v2(spcnode, dbnode, lsn).map(Some);
        }
        let key = Key::reldir(spcnode, dbnode);
        let value = self.get(key, lsn)?;
        decode_relation_directory(&value).map(|set| Some(set.into_iter().collect())).map_err(corrupt(key, lsn))
    }

    /// The same by the second form of directory: a key for each fork, "r" exists, empty removed (5.12).
    fn relations_v2(&self, spcnode: u32, dbnode: u32, lsn: Lsn) -> Result<Vec<(u32, u8)>, StoreError> {
        let start = Key { field1: RELDIR_V2, field2: spcnode, field3: dbnode, ..Key::MIN };
        let end = Key { field4: u32::MAX, field5: u8::MAX, field6: u32::MAX, ..start };
        let mut relations = Vec::new();
        for (key, value) in self.scan(start..end, lsn)? {
            match (key.field6, &value[..]) {
                (1, b"r") => relations.push((key.field4, key.field5)),
                (1, b"") => {}
                _ => {
                    let detail = "invalid reldir key: decode failed".to_string();
                    return Err(StoreError::CorruptValue { key, lsn, detail });
                }
            }
        }
        Ok(relations)
    }

    /// True if the fork exists, whatever its size.
    pub fn rel_exists(&self, rel: RelTag, lsn: Lsn) -> Result<bool, StoreError> {
        check_relnode(&rel)?;
        if self.rel_sizes.get(&rel, lsn).is_some() {
            return Ok(true);
        }
        let relations = self.relations(rel.spcnode, rel.dbnode, lsn)?;
        Ok(relations.is_some_and(|r| r.contains(&(rel.relnode, rel.forknum))))
    }

    /// Size in blocks; none if the relation does not exist, 0 for an absent free space or visibility map (5.4).
    pub fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError> {
        check_relnode(&rel)?;
        if let Some(blocks) = self.rel_sizes.get(&rel, lsn) {
            return Ok(Some(blocks));
        }
        // Most reads are of the present. What a read at the newest record finds holds for all of them from the LSN on
        // at which the size was written.
        let last = self.last_record_lsn();
        if lsn <= last {
            let drops = self.rel_sizes.drops();
            if let Some((from, blocks)) = self.read_rel_size(rel, last)? {
                self.rel_sizes.learn_latest(rel, from, blocks, drops);
                if from <= lsn {
                    return Ok(Some(blocks));
                }
            }
        }
        match self.read_rel_size(rel, lsn)? {
            Some((_, blocks)) => {
                self.rel_sizes.learn_snapshot(rel, lsn, blocks);
                Ok(Some(blocks))
            }
            None if matches!(rel.forknum, FSM_FORK | VM_FORK) => Ok(Some(0)),
            None => Ok(None),
        }
    }

    /// What a client is told: like `rel_size`, but of a relation that was dropped the last size, and an error only if
    /// there never was one (the last row of spec keyspace.md 5.4).
    pub fn rel_size_or_last(&self, rel: RelTag, lsn: Lsn) -> Result<u32, StoreError> {
        match self.rel_size(rel, lsn)? {
            Some(blocks) => Ok(blocks),
            None => decode_size(Key::rel_size(rel), lsn, &self.get(Key::rel_size(rel), lsn)?),
        }
    }

    /// The size and the LSN at which it was written; none if the relation does not exist.
    fn read_rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<(Lsn, u32)>, StoreError> {
        let relations = self.relations(rel.spcnode, rel.dbnode, lsn)?;
        if !relations.is_some_and(|r| r.contains(&(rel.relnode, rel.forknum))) {
            return Ok(None);
        }
        let key = Key::rel_size(rel);
        let page = self.get_page(key, lsn)?;
        decode_size(key, lsn, &page.bytes).map(|blocks| Some((page.lsn, blocks)))
    }

    /// Blocks of all forks of all relations of a database; none if there is no such database.
    pub fn db_size(&self, spcnode: u32, dbnode: u32, lsn: Lsn) -> Result<Option<u64>, StoreError> {
        let Some(relations) = self.relations(spcnode, dbnode, lsn)? else { return Ok(None) };
        let keys: Vec<(Key, Lsn)> = relations
            .iter()
            .map(|(relnode, forknum)| {
                (Key::rel_size(RelTag { spcnode, dbnode, relnode: *relnode, forknum: *forknum }), lsn)
            })
            .collect();
        let mut total = 0;
        for batch in keys.chunks(256) {
            for ((key, _), value) in batch.iter().zip(self.get_vectored(batch)) {
                total += u64::from(decode_size(*key, lsn, &value?)?);
            }
        }
        Ok(Some(total))
    }

    /// All pages of an SLRU segment, as stored: a CLOG page may carry its 8-byte timestamp. A missing segment is a
    /// missing key.
    pub fn slru_segment(&self, kind: SlruKind, segno: u32, lsn: Lsn) -> Result<Vec<Bytes>, StoreError> {
        let size_key = Key::slru_segment_size(kind, segno);
        let blocks = decode_size(size_key, lsn, &self.get(size_key, lsn)?)?;
        let keys: Vec<(Key, Lsn)> = (0..blocks).map(|block| (Key::slru_block(kind, segno, block), lsn)).collect();
        self.get_vectored(&keys).into_iter().collect()
    }
}
