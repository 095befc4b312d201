//! The command line.

use std::str::FromStr;
use std::time::Duration;

use pagecore::Lsn;
use pageserve::ids::{TenantId, TimelineId};

pub const USAGE: &str = "usage: pagebench --connect HOST:PORT --tenant ID --timeline ID
  --relations FILE        JSON: [{\"spcnode\":…,\"dbnode\":…,\"relnode\":…,\"forknum\":0,\"blocks\":…}, …]
  --relation S/D/R[/F]    may be repeated; the number of blocks is asked of the server
  --connections N         default 1
  --depth N               requests in flight per connection, default 1
  --seconds S             measured time, default 10
  --warmup S              before it, default 1
  --lsn X/Y               default: the latest
  --not-modified-since X/Y   default 0/1
  --seed N                default 1
  --label TEXT            goes into the output line";

pub struct Options {
    pub connect: String,
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub relations_file: Option<String>,
    pub relations: Vec<String>,
    pub connections: usize,
    pub depth: usize,
    pub measured: Duration,
    pub warmup: Duration,
    pub lsn: Lsn,
    pub not_modified_since: Lsn,
    pub seed: u64,
    pub label: String,
}

fn value<T: FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name}: cannot read {text:?}"))
}

fn seconds(name: &str, text: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value(name, text)?).map_err(|error| format!("{name}: {error}"))
}

impl Options {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut connect = None;
        let (mut tenant, mut timeline) = (None, None);
        let mut options = Options {
            connect: String::new(),
            tenant: TenantId([0; 16]),
            timeline: TimelineId([0; 16]),
            relations_file: None,
            relations: Vec::new(),
            connections: 1,
            depth: 1,
            measured: Duration::from_secs(10),
            warmup: Duration::from_secs(1),
            lsn: Lsn::MAX,
            not_modified_since: Lsn(1),
            seed: 1,
            label: String::new(),
        };
        while let Some(name) = words.next() {
            let text = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--connect" => connect = Some(text),
                "--tenant" => tenant = Some(value(&name, &text)?),
                "--timeline" => timeline = Some(value(&name, &text)?),
                "--relations" => options.relations_file = Some(text),
                "--relation" => options.relations.push(text),
                "--connections" => options.connections = value(&name, &text)?,
                "--depth" => options.depth = value::<usize>(&name, &text)?.max(1),
                "--seconds" => options.measured = seconds(&name, &text)?,
                "--warmup" => options.warmup = seconds(&name, &text)?,
                "--lsn" => options.lsn = value(&name, &text)?,
                "--not-modified-since" => options.not_modified_since = value(&name, &text)?,
                "--seed" => options.seed = value(&name, &text)?,
                "--label" => options.label = text,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        options.connect = connect.ok_or("--connect is missing")?;
        options.tenant = tenant.ok_or("--tenant is missing")?;
        options.timeline = timeline.ok_or("--timeline is missing")?;
        Ok(options)
    }
}
