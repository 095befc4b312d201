//! Pages that Neon's page server served at random LSNs, from the WAL of an unmodified PostgreSQL 16.14: redo was done by
//! PostgreSQL, so its bytes are what ours must be, hole and padding included.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use pagecore::key::{Key, RelTag};
use pagecore::redo::Context;
use pagecore::wal::framer::{StreamChecks, WalFramer};
use pagecore::{Flavour, Lsn, BLCKSZ};
use pagestore::redo_diff::Replay;
use sha2::{Digest, Sha256};

use crate::{place_of, scratch_file, Base, Unwatched};

const START: Lsn = Lsn(0x0200_0000);

/// One line of `pages.jsonl`.
struct Wanted {
    lsn: Lsn,
    key: Key,
    sha256: String,
}

fn vectors() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/neon-pg16");
    folder.join("source.tar.zst").exists().then_some(folder)
}

/// The regular files of a tar archive, by name.
fn files_of(tar: &[u8]) -> HashMap<String, Vec<u8>> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches(['\0', ' ']).to_string();
    let mut files = HashMap::new();
    let mut at = 0;
    while at + 512 <= tar.len() && tar[at] != 0 {
        let header = &tar[at..at + 512];
        let size = usize::from_str_radix(text(&header[124..136]).trim(), 8).expect("an octal size");
        let name = text(&header[..100]).trim_start_matches("./").to_string();
        if matches!(header[156], b'0' | 0) {
            files.insert(name, tar[at + 512..at + 512 + size].to_vec());
        }
        at += 512 + size.next_multiple_of(512);
    }
    files
}

/// The value behind a name in a line of JSON without nesting.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!("\"{name}\": ")).expect("the field is there");
    rest.split([',', '}']).next().expect("a value").trim_matches('"')
}

fn wanted(line: &str) -> Wanted {
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let rel: Vec<u32> = field(line, "rel").split('/').map(number).collect();
    let forknum = number(field(line, "fork")) as u8;
    let tag = RelTag { spcnode: rel[0], dbnode: rel[1], relnode: rel[2], forknum };
    Wanted {
        lsn: field(line, "lsn").parse().expect("an LSN"),
        key: Key::rel_block(tag, number(field(line, "block"))),
        sha256: field(line, "sha256").to_string(),
    }
}

#[test]
fn pages_equal_those_that_postgres_made_byte_for_byte() {
    let Some(folder) = vectors() else {
        println!("skipped: the vectors are not here");
        return;
    };
    let compressed = fs::File::open(folder.join("source.tar.zst")).expect("the source is readable");
    let mut tar = Vec::new();
    zstd::Decoder::new(compressed).expect("zstd").read_to_end(&mut tar).expect("the source decompresses");
    let mut source = files_of(&tar);
    let base = files_of(&source.remove("base.tar").expect("base.tar"));
    let wal = files_of(&source.remove("wal.tar").expect("wal.tar"));
    let lines = fs::read_to_string(folder.join("pages.jsonl")).expect("pages.jsonl is readable");
    let mut requests: Vec<Wanted> = lines.lines().map(wanted).collect();
    requests.sort_by_key(|request| request.lsn);

    let ctx = Context { major: 16, flavour: Flavour::Stock, hint_bits_logged: false };
    let base_page = move |key: Key| {
        let (path, offset) = place_of(key);
        let file = base.get(path.to_str()?)?;
        Some(file.get(offset as usize..offset as usize + BLCKSZ)?.to_vec())
    };
    let mut replay = Replay::new(ctx, Box::new(Base(Box::new(base_page))), scratch_file());
    let mut framer = WalFramer::new(16, START, StreamChecks::default()).expect("a supported version");
    for segment in START.0 >> 24.. {
        match wal.get(&format!("{:08X}{:08X}{segment:08X}", 1, 0)) {
            Some(bytes) => framer.feed(bytes),
            None => break,
        }
    }

    let mut requests = requests.into_iter().peekable();
    let (mut equal, mut different) = (0, Vec::new());
    loop {
        // Zeros follow the last record.
        let next = framer.next_record().ok().flatten();
        let until = next.map_or(Lsn::MAX, |(lsn, _)| lsn);
        while let Some(request) = requests.next_if(|request| request.lsn < until) {
            let page =
                replay.page(&request.key).expect("the page is readable").unwrap_or_else(|| Box::new([0; BLCKSZ]));
            if hex::encode(Sha256::digest(&page[..])) == request.sha256 {
                equal += 1;
            } else {
                different.push(format!("{}/{} at {}", request.key.rel_tag(), request.key.field6, request.lsn));
            }
        }
        match next {
            Some((lsn, record)) => replay.record(lsn, lsn, record, &mut Unwatched).expect("the record is replayed"),
            None => break,
        }
    }
    assert!(different.is_empty(), "{equal} equal, {} different: {different:#?}", different.len());
    assert_eq!(equal, 5000);
}
