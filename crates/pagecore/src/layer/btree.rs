//! The index of a layer file: a B-tree with one node per 8192-byte block (spec layer-files.md 7).
//!
//! ```text
//! n u16 | level u8 | prefix length p u8 | suffix length s u8 | prefix p | suffixes n*s | values n*5 | zeros
//! ```
//! `Builder` makes the same bytes as Neon's builder for the same input. `Node` is a checked block, `Cursor` walks nodes
//! that a `NodeSource` hands out; so that reading costs a few binary searches over cached blocks.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::BLCKSZ;

const HEADER_LEN: usize = 5;
const VALUE_LEN: usize = 5;
/// Largest value of a leaf entry.
pub const VALUE_MAX: u64 = 0x7F_FFFF_FFFF;
/// First byte of a value in an internal node; the child's block number follows.
const CHILD_MARK: u64 = 0x80 << 32;
/// More levels than any file of blocks numbered with u32 can have.
const LEVELS_MAX: usize = 16;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    #[error("Unsorted input")]
    Unsorted,
    #[error("value {0:#x} does not fit an index entry")]
    Value(u64),
    #[error("key has {got} bytes instead of {want}")]
    KeyLength { got: usize, want: usize },
    #[error("an index without entries cannot be written")]
    Empty,
    #[error("index has too many blocks")]
    TooManyBlocks,
}

struct OpenNode {
    level: u8,
    prefix: Vec<u8>,
    suffix_len: usize,
    /// Suffixes, one after the other.
    suffixes: Vec<u8>,
    values: Vec<u64>,
}

impl OpenNode {
    fn new(level: u8) -> OpenNode {
        OpenNode { level, prefix: Vec::new(), suffix_len: 0, suffixes: Vec::new(), values: Vec::new() }
    }

    fn used(&self) -> usize {
        HEADER_LEN + self.prefix.len() + self.values.len() * (self.suffix_len + VALUE_LEN)
    }

    fn try_add(&mut self, key: &[u8], value: u64) -> bool {
        if self.values.is_empty() {
            self.suffix_len = key.len();
        } else if !key.starts_with(&self.prefix) {
            return false;
        }
        if self.used() + self.suffix_len + VALUE_LEN >= BLCKSZ {
            return false;
        }
        self.suffixes.extend_from_slice(&key[self.prefix.len()..]);
        self.values.push(value);
        true
    }

    /// Moves what the first and the last suffix have in common to the prefix; false if that is nothing.
    fn compress(&mut self) -> bool {
        let s = self.suffix_len;
        let n = self.values.len();
        if n == 0 {
            return false;
        }
        let last = &self.suffixes[(n - 1) * s..];
        let common = self.suffixes.iter().zip(last).take(s).take_while(|(a, b)| a == b).count();
        if common == 0 {
            return false;
        }
        self.prefix.extend_from_slice(&last[..common]);
        let mut shorter = Vec::with_capacity(n * (s - common));
        for i in 0..n {
            shorter.extend_from_slice(&self.suffixes[i * s + common..(i + 1) * s]);
        }
        self.suffixes = shorter;
        self.suffix_len = s - common;
        true
    }

    fn first_key(&self) -> Vec<u8> {
        [&self.prefix[..], &self.suffixes[..self.suffix_len]].concat()
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        let end = out.len() + BLCKSZ;
        out.extend_from_slice(&(self.values.len() as u16).to_be_bytes());
        out.extend_from_slice(&[self.level, self.prefix.len() as u8, self.suffix_len as u8]);
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&self.suffixes);
        for value in &self.values {
            out.extend_from_slice(&value.to_be_bytes()[8 - VALUE_LEN..]);
        }
        out.resize(end, 0);
    }
}

/// Builds the index blocks from ascending entries.
pub struct Builder {
    key_len: usize,
    last_key: Vec<u8>,
    stack: Vec<OpenNode>,
    blocks: Vec<u8>,
}

