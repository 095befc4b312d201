//! The wire protocol without sockets: bytes to values and back (spec page-service.md 1, 2).

pub mod backend;
pub mod command;
pub mod frontend;
pub mod pagestream;
pub mod startup;
