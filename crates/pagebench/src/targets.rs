//! Which blocks are asked for.

use pagecore::RelTag;
use pageserve::protocol::pagestream::{Answer, Body, Header, Request, Response, Version};
use serde_json::Value;

use crate::connection::PageStream;
use crate::options::Options;

/// Relations with the number of blocks up to and including each.
pub struct Targets {
    relations: Vec<(RelTag, u64)>,
}

impl Targets {
    pub fn total(&self) -> u64 {
        self.relations.last().map_or(0, |(_, end)| *end)
    }

    /// The block at a place between 0 and the total.
    pub fn at(&self, place: u64) -> (RelTag, u32) {
        let i = self.relations.partition_point(|(_, end)| *end <= place);
        let start = i.checked_sub(1).map_or(0, |before| self.relations[before].1);
        (self.relations[i].0, (place - start) as u32)
    }

    fn new(sizes: impl IntoIterator<Item = (RelTag, u32)>) -> Result<Targets, String> {
        let mut end = 0;
        let relations: Vec<(RelTag, u64)> = sizes
            .into_iter()
            .filter(|(_, blocks)| *blocks > 0)
            .map(|(rel, blocks)| {
                end += u64::from(blocks);
                (rel, end)
            })
            .collect();
        match relations.is_empty() {
            true => Err("no blocks to ask for: give --relations or --relation".to_string()),
            false => Ok(Targets { relations }),
        }
    }
}

pub fn load(options: &Options) -> Result<Targets, String> {
    let mut sizes = match &options.relations_file {
        Some(path) => read_file(path)?,
        None => Vec::new(),
    };
    if !options.relations.is_empty() {
        let mut stream = PageStream::open(options)?;
        for text in &options.relations {
            let rel = parse_relation(text).ok_or_else(|| format!("--relation: cannot read {text:?}"))?;
            sizes.push((rel, ask_size(&mut stream, options, rel)?));
        }
    }
    Targets::new(sizes)
}

fn parse_relation(text: &str) -> Option<RelTag> {
    let numbers: Option<Vec<u32>> = text.split('/').map(|number| number.parse().ok()).collect();
    match numbers?.as_slice() {
        [spcnode, dbnode, relnode] => {
            Some(RelTag { spcnode: *spcnode, dbnode: *dbnode, relnode: *relnode, forknum: 0 })
        }
        [spcnode, dbnode, relnode, fork] => {
            Some(RelTag { spcnode: *spcnode, dbnode: *dbnode, relnode: *relnode, forknum: u8::try_from(*fork).ok()? })
        }
        _ => None,
    }
}

fn read_file(path: &str) -> Result<Vec<(RelTag, u32)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let list: Value = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
    let list = list.as_array().ok_or_else(|| format!("{path}: not a list"))?;
    list.iter()
        .map(|entry| {
            let field = |name: &str| {
                let number = entry.get(name).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
                number.ok_or_else(|| format!("{path}: {entry} has no number {name:?}"))
            };
            let forknum = u8::try_from(field("forknum")?).map_err(|error| format!("{path}: {error}"))?;
            let rel =
                RelTag { spcnode: field("spcnode")?, dbnode: field("dbnode")?, relnode: field("relnode")?, forknum };
            Ok((rel, field("blocks")?))
        })
        .collect()
}

fn ask_size(stream: &mut PageStream, options: &Options, rel: RelTag) -> Result<u32, String> {
    let header = Header { id: 1, request_lsn: options.lsn, not_modified_since: options.not_modified_since };
    let mut request = Vec::new();
    Request { header, body: Body::Nblocks { rel } }.encode(Version::V3, &mut request);
    let payload = stream.exchange(&request)?;
    match Response::decode(Version::V3, &payload).map(|response| response.answer) {
        Ok(Answer::Nblocks(blocks)) => Ok(blocks),
        Ok(Answer::Error(text)) => Err(format!("size of {rel}: {text}")),
        other => Err(format!("size of {rel}: unexpected answer {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_over_relations_by_their_size() {
        let rel = |relnode| RelTag { spcnode: 1663, dbnode: 5, relnode, forknum: 0 };
        let targets = Targets::new([(rel(1), 3), (rel(2), 0), (rel(3), 2)]).unwrap();
        let all: Vec<_> = (0..targets.total()).map(|place| targets.at(place)).collect();
        assert_eq!(all, [(rel(1), 0), (rel(1), 1), (rel(1), 2), (rel(3), 0), (rel(3), 1)]);
        assert!(Targets::new([]).is_err());
        assert_eq!(parse_relation("1663/5/1/2"), Some(RelTag { forknum: 2, ..rel(1) }));
        assert_eq!(parse_relation("1663/5"), None);
    }
}
