//! The WAL redo process for Python: the pool of a tenant, and the counts of all pools.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use pagecore::wal::rmgr;
use pagecore::{Flavour, Key, Lsn};
use pagestore::redo_process::{
    Attempts, HistogramSnapshot, PoolError, RedoCommand, RedoEvent, RedoLog, RedoMetrics, RedoPool, RedoRequest,
    StopCause, TimelineRedo,
};
use pagestore::{RedoMode, RedoProcess};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

#[pyclass(name = "RedoMetrics", frozen, module = "pageserver._core")]
pub struct PyRedoMetrics {
    metrics: Arc<RedoMetrics>,
}

#[pymethods]
impl PyRedoMetrics {
    #[new]
    fn new() -> PyRedoMetrics {
        PyRedoMetrics { metrics: Arc::default() }
    }

    /// Everything counted so far, by the names of spec metrics.md.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = &self.metrics;
        let out = PyDict::new(py);
        let histograms = [
            ("pageserver_wal_redo_seconds", &metrics.redo_seconds),
            ("pageserver_wal_redo_records_histogram", &metrics.records),
            ("pageserver_wal_redo_bytes_histogram", &metrics.bytes),
            ("pageserver_wal_redo_process_launch_duration", &metrics.launch_seconds),
        ];
        for (name, histogram) in histograms {
            let HistogramSnapshot { bounds, counts, sum } = histogram.snapshot();
            out.set_item(name, (bounds.to_vec(), counts, sum))?;
        }
        let counters = [
            ("pageserver_replayed_wal_records_total", &metrics.replayed_records),
            ("pageserver_wal_redo_process_started_total", &metrics.started),
            ("pageserver_walredo_stderr_logger_tasks_started_total", &metrics.stderr_tasks_started),
            ("pageserver_walredo_stderr_logger_tasks_finished_total", &metrics.stderr_tasks_finished),
        ];
        for (name, counter) in counters {
            out.set_item(name, counter.load(Relaxed))?;
        }
        let stopped = PyDict::new(py);
        for cause in StopCause::ALL {
            stopped.set_item(cause.label(), metrics.stopped(cause))?;
        }
        out.set_item("pageserver_wal_redo_process_stopped_total", stopped)?;
        let sent = PyDict::new(py);
        for rmid in 0..=u8::MAX {
            let count = metrics.sent(rmid);
            // Those that change pages are there from the start.
            if count > 0 || rmgr::OF_PAGES.contains(&rmid) {
                sent.set_item(rmgr::name(rmid), count)?;
            }
        }
        out.set_item("pageserver_wal_redo_process_records_total", sent)?;
        Ok(out)
    }
}

#[pyclass(name = "RedoPool", frozen, module = "pageserver._core")]
#[derive(Clone)]
pub struct PyRedoPool {
    pool: Arc<RedoPool>,
    mode: RedoMode,
}

impl PyRedoPool {
    pub fn pool(&self) -> Arc<RedoPool> {
        Arc::clone(&self.pool)
    }

    /// The pool as the store of one timeline uses it.
    pub fn for_timeline(&self, hint_bits_logged: bool, flavour: Flavour, neon_until: Lsn) -> Arc<dyn RedoProcess> {
        Arc::new(TimelineRedo::new(Arc::clone(&self.pool), hint_bits_logged).with(flavour, neon_until, self.mode))
    }
}

#[pymethods]
impl PyRedoPool {
    #[new]
    #[pyo3(signature = (*, tenant, timeout_seconds, command, log = None, metrics = None, process_only = false))]
    fn new(
        tenant: String,
        timeout_seconds: f64,
        command: Py<PyAny>,
        log: Option<Py<PyAny>>,
        metrics: Option<&PyRedoMetrics>,
        process_only: bool,
    ) -> PyResult<PyRedoPool> {
        let timeout = seconds(timeout_seconds)?;
        let commands = Box::new(move |major: u8, hint_bits_logged: bool| {
            Python::attach(|py| read_command(&command.bind(py).call1((major, hint_bits_logged))?))
                .map_err(|error: PyErr| error.to_string())
        });
        let metrics = metrics.map_or_else(Arc::default, |metrics| Arc::clone(&metrics.metrics));
        let pool = Arc::new(RedoPool::new(tenant, timeout, commands, to_python(log), metrics));
        Ok(PyRedoPool { pool, mode: if process_only { RedoMode::ProcessOnly } else { RedoMode::NativeFirst } })
    }

    fn is_running(&self, py: Python<'_>) -> bool {
        py.detach(|| self.pool.is_running())
    }

