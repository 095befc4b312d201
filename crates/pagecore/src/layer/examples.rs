//! The worked examples of spec layer-files.md 14, byte for byte.

use sha2::{Digest, Sha256};

use super::*;
use crate::value::{Record, Value};
use crate::{Key, Lsn, RelTag, BLCKSZ};

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16396, forknum: 0 };

fn file(summary: &mut Summary, blobs: Vec<u8>, index: Builder) -> Vec<u8> {
    let mut body = blobs;
    body.resize(body.len().next_multiple_of(BLCKSZ), 0);
    let (blocks, root) = index.finish().unwrap();
    summary.index_start = 1 + (body.len() / BLCKSZ) as u32;
    summary.index_root = root;
    [summary.encode(), body, blocks].concat()
}

fn summary(name: &str) -> Summary {
    let id = |text: &str| hex::decode(text).unwrap().try_into().unwrap();
    Summary {
        tenant_id: id("1f359dd625e519a1a4e8d7509690f6fc"),
        timeline_id: id("11223344556677881122334455667788"),
        name: LayerName::parse(name).unwrap(),
        index_start: 0,
        index_root: 0,
    }
}

#[test]
fn delta_layer() {
    let mut summary = summary(
        "000000067F000000050000400C0000000000-030000000000000000000000000000000001__0000000001000028-0000000001000061",
    );
    let record = |will_init, bytes: &'static [u8]| Value::Record(Record::Postgres { will_init, record: bytes.into() });
    let clear = Record::ClearVisibilityMapFlags { new_heap_block: Some(0x11), old_heap_block: None, flags: 3 };
    let vm = RelTag { forknum: 2, ..REL };
    let entries = [
        (Key::rel_block(REL, 0), 0x100_0028, record(true, b"foobar")),
        (Key::rel_block(REL, 0), 0x100_0060, record(false, b"barbaz")),
        (Key::rel_size(REL), 0x100_0028, Value::Image(vec![1, 0, 0, 0].into())),
        (Key::rel_block(vm, 0), 0x100_0060, Value::Record(clear)),
        (Key::CONTROL_FILE, 0x100_0028, Value::Image(vec![0xAA; 128].into())),
    ];
    let mut blobs = Vec::new();
    let mut index = Builder::new(DELTA_KEY_SIZE);
    for (key, lsn, value) in entries {
        let offset = (BLCKSZ + blobs.len()) as u64;
        index.append(&delta_key(&key, Lsn(lsn)), offset << 1 | u64::from(value.will_init())).unwrap();
        blob::append(&mut blobs, &value.encode()).unwrap();
    }
    let bytes = file(&mut summary, blobs, index);
    assert_eq!(bytes.len(), 24576);
    assert_eq!(hex::encode(Sha256::digest(&bytes)), "191e202213beb3e6d10100290fdfbf47b5628499c24db7e1c651fb2624298287");
    assert_eq!(Summary::decode(&bytes).unwrap(), summary);
}

/// The image layer with its third value stored by `store`.
fn image_layer(store: impl Fn(&mut Vec<u8>, &[u8])) -> Vec<u8> {
    let mut summary =
        summary("000000000000000000000000000000000000-030000000000000000000000000000000001__0000000001000060");
    let mut blobs = Vec::new();
    let mut index = Builder::new(crate::key::KEY_SIZE);
    let mut add = |key: Key, write: &dyn Fn(&mut Vec<u8>)| {
        index.append(&key.to_bytes(), (BLCKSZ + blobs.len()) as u64).unwrap();
        write(&mut blobs);
    };
    add(Key::rel_block(REL, 0), &|out| blob::append(out, b"foobar").unwrap());
    add(Key::rel_size(REL), &|out| blob::append(out, &[1, 0, 0, 0]).unwrap());
    add(Key::CONTROL_FILE, &|out| store(out, &[0; 8192]));
    file(&mut summary, blobs, index)
}

#[test]
fn image_layer_with_the_original_frame() {
    let bytes = image_layer(|out, data| {
        let frame = zstd::stream::encode_all(data, 1).unwrap();
        assert_eq!(hex::encode(&frame), "28b52ffd00484d00001000000100fbdf032c");
        blob::append_frame(out, &frame).unwrap();
    });
    assert_eq!(bytes.len(), 24576);
    assert_eq!(hex::encode(Sha256::digest(&bytes)), "7afea226624e3207ed2d090f8e2c4f7f87d076d26cf56ab9ba74d80dd54ae6c0");
}

#[test]
fn image_layer_without_compression() {
    let bytes = image_layer(|out, data| blob::append(out, data).unwrap());
    assert_eq!(bytes.len(), 32768);
    assert_eq!(hex::encode(Sha256::digest(&bytes)), "0e30b034e917ec2be9146c4e96afa03f58f2a654d748678830a77fdbb92ae84e");
}
