//! Pagestream over real sockets: answers, order, batches, LSN rules, errors, slow clients (spec page-service.md 2-4,
//! checklist 12-37).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::*;
use pagecore::{Key, Lsn, RelTag, BLCKSZ};
use pageserve::protocol::pagestream::{Answer, Body, Request, Response, Version};
use pageserve::service::Batching;
use pageserve::throttle::ThrottleConfig;
use pageserve::timeline::{Closed, Leases};

const V3: Version = Version::V3;

#[test]
fn every_kind_of_request_is_answered_in_both_versions() {
    let world = World::new();
    for version in [Version::V2, V3] {
        let mut client = world.page_stream(version);
        let cases: Vec<(Body<'static>, Answer<'static>)> = vec![
            (Body::Exists { rel: REL }, Answer::Exists(true)),
            (Body::Exists { rel: RelTag { dbnode: 99, ..REL } }, Answer::Exists(false)),
            (Body::Nblocks { rel: REL }, Answer::Nblocks(BLOCKS)),
            (Body::Nblocks { rel: RelTag { forknum: 1, ..REL } }, Answer::Nblocks(0)),
            (Body::Nblocks { rel: RelTag { forknum: 2, ..REL } }, Answer::Nblocks(0)),
            (Body::DbSize { dbnode: 5 }, Answer::DbSize(i64::from(BLOCKS) * 8192)),
            (Body::GetPage { rel: REL, block: BLOCKS }, Answer::Page(&[0; BLCKSZ])),
            (Body::GetPage { rel: REL, block: u32::MAX }, Answer::Page(&[0; BLCKSZ])),
            (Body::GetPage { rel: RelTag { forknum: 2, ..REL }, block: 3 }, Answer::Page(&[0; BLCKSZ])),
        ];
        for (i, (body, wanted)) in cases.into_iter().enumerate() {
            let request = req(i as u64 + 1, body);
            let payload = ask(&mut client, version, &request);
            let response = Response::decode(version, &payload).unwrap();
            assert_eq!(response.answer, wanted, "{body:?}");
            if version == V3 {
                assert_eq!((response.header, response.echo), (Some(request.header), Some(body)));
            }
        }
        let payload = ask(&mut client, version, &req(9, Body::SlruSegment { kind: 0, segno: 0 }));
        match Response::decode(version, &payload).unwrap().answer {
            Answer::SlruSegment(blocks) => {
                assert_eq!(blocks, [[1; BLCKSZ], [2; BLCKSZ]].concat(), "the tail of a stored block is cut off")
            }
            other => panic!("{other:?}"),
        }
        let payload = ask(&mut client, version, &req(10, Body::GetPage { rel: REL, block: 7 }));
        assert_eq!(Response::decode(version, &payload).unwrap().answer, Answer::Page(&page(REL, 7, Lsn(LAST))));
    }
    let snapshot = world.snapshot();
    assert_eq!(counted(&snapshot.requests_started, "get_page_at_lsn"), 8);
    assert_eq!(counted(&snapshot.requests_started, "get_slru_segment"), 2);
    assert_eq!(counted(&snapshot.commands, "PageStreamV2"), 1);
    assert_eq!(counted(&snapshot.outcomes, "success"), 22);
}

#[test]
fn failures_of_the_read_path_say_only_read_error() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    let missing = RelTag { relnode: 1, ..REL };
    let zero = RelTag { relnode: 0, ..REL };
    for body in [
        Body::Nblocks { rel: missing },
        Body::GetPage { rel: missing, block: 0 },
        Body::Exists { rel: zero },
        Body::Nblocks { rel: zero },
        Body::GetPage { rel: zero, block: 0 },
        Body::DbSize { dbnode: 99 },
        Body::SlruSegment { kind: 1, segno: 0 },
    ] {
        client.request(V3, &req(1, body));
        assert_eq!(client.page_error(), "Read error", "{body:?}");
    }
    client.request(V3, &req(1, Body::SlruSegment { kind: 3, segno: 0 }));
    assert_eq!(client.page_error(), "Bad request: invalid SLRU kind");
    assert_eq!(world.handler.log.lock().unwrap().len(), 7, "the log has the details");
    assert!(world.handler.log.lock().unwrap()[0].contains("error reading relation or page version: "));
}

/// Spec walredo.md 1.1.
#[test]
fn failed_redo_is_a_read_error_for_the_client_and_critical_in_the_log() {
    let world = World::new();
    world.source.broken.lock().unwrap().insert(Key::rel_block(REL, 13));
    let mut client = world.page_stream(V3);
    client.request(V3, &get_page(1, 13));
    assert_eq!(client.page_error(), "Read error");
    client.request(V3, &get_page(2, 14));
    client.page_of(2, 14);
    let text = format!(
        "[tenant_shard_id: {TENANT}, timeline_id: {TIMELINE}] walredo failure during page reconstruction: \
         cannot apply a record"
    );
    let log = world.handler.log.lock().unwrap();
    assert!(log.len() == 1 && log[0].starts_with(&text), "{log:?}");
    assert_eq!(counted(&world.snapshot().outcomes, "internal_error"), 1);
}