    fn pid(&self, py: Python<'_>) -> Option<u32> {
        py.detach(|| self.pool.pid())
    }

    fn idle_seconds(&self, py: Python<'_>) -> Option<f64> {
        py.detach(|| self.pool.idle_for()).map(|idle| idle.as_secs_f64())
    }

    fn stop_if_idle(&self, py: Python<'_>, idle_seconds: f64) -> PyResult<bool> {
        let idle = seconds(idle_seconds)?;
        Ok(py.detach(|| self.pool.stop_if_idle(idle)))
    }

    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| self.pool.shutdown());
    }

    #[pyo3(signature = (*, key, lsn, pg_version, hint_bits_logged, base, records))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn redo<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        lsn: u64,
        pg_version: u8,
        hint_bits_logged: bool,
        base: Option<(u64, PyBackedBytes)>,
        records: Vec<(u64, PyBackedBytes)>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let key = match Key::from_slice(key) {
            Some(parsed) if key.len() == pagecore::key::KEY_SIZE => parsed,
            _ => return Err(PyValueError::new_err(format!("a key has 18 bytes, not {}", key.len()))),
        };
        let records: Vec<(Lsn, &[u8])> = records.iter().map(|(lsn, record)| (Lsn(*lsn), &record[..])).collect();
        let request = RedoRequest {
            key,
            lsn: Lsn(lsn),
            major: pg_version,
            hint_bits_logged,
            base: base.as_ref().map(|(lsn, page)| (Lsn(*lsn), &page[..])),
            records: &records,
        };
        let page = py.detach(|| self.pool.redo(&request, Attempts::ReadPage));
        page.map(|page| PyBytes::new(py, &page)).map_err(|error| to_py_error(py, &error))
    }
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(format!("{value} seconds: {error}")))
}

fn read_command(command: &Bound<'_, PyAny>) -> PyResult<RedoCommand> {
    let env = command.getattr("env")?.call_method0("items")?;
    Ok(RedoCommand {
        argv: command.getattr("argv")?.extract()?,
        env: env.try_iter()?.map(|item| item?.extract()).collect::<PyResult<_>>()?,
        uid: command.getattr("uid")?.extract()?,
        gid: command.getattr("gid")?.extract()?,
        scratch_template: command.getattr("scratch_template")?.extract::<Option<PathBuf>>()?,
        knows_neon_records: command.getattr("knows_neon_records")?.extract()?,
    })
}

/// Events become calls `log(event, fields)`; an exception there is printed as one that nobody can catch.
fn to_python(log: Option<Py<PyAny>>) -> RedoLog {
    Box::new(move |event| {
        let Some(log) = &log else { return };
        Python::attach(|py| {
            if let Err(error) = call_log(log.bind(py), &event) {
                error.write_unraisable(py, Some(log.bind(py)));
            }
        });
    })
}

fn call_log(log: &Bound<'_, PyAny>, event: &RedoEvent<'_>) -> PyResult<()> {
    let fields = PyDict::new(log.py());
    let name = match event {
        RedoEvent::Started { pid, major } => {
            fields.set_item("pid", pid)?;
            fields.set_item("pg_version", major)?;
            "started"
        }
        RedoEvent::Stopped { pid, cause } => {
            fields.set_item("pid", pid)?;
            fields.set_item("cause", cause.label())?;
            "stopped"
        }
        RedoEvent::Output { pid, line } => {
            fields.set_item("pid", pid)?;
            fields.set_item("output", line)?;
            "received output"
        }
        RedoEvent::Failed { attempts, text } => {
            fields.set_item("during", attempts.name())?;
            fields.set_item("error", text)?;
            "failed"
        }
        RedoEvent::Recovered { tries } => {
            fields.set_item("n_attempts", tries)?;
            "retried walredo succeeded"
        }
    };
    log.call1((name, fields))?;
    Ok(())
}

/// Which of our kinds of error it is: what the caller should do about it.
pub fn to_py_error(py: Python<'_>, error: &PoolError) -> PyErr {
    let kind = match error {
        PoolError::NoCommand { .. } | PoolError::NotNeon { .. } | PoolError::Launch(_) | PoolError::TimedOut => {
            "UnavailableError"
        }
        PoolError::Stopped => "StoppedError",
        PoolError::Failed { .. } => "CorruptDataError",
        _ => "RequestError",
    };
    let made = py.import("pageserver.errors").and_then(|errors| errors.getattr(kind)?.call1((error.to_string(),)));
    made.map_or_else(|error| error, PyErr::from_value)
}
