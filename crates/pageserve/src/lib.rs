//! The data-plane listener: the libpq page service of spec page-service.md.
//!
//! In come connections; out go pages, read through the narrow [`source::PageSource`]. What is not hot (making a base
//! backup, granting a lease, activating a tenant) is asked of a [`handler::Handler`]; which timelines are here is told
//! to the [`registry::Registry`]. This crate decides nothing, keeps no file, and never waits for Python on the way to a
//! page.
//!
//! ```text
//! service (accept) ─▶ connection (task: log-in, commands) ─▶ pagestream (thread: batches) ─▶ source
//!                            │                └─ backup (chunks from the handler)
//!                            └─ lookup: cache of weak handles ─▶ registry ─▶ timeline
//! ```
#![forbid(unsafe_code)]

mod backup;
mod buffer;
mod connection;
mod context;
pub mod error;
pub mod handler;
pub mod ids;
mod lookup;
pub mod lsn_rules;
pub mod metrics;
mod output;
mod pagestream;
pub mod protocol;
pub mod registry;
pub mod service;
pub mod source;
mod store_source;
pub mod throttle;
pub mod timeline;
