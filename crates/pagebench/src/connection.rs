//! One connection of the load generator.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pageserve::protocol::pagestream::{Body, Header, Request, Version, TAG_ERROR};

use crate::histogram::Histogram;
use crate::options::Options;
use crate::targets::Targets;

/// Response tag of GetPage.
const TAG_PAGE: u8 = 102;
const FRAME_LEN: usize = 5;
/// Tag and id of a v3 response.
const ID_END: usize = FRAME_LEN + 9;

pub struct Run<'a> {
    pub options: &'a Options,
    pub targets: &'a Targets,
    pub seed: u64,
}

pub struct Outcome {
    pub latencies: Histogram,
    pub errors: u64,
    pub seconds: f64,
}

/// A connection in pagestream v3.
pub struct PageStream {
    stream: TcpStream,
}

impl PageStream {
    pub fn open(options: &Options) -> Result<PageStream, String> {
        let fail = |error: std::io::Error| format!("{}: {error}", options.connect);
        let stream = TcpStream::connect(&options.connect).map_err(fail)?;
        stream.set_nodelay(true).map_err(fail)?;
        let mut stream = PageStream { stream };
        let body = b"\0\x03\0\0user\0pagebench\0application_name\0pagebench\0\0";
        let mut hello = (body.len() as u32 + 4).to_be_bytes().to_vec();
        hello.extend_from_slice(body);
        stream.send(&hello)?;
        stream.read_until(b'Z')?;
        let text = format!("pagestream_v3 {} {}\0", options.tenant, options.timeline);
        let mut query = vec![b'Q'];
        query.extend_from_slice(&(text.len() as u32 + 4).to_be_bytes());
        query.extend_from_slice(text.as_bytes());
        stream.send(&query)?;
        stream.read_until(b'W')?;
        Ok(stream)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>), String> {
        let fail = |error: std::io::Error| format!("cannot receive: {error}");
        let mut head = [0; FRAME_LEN];
        self.stream.read_exact(&mut head).map_err(fail)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        self.stream.read_exact(&mut body).map_err(fail)?;
        if head[0] == b'E' {
            return Err(format!("the server says: {}", String::from_utf8_lossy(&body).replace('\0', " ")));
        }
        Ok((head[0], body))
    }

    fn read_until(&mut self, tag: u8) -> Result<(), String> {
        while self.message()?.0 != tag {}
        Ok(())
    }

    /// Sends one request and returns the payload of its answer.
    pub fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, String> {
        self.send(request)?;
        match self.message()? {
            (b'd', payload) => Ok(payload),
            (tag, _) => Err(format!("unexpected message {:?}", char::from(tag))),
        }
    }
}

/// splitmix64: enough for choosing blocks, and the same on every machine.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Answers that are complete at the front of `input`: calls `each` with tag and id, returns how many bytes they took.
fn take_answers(input: &[u8], mut each: impl FnMut(u8, u64) -> Result<(), String>) -> Result<usize, String> {
    let mut at = 0;
    while let Some(head) = input.get(at..at + FRAME_LEN) {
        let len = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some(message) = input.get(at..at + len) else { break };
        if head[0] != b'd' || len < ID_END {
            return Err(format!("unexpected message: {}", String::from_utf8_lossy(message).replace('\0', " ")));
        }
        let id: [u8; 8] = message[FRAME_LEN + 1..ID_END].try_into().unwrap_or_default();
        each(message[FRAME_LEN], u64::from_be_bytes(id))?;
        at += len;
    }
    Ok(at)
}

pub fn run(job: &Run<'_>) -> Result<Outcome, String> {
    let options = job.options;
    let mut stream = PageStream::open(options)?;
    let mut random = job.seed;
    let mut next_id = 1;
    let mut output = Vec::new();
    let mut in_flight: VecDeque<(u64, Instant)> = VecDeque::with_capacity(options.depth);
    let mut ask = |count: usize, output: &mut Vec<u8>, in_flight: &mut VecDeque<(u64, Instant)>, now: Instant| {
        for _ in 0..count {
            let (rel, block) = job.targets.at(next_random(&mut random) % job.targets.total());
            let header =
                Header { id: next_id, request_lsn: options.lsn, not_modified_since: options.not_modified_since };
            Request { header, body: Body::GetPage { rel, block } }.encode(Version::V3, output);
            in_flight.push_back((next_id, now));
            next_id += 1;
        }
    };
    let mut input = vec![0; 1 << 20];
    let mut have = 0;
    let mut outcome = Outcome { latencies: Histogram::default(), errors: 0, seconds: 0.0 };
    let begin = Instant::now() + options.warmup;
    let end = begin + options.measured;
    ask(options.depth, &mut output, &mut in_flight, Instant::now());
    stream.send(&output)?;
    loop {
        let n = stream.stream.read(&mut input[have..]).map_err(|error| format!("cannot receive: {error}"))?;
        if n == 0 {
            return Err("the server closed the connection".to_string());
        }
        have += n;
        let now = Instant::now();
        let mut answers = 0;
        let taken = take_answers(&input[..have], |tag, id| {
            let (asked_id, asked_at) = in_flight.pop_front().ok_or("an answer without a request")?;
            if asked_id != id {
                return Err(format!("answer {id} in place of {asked_id}"));
            }
            match tag {
                TAG_PAGE => {}
                TAG_ERROR => outcome.errors += 1,
                other => return Err(format!("unexpected answer {other}")),
            }
            if now >= begin {
                outcome.latencies.add(nanos(now - asked_at));
            }
            answers += 1;
            Ok(())
        })?;
        input.copy_within(taken..have, 0);
        have -= taken;
        if now >= end {
            outcome.seconds = (now - begin).as_secs_f64();
            return Ok(outcome);
        }
        if answers > 0 {
            output.clear();
            ask(answers, &mut output, &mut in_flight, Instant::now());
            stream.send(&output)?;
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_answers_are_taken() {
        let mut input = Vec::new();
        for id in [1u64, 2] {
            input.extend_from_slice(b"d\0\0\0\x10\x66");
            input.extend_from_slice(&id.to_be_bytes());
            input.extend_from_slice(b"abc");
        }
        let mut seen = Vec::new();
        let taken = take_answers(&input[..30], |tag, id| {
            seen.push((tag, id));
            Ok(())
        });
        assert_eq!((taken, seen), (Ok(17), vec![(0x66, 1)]));
        assert!(take_answers(b"E\0\0\0\x09shut\0", |_, _| Ok(())).is_err());
    }
}
