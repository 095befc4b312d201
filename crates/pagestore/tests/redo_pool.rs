//! The pool around processes that behave badly: shell commands in the place of PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pagecore::{Flavour, Key, Lsn, RelTag};
use pagestore::redo_process::{
    Attempts, PoolError, RedoCommand, RedoEvent, RedoMetrics, RedoPool, RedoRequest, StopCause, TimelineRedo,
};
use pagestore::{RedoMode, RedoProcess, RedoProcessError};

const RECORD: [u8; 24] = [1; 24];
const RECORDS: &[(Lsn, &[u8])] = &[(Lsn(0x10), &RECORD)];

fn request() -> RedoRequest<'static> {
    let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };
    let key = Key::rel_block(rel, 0);
    RedoRequest { key, lsn: Lsn(0x20), major: 16, hint_bits_logged: false, base: None, records: RECORDS }
}

fn shell(script: &str) -> RedoCommand {
    RedoCommand { argv: vec!["/bin/sh".into(), "-c".into(), script.into()], ..RedoCommand::default() }
}

struct World {
    pool: Arc<RedoPool>,
    metrics: Arc<RedoMetrics>,
    log: Arc<Mutex<Vec<String>>>,
}

fn world(script: &str, timeout: Duration) -> World {
    let command = shell(script);
    world_of(timeout, move |_| Ok(command.clone()))
}

fn world_of(timeout: Duration, command: impl Fn(u8) -> Result<RedoCommand, String> + Send + Sync + 'static) -> World {
    let log = Arc::new(Mutex::new(Vec::new()));
    let metrics = Arc::new(RedoMetrics::default());
    let pool = RedoPool::new(
        "tenant".into(),
        timeout,
        Box::new(move |major, _| command(major)),
        Box::new({
            let log = Arc::clone(&log);
            move |event: RedoEvent<'_>| log.lock().unwrap().push(format!("{event:?}"))
        }),
        Arc::clone(&metrics),
    );
    World { pool: Arc::new(pool), metrics, log }
}

const LONG: Duration = Duration::from_secs(30);

/// Answers every request, if not well: endless zero pages, whatever is asked.
const OBEDIENT: &str = "exec cat /dev/zero";

#[test]
fn concurrent_first_requests_start_one_process_and_shutdown_leaves_none() {
    let World { pool, metrics, .. } = world(OBEDIENT, LONG);
    assert!(!pool.is_running() && pool.pid().is_none(), "nothing runs before the first request");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..50).for_each(|_| assert_eq!(pool.redo(&request(), Attempts::ReadPage).unwrap().len(), 8192))
            });
        }
    });
    assert_eq!(metrics.started.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(metrics.replayed_records.load(std::sync::atomic::Ordering::Relaxed), 400);
    let pid = pool.pid().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    pool.shutdown();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "reaped, not a zombie");
    assert_eq!((metrics.live(), metrics.stopped(StopCause::WalRedoProcessDrop)), (0, 1));
    assert_eq!(pool.redo(&request(), Attempts::ReadPage), Err(PoolError::Stopped));
}

#[test]
fn a_silent_process_is_killed_at_the_deadline_as_often_as_the_kind_of_attempt_says() {
    for (attempts, tries) in [(Attempts::ReadPage, 3), (Attempts::LegacyCompaction, 2), (Attempts::GcCompaction, 1)] {
        let World { pool, metrics, log } = world("exec sleep 1000", Duration::from_millis(100));
        let begun = Instant::now();
        let error = pool.redo(&request(), attempts).unwrap_err();
        assert_eq!(error.to_string(), "WAL redo timed out");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(metrics.stopped(StopCause::WalRedoProcessDrop), tries);
        assert_eq!(metrics.live(), 0);
        let failures = log.lock().unwrap().iter().filter(|line| line.starts_with("Failed")).count();
        assert_eq!(failures as u64, tries);
    }
}

#[test]
fn a_stopped_process_is_replaced_and_the_request_succeeds() {
    let World { pool, metrics, log } = world(OBEDIENT, Duration::from_millis(300));
    pool.redo(&request(), Attempts::ReadPage).unwrap();
    let first = pool.pid().unwrap();
    // `cat` has filled the pipe before it is stopped: read that away until the requests meet silence.
    assert!(std::process::Command::new("kill").args(["-STOP", &first.to_string()]).status().unwrap().success());
    for _ in 0..40 {
        pool.redo(&request(), Attempts::ReadPage).unwrap();
    }
    assert_ne!(pool.pid(), Some(first));
    assert_eq!(metrics.live(), 1);
    assert!(log.lock().unwrap().iter().any(|line| line.contains("Recovered { tries: 2 }")));
}