impl Builder {
    pub fn new(key_len: usize) -> Builder {
        debug_assert!(key_len > 0 && key_len <= usize::from(u8::MAX));
        Builder { key_len, last_key: Vec::new(), stack: vec![OpenNode::new(0)], blocks: Vec::new() }
    }

    /// Adds an entry; keys must be strictly ascending.
    pub fn append(&mut self, key: &[u8], value: u64) -> Result<(), BuildError> {
        if key.len() != self.key_len {
            return Err(BuildError::KeyLength { got: key.len(), want: self.key_len });
        }
        if value > VALUE_MAX {
            return Err(BuildError::Value(value));
        }
        if !self.last_key.is_empty() && key <= &self.last_key[..] {
            return Err(BuildError::Unsorted);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.insert(key, value)
    }

    /// Bytes of the blocks that are finished so far.
    pub fn flushed_len(&self) -> usize {
        self.blocks.len()
    }

    /// True if nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.last_key.is_empty()
    }

    fn insert(&mut self, key: &[u8], value: u64) -> Result<(), BuildError> {
        let Some(top) = self.stack.last_mut() else { return Err(BuildError::Empty) };
        if top.try_add(key, value) || (top.compress() && top.try_add(key, value)) {
            return Ok(());
        }
        let level = self.flush_top()?;
        let mut fresh = OpenNode::new(level);
        fresh.try_add(key, value);
        self.stack.push(fresh);
        Ok(())
    }

    /// Writes the top node as the next block and inserts its downlink; returns the level it had.
    fn flush_top(&mut self) -> Result<u8, BuildError> {
        let Some(node) = self.stack.pop() else { return Err(BuildError::Empty) };
        let block = self.write(&node)?;
        if self.stack.is_empty() {
            self.stack.push(OpenNode::new(node.level + 1));
        }
        self.insert(&node.first_key(), CHILD_MARK | u64::from(block))?;
        Ok(node.level)
    }

    fn write(&mut self, node: &OpenNode) -> Result<u32, BuildError> {
        let block = u32::try_from(self.blocks.len() / BLCKSZ).map_err(|_| BuildError::TooManyBlocks)?;
        node.encode_into(&mut self.blocks);
        Ok(block)
    }

    /// Returns the blocks, one after the other, and the number of the root.
    pub fn finish(mut self) -> Result<(Vec<u8>, u32), BuildError> {
        if self.is_empty() {
            return Err(BuildError::Empty);
        }
        while self.stack.len() > 1 {
            self.flush_top()?;
        }
        let Some(node) = self.stack.pop() else { return Err(BuildError::Empty) };
        let root = self.write(&node)?;
        Ok((self.blocks, root))
    }
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    #[error("index block has {0} bytes")]
    Length(usize),
    #[error("index node has no entries")]
    Empty,
    #[error("index node has prefix length {prefix} and suffix length {suffix} for keys of {key} bytes")]
    KeyLength { prefix: usize, suffix: usize, key: usize },
    #[error("index node with {0} entries does not fit its block")]
    Overflow(usize),
    #[error("keys of an index node are not ascending")]
    Order,
    #[error("internal index node refers to a child with mark {0:#04x}")]
    ChildMark(u8),
    #[error("index node has level {got} below a node of level {parent}")]
    Level { got: u8, parent: u8 },
    #[error("index is deeper than {0} levels")]
    Depth(u8),
}

/// A checked index block.
#[derive(Debug)]
pub struct Node {
    block: Box<[u8]>,
    count: usize,
    prefix_len: usize,
    suffix_len: usize,
}

