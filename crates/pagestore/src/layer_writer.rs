//! Writing layer files, in the order that makes a file either complete or absent (spec layer-files.md 9):
//! temporary file, blobs from offset 8192, padding, index, summary, fsync, rename that replaces nothing, fsync of the
//! directory. A writer that is dropped before its end removes the temporary file.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pagecore::key::KEY_SIZE;
use pagecore::layer::{blob, delta_key, Builder, Compression, LayerName, Summary, DELTA_FILE_SIZE_MAX, DELTA_KEY_SIZE};
use pagecore::{Key, Lsn, BLCKSZ};

use crate::error::StoreError;

const BUFFER_BYTES: usize = 1 << 20;

/// A complete layer file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenLayer {
    pub name: LayerName,
    pub path: PathBuf,
    pub size: u64,
}

/// Where layers of a timeline are written, and what their summaries say.
#[derive(Clone, Debug)]
pub struct LayerHome {
    pub directory: PathBuf,
    pub tenant_id: [u8; 16],
    pub timeline_id: [u8; 16],
}

struct FileWriter {
    home: LayerHome,
    temporary: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// File offset of the buffer's start.
    written: u64,
    index: Builder,
    done: bool,
}

fn next_attempt() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Makes names in a directory durable.
pub fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("fsync directory", directory, &e))
}

impl FileWriter {
    fn create(home: &LayerHome, temporary_name: String, key_len: usize) -> Result<FileWriter, StoreError> {
        let temporary = home.directory.join(temporary_name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| StoreError::io("create layer file", &temporary, &e))?;
        Ok(FileWriter {
            home: home.clone(),
            temporary,
            file,
            buffer: Vec::with_capacity(BUFFER_BYTES + BLCKSZ),
            written: BLCKSZ as u64,
            index: Builder::new(key_len),
            done: false,
        })
    }

    fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn error(&self, context: &'static str, error: &std::io::Error) -> StoreError {
        StoreError::io(context, &self.temporary, error)
    }