#[test]
fn answers_keep_the_order_of_pipelined_requests_of_any_kind_errors_included() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    let mut requests = Vec::new();
    for i in 0..600u64 {
        requests.push(match i % 7 {
            0 => req(i, Body::Nblocks { rel: REL }),
            1 => Request { header: header(i, 0, 0), body: Body::GetPage { rel: REL, block: 1 } },
            2 => req(i, Body::GetPage { rel: RelTag { relnode: 4, ..REL }, block: 1 }),
            3 => req(i, Body::Exists { rel: RelTag { relnode: 0, ..REL } }),
            _ => req(i, Body::GetPage { rel: REL, block: (i * 7 % 900) as u32 }),
        });
    }
    let mut bytes = Vec::new();
    for request in &requests {
        request.encode(V3, &mut bytes);
    }
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for piece in bytes.chunks(37) {
            writer.write_all(piece).unwrap(); // cut anywhere
        }
    });
    for request in &requests {
        let payload = client.payload();
        let response = Response::decode(V3, &payload).unwrap();
        assert_eq!(response.header, Some(request.header));
        match (request.header.id % 7, response.answer) {
            (0, Answer::Nblocks(BLOCKS)) => {}
            (1, Answer::Error("Bad request: invalid LSN(0) in request")) => {}
            (2 | 3, Answer::Error("Read error")) => {}
            (4.., Answer::Page(page)) => {
                let Body::GetPage { rel, block } = request.body else { panic!() };
                assert_eq!(page, common::page(rel, block, Lsn(LAST)));
            }
            other => panic!("{other:?}"),
        }
    }
    sender.join().unwrap();
}

#[test]
fn batches_form_while_the_executor_is_busy_and_never_exceed_the_limit() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    world.source.pause_reads(true);
    client.request(V3, &get_page(0, 0));
    eventually("the first request is being read", || world.source.waiting_readers.load(SeqCst) == 1);
    let mut bytes = Vec::new();
    for i in 1..=100 {
        get_page(i, i as u32).encode(V3, &mut bytes);
    }
    client.send(&bytes);
    std::thread::sleep(Duration::from_millis(50));
    world.source.pause_reads(false);
    for i in 0..=100 {
        client.page_of(i, i as u32);
    }
    assert_eq!(*world.source.reads.lock().unwrap(), [1, 32, 32, 32, 4]);
    let snapshot = world.snapshot();
    assert_eq!(counted(&snapshot.batch_breaks, "batch_full"), 3);
    assert_eq!(counted(&snapshot.batch_breaks, "executor_steal"), 2);
    assert_eq!(snapshot.batch_sizes[31], 3);
    assert_eq!(world.timeline.metrics.batches.sizes()[31], 3);
}

#[test]
fn a_failing_page_does_not_fail_its_neighbours() {
    let world = World::new();
    world.source.broken.lock().unwrap().insert(Key::rel_block(REL, 2));
    let mut client = world.page_stream(V3);
    let mut bytes = Vec::new();
    for i in 1..=3 {
        get_page(i, i as u32).encode(V3, &mut bytes);
    }
    client.send(&bytes);
    client.page_of(1, 1);
    assert_eq!(client.page_error(), "Read error");
    client.page_of(3, 3);
}

/// Sends GetPage requests (block, LSN) at once and returns the sizes of the reads they became.
fn reads_of(batching: Batching, asked: &[(u32, u64)]) -> Vec<usize> {
    let world = World::with(|config| config.batching = batching);
    let mut client = world.page_stream(V3);
    let mut bytes = Vec::new();
    for (i, (block, lsn)) in asked.iter().enumerate() {
        let body = Body::GetPage { rel: REL, block: *block };
        Request { header: header(i as u64, *lsn, *lsn), body }.encode(V3, &mut bytes);
    }
    client.send(&bytes);
    for (block, lsn) in asked {
        let payload = client.payload();
        assert_eq!(answer(&payload), Answer::Page(&page(REL, *block, Lsn(*lsn))));
    }
    let reads = world.source.reads.lock().unwrap().clone();
    reads
}

#[test]
fn batches_are_cut_where_the_mode_says() {
    let asked = [(1, 0x1100), (2, 0x1200), (1, 0x1200), (1, 0x1200), (3, 0x1200)];
    assert_eq!(reads_of(Batching::ScatteredLsn, &asked), [2, 3], "only the same page at two LSNs is cut");
    assert_eq!(reads_of(Batching::UniformLsn, &asked), [1, 4]);
}

