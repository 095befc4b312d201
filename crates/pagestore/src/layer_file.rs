//! A layer file for reading: opened when it is first needed, checked against its name, searched through cached index
//! blocks (spec layer-files.md 4, 8).
//!
//! Finding (index only) and reading (blobs) are two steps, so that the reads of many keys can be joined. Whatever is
//! wrong with the file is an error that names it.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pagecore::key::KEY_SIZE;
use pagecore::layer::blob::{self, Header};
use pagecore::layer::{
    delta_key, split_delta_key, Cursor, LayerName, Node, NodeError, NodeSource, Summary, DELTA_KEY_SIZE,
};
use pagecore::value::{Record, Value};
use pagecore::wal::framer::check_crc;
use pagecore::wal::RECORD_HEADER_LEN;
use pagecore::{Key, Lsn, BLCKSZ};

use crate::cache::Cache;
use crate::error::StoreError;
use crate::page_cache::PageCache;
use crate::read_stats::ReadStats;
use crate::values::ValueMemory;

const BLOCK: u64 = BLCKSZ as u64;
/// Summary, one block of blobs, one of index.
const FILE_SIZE_MIN: u64 = 3 * BLOCK;
const OPEN_FILES: usize = 512;

/// What the whole process shares: caches of index blocks, open files and reconstructed pages; memory for new values;
/// what reads cost.
pub struct Caches {
    nodes: Cache<(u64, u32), Arc<Node>>,
    files: Cache<u64, Arc<File>>,
    pub pages: PageCache,
    pub values: Arc<ValueMemory>,
    pub reads: ReadStats,
}

impl Caches {
    pub fn new(block_cache_bytes: usize, page_cache_bytes: usize, value_memory_bytes: usize) -> Caches {
        Caches {
            nodes: Cache::new(block_cache_bytes),
            files: Cache::new(OPEN_FILES),
            pages: PageCache::new(page_cache_bytes),
            values: Arc::new(ValueMemory::new(value_memory_bytes)),
            reads: ReadStats::default(),
        }
    }

    pub fn node_stats(&self) -> crate::cache::CacheStats {
        self.nodes.stats()
    }
}

/// The bytes of one blob in a file: from its header to where the next blob, or the index, begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The value's LSN; the layer's own for an image layer.
    pub lsn: Lsn,
    pub will_init: bool,
    pub start: u64,
    pub end: u64,
}

struct Opened {
    index_start: u32,
    index_root: u32,
    timeline_id: [u8; 16],
}

/// How often one read fetches a file that an eviction takes away again before the read has it open.
const FETCHES_MAX: usize = 8;

/// Brings layer files that are not on this disk.
pub trait LayerFetch: Send + Sync {
    /// Blocks until the file is at the layer's path, complete. Called by several readers at once; one transfer serves them all.
    fn fetch(&self, name: &LayerName) -> Result<(), StoreError>;
}

/// One layer file. It need not be on this disk: with a `LayerFetch`, the first read brings it.
pub struct LayerFile {
    /// Unique in the process: a rewritten layer has the same name, but another id.
    id: u64,
    name: LayerName,
    path: PathBuf,
    size: u64,
    tenant_id: [u8; 16],
    caches: Arc<Caches>,
    opened: OnceLock<Opened>,
    /// Keeps a removed file readable for those who still search it.
    pinned: OnceLock<Arc<File>>,
    fetch: Option<Arc<dyn LayerFetch>>,
}

/// Index blocks of one file.
struct Index<'a> {
    layer: &'a LayerFile,
    opened: &'a Opened,
    key_len: usize,
}

/// What can happen below a cursor; becomes a `StoreError` that names the file.
struct IndexError(StoreError);

impl From<NodeError> for IndexError {
    fn from(error: NodeError) -> Self {
        IndexError(StoreError::corrupt("", error))
    }
}