    fn flush_buffer(&mut self) -> Result<(), StoreError> {
        self.file.write_all_at(&self.buffer, self.written).map_err(|e| self.error("write layer file", &e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Adds an entry for the blob that `store` appends to the buffer.
    fn add(
        &mut self,
        index_key: &[u8],
        index_value: impl FnOnce(u64) -> u64,
        store: impl FnOnce(&mut Vec<u8>) -> Result<(), blob::BlobError>,
    ) -> Result<(), StoreError> {
        let value = index_value(self.offset());
        self.index.append(index_key, value).map_err(|e| StoreError::Invalid(e.to_string()))?;
        store(&mut self.buffer).map_err(|e| StoreError::Invalid(e.to_string()))?;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush_buffer()?;
        }
        Ok(())
    }

    fn finish(mut self, name: LayerName, generation: Option<u32>) -> Result<WrittenLayer, StoreError> {
        let end = self.offset();
        let padded = end.next_multiple_of(BLCKSZ as u64);
        self.buffer.resize(self.buffer.len() + (padded - end) as usize, 0);
        let index_start = u32::try_from(padded / BLCKSZ as u64)
            .map_err(|_| StoreError::Invalid(format!("layer of {padded} bytes is too large")))?;
        let index = std::mem::replace(&mut self.index, Builder::new(KEY_SIZE));
        let (blocks, index_root) = index.finish().map_err(|e| StoreError::Invalid(e.to_string()))?;
        self.flush_buffer()?;
        self.buffer = blocks;
        self.flush_buffer()?;
        let size = self.written;
        let summary = Summary {
            tenant_id: self.home.tenant_id,
            timeline_id: self.home.timeline_id,
            name: name.clone(),
            index_start,
            index_root,
        };
        self.file.write_all_at(&summary.encode(), 0).map_err(|e| self.error("write layer file", &e))?;
        if name.is_delta() && size > DELTA_FILE_SIZE_MAX {
            return Err(StoreError::Invalid(format!(
                "Created delta layer file at {} of size {size} above limit {DELTA_FILE_SIZE_MAX}!",
                self.temporary.display()
            )));
        }
        self.file.flush().and_then(|()| self.file.sync_all()).map_err(|e| self.error("fsync layer file", &e))?;
        let path = self.home.directory.join(name.local_name(generation));
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &self.temporary,
            rustix::fs::CWD,
            &path,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .map_err(|e| match e {
            rustix::io::Errno::EXIST => StoreError::Exists { path: path.display().to_string() },
            e => self.error("rename layer file", &e.into()),
        })?;
        self.done = true;
        if let Err(error) = sync_directory(&self.home.directory) {
            // Nobody learns of this file, and the next attempt must find its name free.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(WrittenLayer { name, path, size })
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.done {
            // A leftover is removed at the next start as well.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a delta layer from values in ascending order of (key, LSN).
pub struct DeltaWriter {
    writer: FileWriter,
    key_start: Key,
    lsns: Range<Lsn>,
}

impl DeltaWriter {
    pub fn create(home: &LayerHome, key_start: Key, lsns: Range<Lsn>) -> Result<DeltaWriter, StoreError> {
        if lsns.start >= lsns.end {
            return Err(StoreError::Invalid(format!("delta layer over lsn {}..{}", lsns.start, lsns.end)));
        }
        let name = LayerName::delta(key_start..Key::MAX, lsns.clone());
        let writer = FileWriter::create(home, name.temporary_name(next_attempt()), DELTA_KEY_SIZE)?;
        Ok(DeltaWriter { writer, key_start, lsns })
    }

    /// Adds an encoded value. Delta blobs are never compressed.
    pub fn append(&mut self, key: &Key, lsn: Lsn, value: &[u8], will_init: bool) -> Result<(), StoreError> {
        if lsn < self.lsns.start || *key < self.key_start {
            return Err(StoreError::Invalid(format!("value of key {key} at {lsn} is below the layer's start")));
        }
        let index_value = |offset| offset << 1 | u64::from(will_init);
        self.writer.add(&delta_key(key, lsn), index_value, |out| blob::append(out, value))
    }

    pub fn is_empty(&self) -> bool {
        self.writer.index.is_empty()
    }

    /// Bytes so far: what the file would have if it were finished with one more index block.
    pub fn size(&self) -> u64 {
        self.writer.offset() + self.writer.index.flushed_len() as u64 + BLCKSZ as u64
    }

    pub fn finish(self, key_end: Key, generation: Option<u32>) -> Result<WrittenLayer, StoreError> {
        let name = LayerName::delta(self.key_start..key_end, self.lsns);
        self.writer.finish(name, generation)
    }
}

/// Writes an image layer from images in ascending order of keys.
pub struct ImageWriter {
    writer: FileWriter,
    name: LayerName,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl ImageWriter {
    pub fn create(
        home: &LayerHome,
        keys: Range<Key>,
        lsn: Lsn,
        compression: Compression,
    ) -> Result<ImageWriter, StoreError> {
        if keys.start >= keys.end {
            return Err(StoreError::Invalid(format!("image layer over keys {}..{}", keys.start, keys.end)));
        }
        let name = LayerName::image(keys, lsn);
        let compressor = compression.compressor().map_err(|e| StoreError::Invalid(e.to_string()))?;
        let writer = FileWriter::create(home, name.temporary_name(next_attempt()), KEY_SIZE)?;
        Ok(ImageWriter { writer, name, compressor })
    }

    pub fn append(&mut self, key: &Key, image: &[u8]) -> Result<(), StoreError> {
        if !self.name.keys.contains(key) {
            return Err(StoreError::Invalid(format!("key {key} not in range of {}", self.name)));
        }
        let compressor = &mut self.compressor;
        self.writer.add(
            &key.to_bytes(),
            |offset| offset,
            |out| match compressor {
                Some(compressor) => blob::append_compressed(out, image, compressor),
                None => blob::append(out, image),
            },
        )
    }

    pub fn is_empty(&self) -> bool {
        self.writer.index.is_empty()
    }

    pub fn finish(self, generation: Option<u32>) -> Result<WrittenLayer, StoreError> {
        self.writer.finish(self.name, generation)
    }
}
