//! Pages in the files of a data directory that nobody writes to.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pagecore::key::RelTag;
use pagecore::page::PageBytes;
use pagecore::{Key, BLCKSZ};

use super::RedoDiffError;

/// Blocks of one segment file: 1 GiB.
const SEGMENT_BLOCKS: u32 = 131_072;
/// Files that stay open.
const OPEN_MAX: usize = 128;

/// One segment file of a relation fork.
pub struct DataFile {
    pub rel: RelTag,
    pub segment: u32,
    pub path: PathBuf,
}

/// The pages there were before the first record.
pub trait BasePages: Send {
    fn read(&self, key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError>;

    /// True if a block that `read` does not find did not exist; else it is not known.
    fn is_complete(&self) -> bool;
}

/// Nothing is known of any page before a record makes it.
pub struct NoBase;

impl BasePages for NoBase {
    fn read(&self, _key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        Ok(None)
    }

    fn is_complete(&self) -> bool {
        false
    }
}

pub struct DataFiles {
    paths: HashMap<(RelTag, u32), PathBuf>,
    open: Mutex<HashMap<(RelTag, u32), Arc<File>>>,
}

impl DataFiles {
    pub fn new(files: impl IntoIterator<Item = DataFile>) -> DataFiles {
        let paths = files.into_iter().map(|file| ((file.rel, file.segment), file.path)).collect();
        DataFiles { paths, open: Mutex::default() }
    }

    fn open(&self, id: (RelTag, u32), path: &PathBuf) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&id) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        let file = Arc::new(File::open(path)?);
        open.insert(id, Arc::clone(&file));
        Ok(file)
    }
}

impl BasePages for DataFiles {
    fn read(&self, key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        let id = (key.rel_tag(), key.field6 / SEGMENT_BLOCKS);
        let Some(path) = self.paths.get(&id) else { return Ok(None) };
        let fail = |error| RedoDiffError::DataFile { path: path.clone(), error };
        let file = self.open(id, path).map_err(fail)?;
        let mut page = Box::new([0; BLCKSZ]);
        let offset = u64::from(key.field6 % SEGMENT_BLOCKS) * BLCKSZ as u64;
        let mut got = 0;
        while got < BLCKSZ {
            match file.read_at(&mut page[got..], offset + got as u64) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(fail(io::Error::other(format!("the file ends inside of block {}", key.field6)))),
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(Some(page))
    }

    fn is_complete(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn blocks_are_found_in_their_segments_and_a_torn_file_is_an_error() {
        let dir = TempDir::new();
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 7, forknum: 0 };
        let (first, second) = (dir.path().join("7"), dir.path().join("7.1"));
        std::fs::write(&first, [[1u8; BLCKSZ], [2; BLCKSZ]].concat()).unwrap();
        std::fs::write(&second, vec![3u8; BLCKSZ + 100]).unwrap();
        let file = |segment, path| DataFile { rel, segment, path };
        let files = DataFiles::new([file(0, first), file(1, second)]);
        let read = |block| files.read(&Key::rel_block(rel, block)).map(|page| page.map(|page| page[0]));
        assert_eq!(read(1).unwrap(), Some(2));
        assert_eq!(read(2).unwrap(), None);
        assert_eq!(read(SEGMENT_BLOCKS).unwrap(), Some(3));
        let error = read(SEGMENT_BLOCKS + 1).unwrap_err().to_string();
        assert!(error.ends_with("7.1: the file ends inside of block 131073"), "{error}");
        assert_eq!(files.read(&Key::rel_block(RelTag { relnode: 8, ..rel }, 0)).unwrap(), None);
    }
}