impl NodeSource for Index<'_> {
    type Error = IndexError;

    fn root(&self) -> u32 {
        self.opened.index_root
    }

    fn node(&self, block: u32) -> Result<Arc<Node>, IndexError> {
        let layer = self.layer;
        let cache_key = (layer.id, block);
        if let Some(node) = layer.caches.nodes.get(&cache_key) {
            return Ok(node);
        }
        let at = (u64::from(self.opened.index_start) + u64::from(block)) * BLOCK;
        if at + BLOCK > layer.size {
            return Err(IndexError(layer.corrupt(format!("index refers to block {block} beyond the end"))));
        }
        let mut bytes = vec![0; BLCKSZ].into_boxed_slice();
        layer.read_exact(&mut bytes, at).map_err(IndexError)?;
        let node = Node::decode(bytes, self.key_len)
            .map_err(|e| IndexError(layer.corrupt(format!("index block {block}: {e}"))))?;
        let node = Arc::new(node);
        layer.caches.nodes.insert(cache_key, Arc::clone(&node), BLCKSZ);
        Ok(node)
    }
}

impl LayerFile {
    /// Names a file that is complete, here or where `fetch` gets it from; nothing is read before the first search.
    pub fn new(
        name: LayerName,
        path: PathBuf,
        size: u64,
        tenant_id: [u8; 16],
        caches: Arc<Caches>,
        fetch: Option<Arc<dyn LayerFetch>>,
    ) -> LayerFile {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        LayerFile { id, name, path, size, tenant_id, caches, opened: OnceLock::new(), pinned: OnceLock::new(), fetch }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn name(&self) -> &LayerName {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    fn corrupt(&self, detail: impl ToString) -> StoreError {
        StoreError::corrupt(&self.path.display().to_string(), detail)
    }

    fn rename(&self, IndexError(error): IndexError) -> StoreError {
        match error {
            StoreError::Corrupt { object, detail } if object.is_empty() => self.corrupt(detail),
            other => other,
        }
    }

    fn file(&self) -> Result<Arc<File>, StoreError> {
        let missing = || StoreError::io("open layer file", &self.path, &ErrorKind::NotFound.into());
        for _ in 0..FETCHES_MAX {
            if let Some(file) = self.local_file()? {
                return Ok(file);
            }
            self.fetch.as_ref().ok_or_else(missing)?.fetch(&self.name)?;
        }
        self.local_file()?.ok_or_else(missing)
    }

    /// None if the file is not on this disk.
    fn local_file(&self) -> Result<Option<Arc<File>>, StoreError> {
        if let Some(file) = self.pinned.get() {
            return Ok(Some(Arc::clone(file)));
        }
        if let Some(file) = self.caches.files.get(&self.id) {
            return Ok(Some(file));
        }
        let file = match File::open(&self.path) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("open layer file", &self.path, &e)),
        };
        self.caches.files.insert(self.id, Arc::clone(&file), 1);
        Ok(Some(file))
    }

    pub fn is_resident(&self) -> bool {
        self.path.exists()
    }

    /// Removes the file, but not the layer: who reads it next fetches it. Reads that have begun go on.
    pub fn evict(&self) -> Result<(), StoreError> {
        if self.fetch.is_none() {
            return Err(StoreError::Invalid(format!("layer {} is nowhere else", self.name)));
        }
        self.unlink()?;
        // The space is free once nobody has the file open.
        self.caches.files.remove(&self.id);
        Ok(())
    }

