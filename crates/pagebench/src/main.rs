//! `pagebench`: drives GetPage over pagestream v3 and prints one JSON line.
//!
//! ```text
//! pagebench --connect 127.0.0.1:64000 --tenant T --timeline TL --relations FILE --connections 8 --depth 32 --seconds 10
//! ```
//! Each connection is one thread that keeps `depth` requests in flight: for every answer that has arrived it sends one
//! new request, all of them in one write. Blocks are drawn uniformly over all blocks of the given relations. Latency is
//! from before the write of a request to after the read that completed its answer. Works the same against
//! `pagebench-echo`, whose figures are the ceiling of this machine.
mod connection;
mod histogram;
mod options;
mod targets;

use std::process::ExitCode;
use std::thread;

use connection::{run, Outcome, Run};
use histogram::Histogram;
use options::Options;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(bench) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pagebench: {error}\n\n{}", options::USAGE);
            ExitCode::FAILURE
        }
    }
}

fn bench(options: Options) -> Result<String, String> {
    let targets = targets::load(&options)?;
    let outcomes: Vec<Result<Outcome, String>> = thread::scope(|scope| {
        let started: Vec<_> = (0..options.connections)
            .map(|number| {
                let job = Run { options: &options, targets: &targets, seed: options.seed + number as u64 };
                scope.spawn(move || run(&job))
            })
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a connection's thread died".to_string())))
            .collect()
    });
    let mut latencies = Histogram::default();
    let (mut errors, mut rate, mut seconds) = (0, 0.0, 0.0f64);
    for outcome in outcomes {
        let outcome = outcome?;
        errors += outcome.errors;
        rate += outcome.latencies.count() as f64 / outcome.seconds;
        seconds = seconds.max(outcome.seconds);
        latencies.merge(&outcome.latencies);
    }
    let micros = |quantile| (latencies.quantile(quantile) as f64 / 100.0).round() / 10.0;
    let line = serde_json::json!({
        "label": options.label,
        "connections": options.connections,
        "depth": options.depth,
        "blocks": targets.total(),
        "seconds": (seconds * 1000.0).round() / 1000.0,
        "requests": latencies.count(),
        "requests_per_second": rate.round(),
        "p50_us": micros(0.50),
        "p90_us": micros(0.90),
        "p99_us": micros(0.99),
        "max_us": micros(1.0),
        "errors": errors,
    });
    Ok(line.to_string())
}
