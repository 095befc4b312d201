//! The storage engine on one machine: layers, layer map, reads, redo process. Disk only, no sockets, no policy.

pub mod cache;
pub mod directory;
pub mod error;
pub mod flush;
pub mod image_layer;
pub mod ingest;
pub mod inmemory;
pub mod io;
pub mod layer_file;
pub mod layer_map;
pub mod layer_writer;
pub mod page_cache;
pub mod read;
pub mod read_stats;
pub mod reconstruct;
pub mod redo;
pub mod redo_diff;
pub mod redo_process;
pub mod rel_size;
pub mod source;
pub mod timeline;
pub mod values;

#[cfg(test)]
mod testing;

pub use error::{ReadError, StoreError};
pub use inmemory::{Entry, InMemoryLayer, WriteBatch};
pub use layer_file::{Caches, LayerFetch};
pub use layer_writer::WrittenLayer;
pub use redo::{RedoMode, RedoProcess, RedoProcessError};
pub use source::{Gap, WalOrigin};
pub use timeline::{OpenLayerInfo, TimelineConfig, TimelineStore, Writer};