    fn unlink(&self) -> Result<(), StoreError> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("remove layer file", &self.path, &e)),
            _ => Ok(()),
        }
    }

    /// Reads bytes of the file; an end of file in the middle is corruption.
    pub fn read_exact(&self, out: &mut [u8], at: u64) -> Result<(), StoreError> {
        self.file()?.read_exact_at(out, at).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => self.corrupt(format!("file ends before {} bytes at {at}", out.len())),
            _ => StoreError::io("read layer file", &self.path, &e),
        })
    }

    /// Removes the file. Searches that hold this layer go on reading it.
    pub fn remove_file(&self) -> Result<(), StoreError> {
        let Some(file) = self.local_file()? else { return Ok(()) };
        self.pinned.get_or_init(|| file);
        self.unlink()
    }

    fn open(&self) -> Result<&Opened, StoreError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let metadata = self.file()?.metadata().map_err(|e| StoreError::io("stat layer file", &self.path, &e))?;
        if metadata.len() != self.size {
            return Err(self.corrupt(format!("file has {} bytes instead of {}", metadata.len(), self.size)));
        }
        if self.size < FILE_SIZE_MIN || self.size % BLOCK != 0 {
            return Err(self.corrupt(format!("{} bytes are not a layer file", self.size)));
        }
        let mut block = vec![0; BLCKSZ];
        self.read_exact(&mut block, 0)?;
        let summary = Summary::decode(&block).map_err(|e| self.corrupt(e))?;
        summary.check(&self.tenant_id, &self.name).map_err(|e| self.corrupt(e))?;
        if summary.index_start < 1 || u64::from(summary.index_start) * BLOCK >= self.size {
            return Err(self.corrupt(format!("index starts at block {}", summary.index_start)));
        }
        Ok(self.opened.get_or_init(|| Opened {
            index_start: summary.index_start,
            index_root: summary.index_root,
            timeline_id: summary.timeline_id,
        }))
    }

    /// The timeline that wrote the file, as its summary says.
    pub fn summary(&self) -> Result<Summary, StoreError> {
        let opened = self.open()?;
        Ok(Summary {
            tenant_id: self.tenant_id,
            timeline_id: opened.timeline_id,
            name: self.name.clone(),
            index_start: opened.index_start,
            index_root: opened.index_root,
        })
    }

    fn index(&self) -> Result<Index<'_>, StoreError> {
        let key_len = if self.name.is_delta() { DELTA_KEY_SIZE } else { KEY_SIZE };
        Ok(Index { layer: self, opened: self.open()?, key_len })
    }

    /// The blob offset of an index value.
    fn offset(&self, value: u64) -> u64 {
        if self.name.is_delta() {
            value >> 1
        } else {
            value
        }
    }

    fn end_of_blobs(&self, opened: &Opened) -> u64 {
        u64::from(opened.index_start) * BLOCK
    }

    fn checked_extent(&self, extent: Extent, limit: u64) -> Result<Extent, StoreError> {
        if extent.start < BLOCK || extent.end <= extent.start || extent.end > limit {
            return Err(self.corrupt(format!("index entry refers to bytes {}..{}", extent.start, extent.end)));
        }
        Ok(extent)
    }

    /// Delta: appends the extents of `key` with LSNs in the range to `out`, ascending, from the newest value that
    /// initialises the page on. Returns true if there was such a one.
    pub fn find_deltas(&self, key: &Key, lsns: &Range<Lsn>, out: &mut Vec<Extent>) -> Result<bool, StoreError> {
        let index = self.index()?;
        let limit = self.end_of_blobs(index.opened);
        let key_bytes = key.to_bytes();
        let first = out.len();
        let mut complete = false;
        let mut open = None::<Extent>;
        let mut cursor = Cursor::seek(&index, &delta_key(key, lsns.start)).map_err(|e| self.rename(e))?;
        let mut entry_key = [0; DELTA_KEY_SIZE];
        loop {
            let next = cursor.read(&mut entry_key);
            if let Some(extent) = open.take() {
                let end = next.map_or(limit, |value| self.offset(value));
                out.push(self.checked_extent(Extent { end, ..extent }, limit)?);
            }
            let Some(value) = next else { break };
            if entry_key[..KEY_SIZE] != key_bytes {
                break;
            }
            let Some((_, lsn)) = split_delta_key(&entry_key) else { break };
            if lsn >= lsns.end {
                break;
            }
            let will_init = value & 1 == 1;
            if will_init {
                out.truncate(first);
                complete = true;
            }
            open = Some(Extent { lsn, will_init, start: self.offset(value), end: 0 });
            cursor.advance().map_err(|e| self.rename(e))?;
        }
        Ok(complete)
    }

    /// Image: the extent of `key`.
    pub fn find_image(&self, key: &Key) -> Result<Option<Extent>, StoreError> {
        let index = self.index()?;
        let limit = self.end_of_blobs(index.opened);
        let key_bytes = key.to_bytes();
        let mut cursor = Cursor::seek(&index, &key_bytes).map_err(|e| self.rename(e))?;
        let Some((node, i)) = cursor.entry() else { return Ok(None) };
        if !node.key_starts_with(i, &key_bytes) {
            return Ok(None);
        }
        let start = node.value(i);
        cursor.advance().map_err(|e| self.rename(e))?;
        let end = cursor.entry().map_or(limit, |(node, i)| node.value(i));
        let extent = Extent { lsn: self.name.lsns.start, will_init: true, start, end };
        self.checked_extent(extent, limit).map(Some)
    }

    /// All entries with keys in a range, in order, handed to `visit` until it returns false.
    pub fn for_each_entry(
        &self,
        keys: &Range<Key>,
        mut visit: impl FnMut(Key, Extent) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let index = self.index()?;
        let limit = self.end_of_blobs(index.opened);
        let mut entry_key = [0; DELTA_KEY_SIZE];
        let mut cursor = if self.name.is_delta() {
            Cursor::seek(&index, &delta_key(&keys.start, Lsn(0)))
        } else {
            Cursor::seek(&index, &keys.start.to_bytes())
        }
        .map_err(|e| self.rename(e))?;
        let mut current = cursor.read(&mut entry_key);
        while let Some(value) = current {
            let (key, lsn, will_init) = match self.name.is_delta() {
                true => match split_delta_key(&entry_key) {
                    Some((key, lsn)) => (key, lsn, value & 1 == 1),
                    None => return Err(self.corrupt("index key")),
                },
                false => match Key::from_slice(&entry_key) {
                    Some(key) => (key, self.name.lsns.start, true),
                    None => return Err(self.corrupt("index key")),
                },
            };
            if key >= keys.end {
                return Ok(());
            }
            cursor.advance().map_err(|e| self.rename(e))?;
            current = cursor.read(&mut entry_key);
            let end = current.map_or(limit, |value| self.offset(value));
            let extent = Extent { lsn, will_init, start: self.offset(value), end };
            if !visit(key, self.checked_extent(extent, limit)?)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the data out of a blob's bytes (`Extent`, header included), decompressing if needed.
    pub fn decode_blob(&self, bytes: &Bytes) -> Result<Bytes, StoreError> {
        let header = Header::decode(bytes).map_err(|e| self.corrupt(e))?;
        if header.total_len() > bytes.len() {
            return Err(self.corrupt(format!("blob of {} bytes in a place of {}", header.total_len(), bytes.len())));
        }
        let data = bytes.slice(header.header_len..header.total_len());
        if header.compressed {
            return decompress(&data).map_err(|e| self.corrupt(e));
        }
        Ok(data)
    }

    /// Decodes a value of a delta layer. The file has no checksums of its own, but a WAL record has one: without this
    /// look a flipped bit in a record would make a wrong page, and nobody would know.
    pub fn decode_value<'a>(&self, key: &Key, lsn: Lsn, bytes: &'a [u8]) -> Result<Value<'a>, StoreError> {
        let damaged = |detail: String| self.corrupt(format!("value of key {key} at {lsn}: {detail}"));
        let value = Value::decode(bytes).map_err(|e| damaged(e.to_string()))?;
        match &value {
            // What is shorter than a record's header cannot be one; redo says so.
            Value::Record(Record::Postgres { record, .. }) if record.len() >= RECORD_HEADER_LEN => {
                match check_crc(record) {
                    Ok(()) => Ok(value),
                    Err(problem) => Err(damaged(problem.to_string())),
                }
            }
            _ => Ok(value),
        }
    }

    /// Reads one blob.
    pub fn read_blob(&self, extent: &Extent) -> Result<Bytes, StoreError> {
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        self.read_exact(&mut bytes, extent.start)?;
        self.decode_blob(&Bytes::from(bytes))
    }

    /// Reads and decodes all there is, index and blobs, in the order of the file; returns how many values that is.
    /// Blobs follow one another without a gap; behind the last one there are zeros up to the index.
    pub fn check(&self) -> Result<u64, StoreError> {
        let limit = self.end_of_blobs(self.open()?);
        let mut values = 0;
        let mut last = None::<(Key, Lsn)>;
        self.for_each_entry(&(Key::MIN..Key::MAX), |key, extent| {
            let mut bytes = vec![0; (extent.end - extent.start) as usize];
            self.read_exact(&mut bytes, extent.start)?;
            let bytes = Bytes::from(bytes);
            let blob = self.decode_blob(&bytes)?;
            let header = Header::decode(&bytes).map_err(|e| self.corrupt(e))?;
            let gap = &bytes[header.total_len()..];
            let at = (key, extent.lsn);
            let of_value = |detail: String| self.corrupt(format!("value of key {key} at {}: {detail}", extent.lsn));
            if gap.iter().any(|byte| *byte != 0) || (extent.end != limit && !gap.is_empty()) {
                return Err(of_value(format!("{} bytes behind it belong to no value", gap.len())));
            }
            if last.is_some_and(|last| last >= at) {
                return Err(of_value("not in ascending order".to_owned()));
            }
            if !self.name.keys.contains(&key) || !self.name.lsns.contains(&extent.lsn) {
                return Err(of_value("outside of the layer".to_owned()));
            }
            if self.name.is_delta() {
                let value = self.decode_value(&key, extent.lsn, &blob)?;
                if value.will_init() != extent.will_init {
                    return Err(of_value("the index and the value differ in will_init".to_owned()));
                }
            }
            last = Some(at);
            values += 1;
            Ok(true)
        })?;
        Ok(values)
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        self.caches.files.remove(&self.id);
    }
}

