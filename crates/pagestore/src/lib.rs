//! The storage engine on one machine: layers, layer map, reads, redo process. Disk only, no sockets, no policy.
