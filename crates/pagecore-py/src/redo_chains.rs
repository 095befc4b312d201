//! Chains of records that are replayed again and again, by either engine: for benchmarks and tests.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagecore::redo::{self, Context};
use pagecore::value::Record;
use pagecore::{Flavour, Key, Lsn};
use pagestore::redo_process::{Attempts, RedoPool, RedoRequest};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::raise;
use crate::redo::{to_py_error, PyRedoPool};

struct Chain {
    key: Key,
    base: Option<(Lsn, Vec<u8>)>,
    records: Vec<(Lsn, Vec<u8>)>,
}

#[pyclass(frozen, module = "pageserver._core")]
pub struct RedoChains {
    context: Context,
    chains: Vec<Chain>,
}

type PyChain = (Vec<u8>, Option<(u64, Vec<u8>)>, Vec<(u64, Vec<u8>)>);

#[pymethods]
impl RedoChains {
    #[new]
    #[pyo3(signature = (chains, *, pg_version, hint_bits_logged))]
    fn new(chains: Vec<PyChain>, pg_version: u8, hint_bits_logged: bool) -> PyResult<RedoChains> {
        let context = Context { major: pg_version, flavour: Flavour::Stock, hint_bits_logged };
        let chains = chains.into_iter().map(chain_of).collect::<PyResult<_>>()?;
        Ok(RedoChains { context, chains })
    }

    fn __len__(&self) -> usize {
        self.chains.len()
    }

    #[pyo3(signature = (pool = None))]
    fn pages<'py>(&self, py: Python<'py>, pool: Option<&PyRedoPool>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let pool = pool.map(PyRedoPool::pool);
        let pages = py.detach(|| -> Result<Vec<Bytes>, Failure> {
            self.chains.iter().map(|chain| self.page(chain, pool.as_ref())).collect()
        });
        let pages = pages.map_err(|failure| failure.raise(py))?;
        Ok(pages.iter().map(|page| PyBytes::new(py, page)).collect())
    }

    #[pyo3(signature = (*, threads, rounds, pool = None))]
    fn seconds(&self, py: Python<'_>, threads: usize, rounds: usize, pool: Option<&PyRedoPool>) -> PyResult<f64> {
        if threads == 0 || threads > 64 {
            return Err(PyValueError::new_err(format!("{threads} threads")));
        }
        let pool = pool.map(PyRedoPool::pool);
        let took = py.detach(|| self.replay_all(threads, rounds, pool.as_ref()));
        took.map(|took| took.as_secs_f64()).map_err(|failure| failure.raise(py))
    }
}

impl RedoChains {
    fn replay_all(&self, threads: usize, rounds: usize, pool: Option<&Arc<RedoPool>>) -> Result<Duration, Failure> {
        let ready = Barrier::new(threads);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|number| {
                    let ready = &ready;
                    scope.spawn(move || {
                        ready.wait();
                        let begun = Instant::now();
                        for _ in 0..rounds {
                            for chain in self.chains.iter().skip(number).step_by(threads) {
                                black_box(self.page(chain, pool)?);
                            }
                        }
                        Ok((begun, Instant::now()))
                    })
                })
                .collect();
            // From the first thread's start to the last one's end. This thread's own clock would start when it is woken.
            let mut whole: Option<(Instant, Instant)> = None;
            for worker in workers {
                let (begun, ended) =
                    worker.join().unwrap_or_else(|_| Err(Failure::Native("a thread panicked".into())))?;
                let (first, last) = whole.unwrap_or((begun, ended));
                whole = Some((first.min(begun), last.max(ended)));
            }
            Ok(whole.map_or(Duration::ZERO, |(first, last)| last - first))
        })
    }

    fn page(&self, chain: &Chain, pool: Option<&Arc<RedoPool>>) -> Result<Bytes, Failure> {
        match pool {
            None => self.replay(chain),
            Some(pool) => self.ask(chain, pool),
        }
    }

    /// What a read of the store does with a chain.
    fn replay(&self, chain: &Chain) -> Result<Bytes, Failure> {
        let mut page = chain.base.as_ref().map_or_else(Vec::new, |(_, page)| page.clone());
        for (lsn, record) in &chain.records {
            let record = Record::Postgres { will_init: false, record: (&record[..]).into() };
            redo::apply(&self.context, chain.key, &mut page, *lsn, &record)
                .map_err(|error| Failure::Native(error.to_string()))?;
        }
        Ok(page.into())
    }

    fn ask(&self, chain: &Chain, pool: &RedoPool) -> Result<Bytes, Failure> {
        let records: Vec<(Lsn, &[u8])> = chain.records.iter().map(|(lsn, record)| (*lsn, &record[..])).collect();
        let request = RedoRequest {
            key: chain.key,
            lsn: records.last().map_or(Lsn::INVALID, |(lsn, _)| *lsn),
            major: self.context.major,
            hint_bits_logged: self.context.hint_bits_logged,
            base: chain.base.as_ref().map(|(lsn, page)| (*lsn, &page[..])),
            records: &records,
        };
        pool.redo(&request, Attempts::ReadPage).map_err(Failure::Process)
    }
}

enum Failure {
    Native(String),
    Process(pagestore::redo_process::PoolError),
}

impl Failure {
    fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Failure::Native(text) => raise(py, "CorruptDataError", &text, &[]),
            Failure::Process(error) => to_py_error(py, &error),
        }
    }
}

fn chain_of((key, base, records): PyChain) -> PyResult<Chain> {
    let parsed = Key::from_slice(&key).filter(|_| key.len() == pagecore::key::KEY_SIZE);
    Ok(Chain {
        key: parsed.ok_or_else(|| PyValueError::new_err(format!("a key has 18 bytes, not {}", key.len())))?,
        base: base.map(|(lsn, page)| (Lsn(lsn), page)),
        records: records.into_iter().map(|(lsn, record)| (Lsn(lsn), record)).collect(),
    })
}