/// Decompresses a frame. Nearly all are pages, so a buffer for one is tried first, with a kept context.
fn decompress(frame: &[u8]) -> Result<Bytes, blob::BlobError> {
    use std::cell::RefCell;
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let page = CONTEXT.with(|context| {
        let mut context = context.try_borrow_mut().ok()?;
        if context.is_none() {
            *context = zstd::bulk::Decompressor::new().ok();
        }
        context.as_mut()?.decompress(frame, BLCKSZ + 8).ok()
    });
    match page {
        Some(page) => Ok(Bytes::from(page)),
        None => blob::decompress(frame).map(Bytes::from),
    }
}

/// Opens a layer file on its own, for inspection: name and tenant are what its summary says.
pub fn inspect(path: &Path) -> Result<(LayerFile, Summary), StoreError> {
    let object = path.display().to_string();
    let file = File::open(path).map_err(|e| StoreError::io("open layer file", path, &e))?;
    let size = file.metadata().map_err(|e| StoreError::io("stat layer file", path, &e))?.len();
    let mut block = vec![0; BLCKSZ];
    file.read_exact_at(&mut block, 0).map_err(|e| StoreError::corrupt(&object, format!("no summary: {e}")))?;
    let summary = Summary::decode(&block).map_err(|e| StoreError::corrupt(&object, e))?;
    let caches = Arc::new(Caches::new(4 << 20, 0, 0));
    let layer = LayerFile::new(summary.name.clone(), path.to_path_buf(), size, summary.tenant_id, caches, None);
    layer.open()?;
    Ok((layer, summary))
}