#[test]
fn bad_lsns_have_their_texts_in_the_order_of_checks() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    for body in [Body::GetPage { rel: REL, block: 1 }, Body::Nblocks { rel: REL }] {
        for (request_lsn, hint, text) in [
            (0, 1, "invalid request with request LSN 0/0 and not_modified_since 0/1"),
            (0, 0, "invalid LSN(0) in request"),
            (
                0x800,
                0x700,
                "tried to request a page version that was garbage collected. requested at 0/800 gc cutoff 0/1000",
            ),
        ] {
            client.request(V3, &Request { header: header(3, request_lsn, hint), body });
            assert_eq!(client.page_error(), format!("Bad request: {text}"));
        }
    }
    // An old hint below the cutoff is legal, and so is a request far ahead with a hint that has arrived.
    for request_lsn in [u64::MAX, 0x1_0000_0000] {
        let request = Request { header: header(4, request_lsn, 0x10), body: Body::GetPage { rel: REL, block: 1 } };
        let payload = ask(&mut client, V3, &request);
        assert_eq!(answer(&payload), Answer::Page(&page(REL, 1, Lsn(LAST))));
    }
    world.check_all_counted();
    assert_eq!(world.timeline.metrics.get_page_started.load(SeqCst), 5);
}

#[test]
fn leased_lsns_and_the_grace_period_open_what_is_below_the_cutoff() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    let request = Request { header: header(4, 0x800, 0x700), body: Body::GetPage { rel: REL, block: 1 } };
    let far = u64::MAX;
    world.timeline.set_leases(Leases { valid_until_millis: [(0x800, far)].into(), grace_until_millis: 0 });
    let payload = ask(&mut client, V3, &request);
    assert_eq!(answer(&payload), Answer::Page(&page(REL, 1, Lsn(0x800))));
    world.timeline.set_leases(Leases { valid_until_millis: [(0x800, 1)].into(), grace_until_millis: 0 });
    client.request(V3, &request);
    assert!(client.page_error().contains("garbage collected"), "an expired lease does not count");
    world.timeline.set_leases(Leases { valid_until_millis: [].into(), grace_until_millis: far });
    let payload = ask(&mut client, V3, &request);
    assert_eq!(answer(&payload), Answer::Page(&page(REL, 1, Lsn(0x800))));
}

#[test]
fn a_hint_ahead_of_the_log_waits_until_the_record_arrives() {
    let world = World::with(|config| config.wait_lsn_timeout = Duration::from_secs(20));
    let mut client = world.page_stream(V3);
    // The answer before it must not wait with it.
    client.request(V3, &req(1, Body::Nblocks { rel: REL }));
    let waiting = Request { header: header(2, u64::MAX, 0x3000), body: Body::GetPage { rel: REL, block: 2 } };
    client.request(V3, &waiting);
    let payload = client.payload();
    assert_eq!(answer(&payload), Answer::Nblocks(BLOCKS));
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(std::io::Read::read(&mut client.stream, &mut [0]).is_err());
    client.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    world.source.advance(0x3000);
    let payload = client.payload();
    assert_eq!(answer(&payload), Answer::Page(&page(REL, 2, Lsn(0x3000))));
}

#[test]
fn waiting_too_long_fails_each_request_of_the_batch_with_the_text() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    let mut bytes = Vec::new();
    for i in 0..2 {
        Request { header: header(i, u64::MAX, 0x3000), body: Body::GetPage { rel: REL, block: 2 } }
            .encode(V3, &mut bytes);
    }
    Request { header: header(2, u64::MAX, 0x3000), body: Body::Nblocks { rel: REL } }.encode(V3, &mut bytes);
    client.send(&bytes);
    for _ in 0..3 {
        assert_eq!(
            client.page_error(),
            "LSN timeout: Timed out while waiting for WAL record at LSN 0/3000 to arrive, last_record_lsn 0/2000 \
             disk consistent LSN=0/1800, WalReceiver status: streaming from somewhere"
        );
    }
    client.request(V3, &get_page(3, 3));
    client.page_of(3, 3);
    assert_eq!(counted(&world.snapshot().outcomes, "internal_error"), 3);
    world.check_all_counted();
    assert!(world.timeline.metrics.flush_micros.load(SeqCst) > 0);
}

