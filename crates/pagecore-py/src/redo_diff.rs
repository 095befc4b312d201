//! The differential prover for Python: `pagectl redo-diff`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pagecore::redo::Context;
use pagecore::wal::names;
use pagecore::{Flavour, Lsn, RelTag};
use pagestore::redo_diff::{
    BasePages, DataFile, DataFiles, Difference, NoBase, RedoDiff, RedoDiffConfig, RedoDiffError, Report, Stopped,
    Witness,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::raise;
use crate::redo::PyRedoPool;
use crate::wal::wal_error;

/// (tablespace, database, relation, fork, segment, path)
type FileOfRelation = (u32, u32, u32, u8, u32, PathBuf);

#[pyclass(name = "RedoDiff", frozen, module = "pageserver._core")]
pub struct PyRedoDiff {
    diff: Mutex<RedoDiff>,
    major: u8,
}

impl PyRedoDiff {
    /// What a call that failed has left behind is only counts.
    fn lock(&self) -> MutexGuard<'_, RedoDiff> {
        self.diff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyRedoDiff {
    #[new]
    #[pyo3(signature = (
        *, pg_version, start_lsn, system_identifier, hint_bits_logged, scratch, base, pool, threads, differences_max
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        pg_version: u8,
        start_lsn: u64,
        system_identifier: u64,
        hint_bits_logged: bool,
        scratch: PathBuf,
        base: Option<Vec<FileOfRelation>>,
        pool: Option<&PyRedoPool>,
        threads: usize,
        differences_max: usize,
    ) -> PyResult<PyRedoDiff> {
        let base: Box<dyn BasePages> = match base {
            Some(files) => Box::new(data_files(files)),
            None => Box::new(NoBase),
        };
        let config = RedoDiffConfig {
            context: Context { major: pg_version, flavour: Flavour::Stock, hint_bits_logged },
            start: Lsn(start_lsn),
            system_identifier,
            scratch: open_scratch(&scratch).map_err(|error| failed(py, &error))?,
            base,
            peer: pool.map(|pool| (pool.pool(), threads)),
            differences_max,
        };
        let diff = RedoDiff::new(config).map_err(|error| failed(py, &error))?;
        Ok(PyRedoDiff { diff: Mutex::new(diff), major: pg_version })
    }

    fn feed(&self, py: Python<'_>, wal: PyBackedBytes) -> PyResult<Option<(u64, String)>> {
        let stopped = py.detach(|| self.lock().feed(&wal)).map_err(|error| failed(py, &error))?;
        Ok(stopped.map(|Stopped { at, problem }| (at.0, problem)))
    }

    #[getter]
    fn lsn_end(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.lock().end().0)
    }

    fn compare_files(&self, py: Python<'_>, files: Vec<FileOfRelation>) -> PyResult<()> {
        py.detach(|| self.lock().compare_files(&data_files(files))).map_err(|error| failed(py, &error))
    }

    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = py.detach(|| self.lock().report().clone());
        show(py, self.major, &report)
    }
}

fn data_files(files: Vec<FileOfRelation>) -> DataFiles {
    DataFiles::new(files.into_iter().map(|(spcnode, dbnode, relnode, forknum, segment, path)| DataFile {
        rel: RelTag { spcnode, dbnode, relnode, forknum },
        segment,
        path,
    }))
}

/// The file has no name any more when this returns, so that nothing is left behind however the run ends.
fn open_scratch(path: &PathBuf) -> Result<File, RedoDiffError> {
    let fail = |error| RedoDiffError::DataFile { path: path.clone(), error };
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(fail)?;
    std::fs::remove_file(path).map_err(fail)?;
    Ok(file)
}

fn failed(py: Python<'_>, error: &RedoDiffError) -> PyErr {
    match error {
        RedoDiffError::Wal(error) => wal_error(py, error),
        RedoDiffError::Scratch(_) => raise(py, "UnavailableError", &error.to_string(), &[]),
        RedoDiffError::DataFile { path, .. } => {
            raise(py, "UnavailableError", &error.to_string(), &[("path", path.display().to_string())])
        }
    }
}

fn show<'py>(py: Python<'py>, major: u8, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let kinds = PyList::empty(py);
    for ((rmid, info), tally) in &report.kinds {
        let kind = PyDict::new(py);
        kind.set_item("rmid", rmid)?;
        kind.set_item("info", info)?;
        kind.set_item("rmgr", names::rmgr_name(*rmid))?;
        kind.set_item("type", names::record_name(major, *rmid, *info))?;
        kind.set_item("records", tally.records)?;
        kind.set_item("versions", tally.versions)?;
        kind.set_item("compared", tally.compared)?;
        kind.set_item("different", tally.different)?;
        kind.set_item("unsupported", tally.unsupported)?;
        kind.set_item("without_base", tally.without_base)?;
        kinds.append(kind)?;
    }
    let witnesses = PyDict::new(py);
    for witness in Witness::ALL {
        let tally = report.witnesses.get(&witness).copied().unwrap_or_default();
        let shown = PyDict::new(py);
        shown.set_item("compared", tally.compared)?;
        shown.set_item("different", tally.different)?;
        witnesses.set_item(witness.name(), shown)?;
    }
    let files = PyDict::new(py);
    files.set_item("equal", report.files.equal)?;
    files.set_item("masked", &report.files.masked)?;
    files.set_item("unknown", report.files.unknown)?;
    let differences = PyList::empty(py);
    for difference in report.differences() {
        differences.append(show_difference(py, difference)?)?;
    }
    let out = PyDict::new(py);
    out.set_item("kinds", kinds)?;
    out.set_item("witnesses", witnesses)?;
    out.set_item("files", files)?;
    out.set_item("process_given_up", report.process_given_up.as_deref())?;
    out.set_item("differences", differences)?;
    Ok(out)
}

fn show_difference<'py>(py: Python<'py>, difference: &Difference) -> PyResult<Bound<'py, PyDict>> {
    let page = |page: &Option<Box<pagecore::page::PageBytes>>| page.as_ref().map(|page| PyBytes::new(py, &page[..]));
    let RelTag { spcnode, dbnode, relnode, forknum } = difference.key.rel_tag();
    let out = PyDict::new(py);
    out.set_item("witness", difference.witness.name())?;
    out.set_item("rel", (spcnode, dbnode, relnode, forknum))?;
    out.set_item("block", difference.key.field6)?;
    out.set_item("rmid", difference.rmid)?;
    out.set_item("info", difference.info)?;
    out.set_item("lsn", difference.start.0)?;
    out.set_item("lsn_end", difference.end.0)?;
    out.set_item("detail", &difference.detail)?;
    out.set_item("ours", page(&difference.ours))?;
    out.set_item("theirs", page(&difference.theirs))?;
    out.set_item("lines", &difference.lines)?;
    Ok(out)
}
