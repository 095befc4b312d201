use sha2::{Digest, Sha256};

use super::*;
use crate::layer::delta_key;
use crate::{Key, Lsn};

struct Blocks {
    nodes: Vec<Arc<Node>>,
    root: u32,
}

impl Blocks {
    fn new(bytes: &[u8], root: u32, key_len: usize) -> Blocks {
        let node = |b: &[u8]| Arc::new(Node::decode(b.into(), key_len).unwrap());
        Blocks { nodes: bytes.chunks(BLCKSZ).map(node).collect(), root }
    }
}

impl NodeSource for Blocks {
    type Error = NodeError;

    fn root(&self) -> u32 {
        self.root
    }

    fn node(&self, block: u32) -> Result<Arc<Node>, NodeError> {
        self.nodes.get(block as usize).cloned().ok_or(NodeError::Length(0))
    }
}

fn build(entries: &[(Vec<u8>, u64)]) -> (Vec<u8>, u32) {
    let mut builder = Builder::new(entries[0].0.len());
    for (key, value) in entries {
        builder.append(key, *value).unwrap();
    }
    builder.finish().unwrap()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn forward(source: &Blocks, key: &[u8]) -> Vec<u64> {
    let mut cursor = Cursor::seek(source, key).unwrap();
    let mut out = Vec::new();
    while let Some((node, i)) = cursor.entry() {
        out.push(node.value(i));
        cursor.advance().unwrap();
    }
    out
}

fn backward(source: &Blocks, key: &[u8]) -> Vec<u64> {
    let mut cursor = Cursor::seek_back(source, key).unwrap();
    let mut out = Vec::new();
    while let Some((node, i)) = cursor.entry() {
        out.push(node.value(i));
        cursor.retreat().unwrap();
    }
    out
}

fn rel_key(rel: u32, block: u32) -> Key {
    Key { field1: 0, field2: 1663, field3: 5, field4: rel, field5: 0, field6: block }
}

#[test]
fn vector_1_one_leaf_of_text_keys() {
    let keys = ["xaaaaa", "xaaaba", "xaaaca", "xabaaa", "xababa", "xabaca", "xabada", "xabadb"];
    let entries: Vec<_> = keys.iter().enumerate().map(|(i, k)| (k.as_bytes().to_vec(), i as u64)).collect();
    let (bytes, root) = build(&entries);
    assert_eq!((bytes.len(), root), (BLCKSZ, 0));
    assert_eq!(bytes[..5], [0, 8, 0, 0, 6]);
    assert_eq!(hash(&bytes), "c282b987f7edfc4b04f305429fd66d2f92a41099ac17ad85d9e5c18f66071b7d");
    let source = Blocks::new(&bytes, root, 6);
    for absent in ["aaaaaa", "zzzzzz", "xaaabx"] {
        assert_eq!(lookup(&source, absent.as_bytes()), Ok(None));
    }
    for (key, value) in &entries {
        assert_eq!(lookup(&source, key), Ok(Some(*value)));
    }
    assert_eq!(forward(&source, b"xabaaa"), [3, 4, 5, 6, 7]);
    assert_eq!(backward(&source, b"xabaaa"), [3, 2, 1, 0]);
    assert_eq!(backward(&source, b"aaaaaa"), []);
    assert_eq!(forward(&source, b"zzzzzz"), []);
}

#[test]
fn vector_2_a_thousand_numbers() {
    let entries: Vec<_> = (0..1000u64).map(|i| ((1 + 2 * i).to_be_bytes().to_vec(), i)).collect();
    let (bytes, root) = build(&entries);
    assert_eq!(root, 0);
    assert_eq!(hash(&bytes), "a38e9a0fa6023d881a7c4d5c865ed994560cbaf73df957f8cfb571c4eea4ece1");
}

#[test]
fn vector_3_two_levels() {
    let entries: Vec<_> = (0..1000u32)
        .map(|i| {
            let key = delta_key(&rel_key(16384 + i / 100, i % 100), Lsn(0x100_0000 + 0x28 * (u64::from(i) + 1)));
            (key.to_vec(), (8192 + 64 * u64::from(i)) << 1 | u64::from(i % 4 == 0))
        })
        .collect();
    let (bytes, root) = build(&entries);
    assert_eq!((bytes.len() / BLCKSZ, root), (4, 3));
    assert_eq!(hash(&bytes), "22324d89243826bbe072e7b4f32f66519e1823229e76dd183d33c76e029559dd");
    let source = Blocks::new(&bytes, root, 26);
    let shape = |b: usize| {
        let node = &source.nodes[b];
        (node.len(), node.level(), node.prefix_len)
    };
    assert_eq!([shape(0), shape(1), shape(2), shape(3)], [(430, 0, 12), (430, 0, 12), (140, 0, 0), (3, 1, 0)]);
    assert_eq!(hex::encode(source.nodes[0].prefix()), "000000067f00000005000040");
    for i in [0, 1, 429, 430, 431, 860, 999] {
        let (key, value) = &entries[i];
        assert_eq!(lookup(&source, key), Ok(Some(*value)));
        let from: Vec<u64> = entries[i..].iter().map(|e| e.1).collect();
        assert_eq!(forward(&source, key), from);
        let back: Vec<u64> = entries[..=i].iter().rev().map(|e| e.1).collect();
        assert_eq!(backward(&source, key), back);
        // Keys between two entries.
        let mut between = key.clone();
        between[25] += 1;
        assert_eq!(lookup(&source, &between), Ok(None));
        assert_eq!(forward(&source, &between), from[1..]);
        assert_eq!(backward(&source, &between), back);
    }
    assert_eq!(backward(&source, &[0; 26]), []);
    assert_eq!(forward(&source, &[0; 26]).len(), 1000);
}

#[test]
fn vector_4_three_levels() {
    let entries: Vec<_> = (0..300_000u32)
        .map(|i| {
            let key = delta_key(&rel_key(16384 + i / 5000, i % 5000), Lsn(0x100_0000 + 8 * u64::from(i)));
            (key.to_vec(), (8192 + 100 * u64::from(i)) << 1 | u64::from(i % 3 == 0))
        })
        .collect();
    let (bytes, root) = build(&entries);
    assert_eq!((bytes.len() / BLCKSZ, root), (573, 572));
    assert_eq!(hash(&bytes), "236aabcd6b83d488afc3b0261e053c4b7072c7188e3dc0a4192b1fb090ce6537");
    let source = Blocks::new(&bytes, root, 26);
    assert_eq!((source.nodes[572].level(), source.nodes[431].len(), source.nodes[571].len()), (2, 430, 140));
    for (key, value) in entries.iter().step_by(997) {
        assert_eq!(lookup(&source, key), Ok(Some(*value)));
    }
    assert_eq!(forward(&source, &entries[0].0).len(), 300_000);
    assert_eq!(backward(&source, &entries[299_999].0).len(), 300_000);
}

#[test]
fn vector_5_image_keys() {
    let entries: Vec<_> =
        (0..2000u32).map(|i| (rel_key(16384, i).to_bytes().to_vec(), 8192 + 8196 * u64::from(i))).collect();
    let (bytes, root) = build(&entries);
    assert_eq!((bytes.len() / BLCKSZ, root), (3, 2));
    assert_eq!(hash(&bytes), "fb642710a894171f7ed25afbe33b60b1b8e70c6198918cffe491ce0674f7bf6d");
}

#[test]
fn bad_input_is_refused() {
    let mut builder = Builder::new(2);
    builder.append(b"bb", 1).unwrap();
    assert_eq!(builder.append(b"bb", 1), Err(BuildError::Unsorted));
    assert_eq!(builder.append(b"aa", 1), Err(BuildError::Unsorted));
    assert_eq!(builder.append(b"ccc", 1), Err(BuildError::KeyLength { got: 3, want: 2 }));
    assert_eq!(builder.append(b"cc", VALUE_MAX + 1), Err(BuildError::Value(VALUE_MAX + 1)));
    assert_eq!(builder.append(b"cc", VALUE_MAX), Ok(()));
    assert!(matches!(Builder::new(2).finish(), Err(BuildError::Empty)));
}

#[test]
fn nodes_never_use_their_last_byte() {
    let mut state = 7u64;
    let mut keys: Vec<Vec<u8>> = (0..20_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            [&[0, 0, (state >> 60) as u8][..], &state.to_be_bytes()].concat()
        })
        .collect();
    keys.sort();
    keys.dedup();
    let entries: Vec<_> = keys.into_iter().map(|k| (k, VALUE_MAX)).collect();
    let (bytes, root) = build(&entries);
    assert!(bytes.chunks(BLCKSZ).all(|b| b[BLCKSZ - 1] == 0));
    let source = Blocks::new(&bytes, root, 11);
    assert_eq!(forward(&source, &[0; 11]).len(), entries.len());
}