#[test]
fn a_process_that_dies_is_reported_with_its_last_words() {
    let script = "echo 'LOG: harmless' >&2; echo 'FATAL: no good' >&2; exit 1";
    let World { pool, metrics, log } = world(script, LONG);
    let error = pool.redo(&request(), Attempts::GcCompaction).unwrap_err();
    assert!(error.to_string().contains("it said: FATAL: no good"), "{error}");
    assert_eq!(metrics.live(), 0);
    drop(pool);
    let log = log.lock().unwrap();
    assert!(log.iter().any(|line| line.contains("no good") && line.starts_with("Output")));
    assert!(!log.iter().any(|line| line.contains("harmless")), "{log:?}");
    let failed = log.iter().find(|line| line.starts_with("Failed")).unwrap();
    assert!(failed.contains("error applying 1 WAL records 0/10..0/10 (24 bytes)"), "{failed}");
    assert!(failed.contains("during gc compaction, from base image with LSN 0/0"), "{failed}");
    assert!(failed.contains("at LSN 0/20 n_attempts=1"), "{failed}");
}

#[test]
fn a_program_that_is_not_there_and_a_version_without_command_are_told_apart() {
    let missing = RedoCommand { argv: vec!["/nonexistent/postgres".into()], ..RedoCommand::default() };
    let commands = move |major| if major == 17 { Ok(missing.clone()) } else { Err("not built".into()) };
    let World { pool, metrics, .. } = world_of(LONG, commands);
    let error = pool.redo(&request(), Attempts::ReadPage).unwrap_err();
    assert_eq!(error.to_string(), "there is no WAL redo process for PostgreSQL 16: not built");
    let other = RedoRequest { major: 17, ..request() };
    let error = pool.redo(&other, Attempts::ReadPage).unwrap_err();
    assert!(matches!(&error, PoolError::Launch(text) if text.contains("No such file")), "{error}");
    assert_eq!(metrics.live(), 0);
}

#[test]
fn an_idle_process_is_stopped_and_a_used_one_is_not() {
    let World { pool, metrics, .. } = world(OBEDIENT, LONG);
    assert!(!pool.stop_if_idle(Duration::ZERO), "nothing to stop");
    pool.redo(&request(), Attempts::ReadPage).unwrap();
    assert!(!pool.stop_if_idle(LONG));
    assert!(pool.is_running());
    assert!(pool.stop_if_idle(Duration::ZERO));
    assert!(!pool.is_running());
    assert_eq!(metrics.live(), 0);
    pool.redo(&request(), Attempts::ReadPage).unwrap();
    assert!(pool.is_running(), "the next request starts another");
}

#[test]
fn shutdown_fails_requests_in_flight_and_other_pools_go_on() {
    let silent = world("exec sleep 1000", LONG);
    let good = world(OBEDIENT, LONG);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| silent.pool.redo(&request(), Attempts::ReadPage));
        while !silent.pool.is_running() {
            std::thread::yield_now();
        }
        good.pool.redo(&request(), Attempts::ReadPage).unwrap();
        silent.pool.shutdown();
        assert_eq!(waiting.join().unwrap(), Err(PoolError::Stopped));
    });
    assert_eq!(silent.metrics.live(), 0);
    good.pool.redo(&request(), Attempts::ReadPage).unwrap();
    assert_eq!(good.metrics.live(), 1);
}

#[test]
fn a_process_gets_a_copy_of_the_template_that_goes_with_it() {
    let root = std::env::temp_dir().join(format!("redo-pool-test-{}", std::process::id()));
    std::fs::create_dir_all(root.join("template")).unwrap();
    std::fs::write(root.join("template/here"), "x").unwrap();
    let mut command = shell("test -f {scratch}/here && test $PWD = {scratch} && test $ONLY = me && exec cat /dev/zero");
    command.scratch_template = Some(root.join("template"));
    command.env = vec![("ONLY".into(), "me".into())];
    let World { pool, .. } = world_of(LONG, move |_| Ok(command.clone()));
    pool.redo(&request(), Attempts::GcCompaction).unwrap();
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 2);
    pool.shutdown();
    drop(pool);
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn heap_records_of_a_neon_compute_are_not_given_to_a_process_that_would_misread_them() {
    let record = |rmid: u8| {
        let mut record = [0; 24];
        record[17] = rmid;
        record
    };
    let (heap, btree, neon) = (record(10), record(11), record(134));
    let key = request().key;
    for (knows_neon_records, heap_works) in [(false, false), (true, true)] {
        let command = RedoCommand { knows_neon_records, ..shell(OBEDIENT) };
        let World { pool, metrics, .. } = world_of(LONG, move |_| Ok(command.clone()));
        let timeline =
            TimelineRedo::new(Arc::clone(&pool), false).with(Flavour::Neon, Lsn::INVALID, RedoMode::ProcessOnly);
        assert_eq!(timeline.mode(), RedoMode::ProcessOnly);
        for (major, bytes, works) in
            [(15, &heap, heap_works), (16, &neon, heap_works), (15, &btree, true), (16, &heap, true)]
        {
            let answer = timeline.redo(key, None, &[(Lsn(0x10), bytes)], major);
            match answer {
                Ok(_) => assert!(works, "rmid {} of {major}", bytes[17]),
                Err(RedoProcessError::Unavailable(text)) => {
                    assert!(!works && text.contains("redo_programs"), "{text}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(metrics.sent(134), u64::from(heap_works));
        assert_eq!(metrics.sent(11), 1);
    }
}