#[test]
fn a_wait_ends_with_shutdown_or_reconnect_when_the_timeline_closes() {
    for (why, code, text) in [(Closed::Shutdown, "57P01", "shutdown"), (Closed::Reconnect, "08006", "reconnect")] {
        let world = World::with(|config| config.wait_lsn_timeout = Duration::from_secs(20));
        let mut client = world.page_stream(V3);
        client.request(V3, &get_page(1, 1));
        client.page_of(1, 1);
        client.request(V3, &Request { header: header(1, u64::MAX, 0x3000), ..get_page(1, 1) });
        std::thread::sleep(Duration::from_millis(50));
        let closed = world.registry.close_timeline(shard(0, 0).0, TIMELINE, why, None).unwrap();
        assert_eq!(client.error(), (code.to_string(), text.to_string()));
        client.closed();
        assert!(closed.wait_left(Duration::from_secs(2)));
        world.check_all_counted();
    }
    let world = World::with(|config| config.wait_lsn_timeout = Duration::from_secs(20));
    let mut client = world.page_stream(V3);
    client.request(V3, &Request { header: header(1, u64::MAX, 0x3000), ..get_page(1, 1) });
    std::thread::sleep(Duration::from_millis(50));
    world.source.drop_wakers();
    assert_eq!(client.error(), ("57P01".to_string(), "shutdown".to_string()));
}

#[test]
fn copy_done_and_its_kin_end_the_pagestream_with_their_name() {
    let world = World::new();
    for (tag, name) in [(b'c', "CopyDone"), (b'f', "CopyFail"), (b'Q', "Query"), (b'S', "Sync")] {
        let mut client = world.page_stream(V3);
        client.send(&frame(tag, b"x\0"));
        assert_eq!(client.error(), ("XX000".to_string(), format!("unexpected message: {name} during COPY")));
        client.ready();
        client.is_usable();
    }
    let mut client = world.page_stream(V3);
    client.send(&frame(b'X', b""));
    client.ready();
    client.closed();
    let mut client = world.page_stream(V3);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client.ready();
    client.closed();
}

#[test]
fn unknown_tags_and_short_messages_end_the_pagestream_after_what_came_before() {
    let world = World::new();
    let mut other = world.page_stream(V3);
    for (payload, text) in [
        (&[7u8; 60][..], "invalid tag 7"),
        (&[99u8; 60][..], "invalid tag 99"),
        (&[2u8; 41][..], "pagestream message is too short"),
        (&[][..], "pagestream message is too short"),
    ] {
        let mut client = world.page_stream(V3);
        let mut bytes = Vec::new();
        get_page(1, 1).encode(V3, &mut bytes);
        bytes.extend_from_slice(&frame(b'd', payload));
        client.send(&bytes);
        client.page_of(1, 1);
        assert_eq!(client.error(), ("XX000".to_string(), text.to_string()));
        client.ready();
        client.query(&format!("pagestream_v3 {TENANT} {TIMELINE}"));
        assert_eq!(client.message().0, b'W', "a new pagestream may begin on the same connection");
        client.request(V3, &get_page(2, 2));
        client.page_of(2, 2);
    }
    other.request(V3, &get_page(3, 3));
    other.page_of(3, 3);
}

#[test]
fn the_throttle_lets_its_rate_pass_over_several_connections() {
    let world = World::new();
    let (id, _) = shard(0, 0);
    let config = ThrottleConfig { initial: 0, max: 1, refill_interval: Duration::from_millis(100), refill_amount: 20 };
    world.registry.set_throttle(id, Some(config));
    let mut clients = [world.page_stream(V3), world.page_stream(V3)];
    let started = Instant::now();
    let mut bytes = Vec::new();
    for i in 0..50 {
        get_page(i, i as u32).encode(V3, &mut bytes);
    }
    for client in &mut clients {
        client.send(&bytes);
    }
    for client in &mut clients {
        for i in 0..50 {
            client.page_of(i, i as u32);
        }
    }
    let took = started.elapsed().as_secs_f64();
    assert!((0.45..1.5).contains(&took), "100 requests at 200 per second took {took} s");
    world.registry.set_throttle(id, None);
    let started = Instant::now();
    clients[0].send(&bytes);
    for i in 0..50 {
        clients[0].page_of(i, i as u32);
    }
    assert!(started.elapsed() < Duration::from_millis(400));
}

#[test]
fn test_messages_are_answered_only_where_they_are_allowed() {
    let world = World::with(|config| config.allow_test_messages = true);
    let mut client = world.page_stream(V3);
    let request = req(1, Body::Test { batch_key: 42, message: b"ping" });
    let payload = ask(&mut client, V3, &request);
    assert_eq!(answer(&payload), Answer::Test(b"ping"));
}

#[test]
fn stopping_lets_what_is_in_the_buffer_out() {
    let mut world = World::new();
    let mut client = world.page_stream(V3);
    world.source.pause_reads(true);
    client.request(V3, &get_page(1, 1));
    eventually("the read runs", || world.source.waiting_readers.load(SeqCst) == 1);
    let source = world.source.clone();
    let resume = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        source.pause_reads(false);
    });
    assert!(world.stop());
    client.page_of(1, 1);
    client.closed();
    resume.join().unwrap();
}