impl Node {
    /// Takes a block of 8192 bytes and checks everything that can be known about it alone.
    pub fn decode(block: Box<[u8]>, key_len: usize) -> Result<Node, NodeError> {
        if block.len() != BLCKSZ {
            return Err(NodeError::Length(block.len()));
        }
        let count = usize::from(u16::from_be_bytes([block[0], block[1]]));
        let (prefix_len, suffix_len) = (usize::from(block[3]), usize::from(block[4]));
        if count == 0 {
            return Err(NodeError::Empty);
        }
        if prefix_len + suffix_len != key_len || (suffix_len == 0 && count > 1) {
            return Err(NodeError::KeyLength { prefix: prefix_len, suffix: suffix_len, key: key_len });
        }
        if HEADER_LEN + prefix_len + count * (suffix_len + VALUE_LEN) > BLCKSZ {
            return Err(NodeError::Overflow(count));
        }
        let node = Node { block, count, prefix_len, suffix_len };
        if (1..count).any(|i| node.suffix(i - 1) >= node.suffix(i)) {
            return Err(NodeError::Order);
        }
        if usize::from(node.level()) > LEVELS_MAX {
            return Err(NodeError::Depth(node.level()));
        }
        if node.level() > 0 {
            for i in 0..count {
                let mark = (node.value(i) >> 32) as u8;
                if mark != 0x80 {
                    return Err(NodeError::ChildMark(mark));
                }
            }
        }
        Ok(node)
    }

    pub fn level(&self) -> u8 {
        self.block[2]
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Never true: an empty node is refused. Here for the sake of `len`.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn prefix(&self) -> &[u8] {
        &self.block[HEADER_LEN..HEADER_LEN + self.prefix_len]
    }

    fn suffix(&self, i: usize) -> &[u8] {
        let at = HEADER_LEN + self.prefix_len + i * self.suffix_len;
        &self.block[at..at + self.suffix_len]
    }

    pub fn value(&self, i: usize) -> u64 {
        let at = HEADER_LEN + self.prefix_len + self.count * self.suffix_len + i * VALUE_LEN;
        self.block[at..at + VALUE_LEN].iter().fold(0, |v, b| v << 8 | u64::from(*b))
    }

    fn child(&self, i: usize) -> u32 {
        self.value(i) as u32
    }

    /// Writes the full key of entry `i` to the start of `out`.
    pub fn copy_key(&self, i: usize, out: &mut [u8]) {
        out[..self.prefix_len].copy_from_slice(self.prefix());
        out[self.prefix_len..self.prefix_len + self.suffix_len].copy_from_slice(self.suffix(i));
    }

    /// True if entry `i` has a key that starts with `start`.
    pub fn key_starts_with(&self, i: usize, start: &[u8]) -> bool {
        if start.len() <= self.prefix_len {
            return self.prefix().starts_with(start);
        }
        start.starts_with(self.prefix()) && self.suffix(i).starts_with(&start[self.prefix_len..])
    }

    /// The first entry whose key is not below `key`, and whether it is equal.
    fn search(&self, key: &[u8]) -> (usize, bool) {
        let head = self.prefix_len.min(key.len());
        match self.prefix()[..head].cmp(&key[..head]) {
            Ordering::Less => return (self.count, false),
            Ordering::Greater => return (0, false),
            Ordering::Equal => {}
        }
        let tail = &key[head..];
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let mid = (low + high) / 2;
            match self.suffix(mid).cmp(tail) {
                Ordering::Less => low = mid + 1,
                Ordering::Greater => high = mid,
                Ordering::Equal => return (mid, true),
            }
        }
        (low, false)
    }
}

/// Hands out checked index blocks, from a cache or from disk.
pub trait NodeSource {
    type Error: From<NodeError>;

    fn root(&self) -> u32;
    fn node(&self, block: u32) -> Result<Arc<Node>, Self::Error>;
}

/// A position in the index: at an entry, or behind the last one.
pub struct Cursor<'s, S: NodeSource> {
    source: &'s S,
    /// From the root down; the last is a leaf. Empty when the scan is over.
    path: Vec<(Arc<Node>, usize)>,
}

