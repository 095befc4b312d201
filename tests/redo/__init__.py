"""The WAL that the redo tests of `crates/pagecore/tests/consistency.rs` replay, and the workload that makes it."""