#[test]
fn any_split_of_prefix_and_suffix_is_read() {
    for p in 0..=5 {
        let keys: [&[u8]; 2] = [b"abcdea", b"abcdez"];
        let mut block = vec![0, 2, 0, p as u8, 6 - p as u8];
        block.extend_from_slice(&keys[0][..p]);
        keys.iter().for_each(|k| block.extend_from_slice(&k[p..]));
        block.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 2]);
        block.resize(BLCKSZ, 0);
        let source = Blocks::new(&block, 0, 6);
        assert_eq!(lookup(&source, b"abcdea"), Ok(Some(1)));
        assert_eq!(lookup(&source, b"abcdez"), Ok(Some(2)));
        assert_eq!(lookup(&source, b"abcdeb"), Ok(None));
        assert_eq!(forward(&source, b"abc000"), [1, 2]);
        assert_eq!(forward(&source, b"zzzzzz"), []);
    }
}

#[test]
fn damaged_nodes_are_refused() {
    let decode = |change: &dyn Fn(&mut Vec<u8>)| {
        let entries: Vec<_> = (0..9u64).map(|i| (i.to_be_bytes().to_vec(), i)).collect();
        let (mut bytes, _) = build(&entries);
        change(&mut bytes);
        Node::decode(bytes.into(), 8).map(|_| ())
    };
    assert_eq!(decode(&|_| ()), Ok(()));
    assert_eq!(decode(&|b| b[1] = 0), Err(NodeError::Empty));
    assert_eq!(decode(&|b| b[4] = 9), Err(NodeError::KeyLength { prefix: 0, suffix: 9, key: 8 }));
    assert_eq!(decode(&|b| b[0] = 0x7F), Err(NodeError::Overflow(0x7F09)));
    assert_eq!(decode(&|b| b[5 + 15] = 9), Err(NodeError::Order));
    assert_eq!(decode(&|b| b[2] = 1), Err(NodeError::ChildMark(0)));
    assert_eq!(decode(&|b| b.truncate(100)), Err(NodeError::Length(100)));
}

#[test]
fn a_tree_that_refers_to_itself_is_an_error() {
    let mut block = vec![0, 1, 1, 0, 6];
    block.extend_from_slice(b"aaaaaa");
    block.extend_from_slice(&[0x80, 0, 0, 0, 0]);
    block.resize(BLCKSZ, 0);
    let source = Blocks::new(&block, 0, 6);
    assert_eq!(lookup(&source, b"aaaaaa"), Err(NodeError::Level { got: 1, parent: 1 }));
}