impl<'s, S: NodeSource> Cursor<'s, S> {
    /// Places the cursor at the first entry whose key is not below `key`.
    pub fn seek(source: &'s S, key: &[u8]) -> Result<Self, S::Error> {
        let mut cursor = Cursor { source, path: Vec::with_capacity(4) };
        let mut node = source.node(source.root())?;
        while node.level() > 0 {
            let (i, exact) = node.search(key);
            let i = if exact { i } else { i.saturating_sub(1) };
            node = cursor.descend(node, i)?;
        }
        let (i, _) = node.search(key);
        let past_leaf = i >= node.len();
        cursor.path.push((node, i.saturating_sub(usize::from(past_leaf))));
        if past_leaf {
            cursor.advance()?;
        }
        Ok(cursor)
    }

    /// Places the cursor at the last entry whose key is not above `key`.
    pub fn seek_back(source: &'s S, key: &[u8]) -> Result<Self, S::Error> {
        let mut cursor = Cursor { source, path: Vec::with_capacity(4) };
        let mut node = source.node(source.root())?;
        loop {
            let (i, exact) = node.search(key);
            if !exact && i == 0 {
                // Every key of this node is above; only the root can say so, unless an internal key is a loose bound.
                cursor.path.push((node, 0));
                cursor.retreat()?;
                return Ok(cursor);
            }
            let i = if exact { i } else { i - 1 };
            if node.level() == 0 {
                cursor.path.push((node, i));
                return Ok(cursor);
            }
            node = cursor.descend(node, i)?;
        }
    }

    /// Remembers the position in `node` and returns its child `i`.
    fn descend(&mut self, node: Arc<Node>, i: usize) -> Result<Arc<Node>, S::Error> {
        let child = self.source.node(node.child(i))?;
        // Levels that fall by one make the walk finite, whatever a damaged file says.
        if child.level() + 1 != node.level() {
            return Err(NodeError::Level { got: child.level(), parent: node.level() }.into());
        }
        self.path.push((node, i));
        Ok(child)
    }

    /// The leaf and the entry in it; none if the scan is over.
    pub fn entry(&self) -> Option<(&Node, usize)> {
        self.path.last().map(|(node, i)| (&**node, *i))
    }

    /// The value at the cursor, with the key written to `key`.
    pub fn read(&self, key: &mut [u8]) -> Option<u64> {
        let (node, i) = self.entry()?;
        node.copy_key(i, key);
        Some(node.value(i))
    }

    /// Moves to the next entry in ascending order.
    pub fn advance(&mut self) -> Result<(), S::Error> {
        while let Some((node, i)) = self.path.pop() {
            if i + 1 >= node.len() {
                continue;
            }
            if node.level() == 0 {
                self.path.push((node, i + 1));
                return Ok(());
            }
            let mut child = self.descend(node, i + 1)?;
            while child.level() > 0 {
                child = self.descend(child, 0)?;
            }
            self.path.push((child, 0));
            return Ok(());
        }
        Ok(())
    }

    /// Moves to the previous entry.
    pub fn retreat(&mut self) -> Result<(), S::Error> {
        while let Some((node, i)) = self.path.pop() {
            if i == 0 {
                continue;
            }
            if node.level() == 0 {
                self.path.push((node, i - 1));
                return Ok(());
            }
            let mut child = self.descend(node, i - 1)?;
            while child.level() > 0 {
                let last = child.len() - 1;
                child = self.descend(child, last)?;
            }
            let last = child.len() - 1;
            self.path.push((child, last));
            return Ok(());
        }
        Ok(())
    }
}

/// The value stored under exactly `key`.
pub fn lookup<S: NodeSource>(source: &S, key: &[u8]) -> Result<Option<u64>, S::Error> {
    let cursor = Cursor::seek(source, key)?;
    Ok(cursor.entry().filter(|(node, i)| node.key_starts_with(*i, key)).map(|(node, i)| node.value(i)))
}

#[cfg(test)]
#[path = "btree_tests.rs"]
mod tests;
