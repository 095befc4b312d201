//! Start-up, log-in, the two query protocols, commands and their errors (spec page-service.md 1, checklist 1-11).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use pageserve::error::QueryError;
use pageserve::registry::ShardState;
use pageserve::timeline::Closed;

#[test]
fn encryption_requests_are_declined_with_one_byte_and_log_in_follows() {
    let world = World::new();
    let mut client = world.raw();
    for code in [0x04d2162fu32, 0x04d21630] {
        let mut packet = 8u32.to_be_bytes().to_vec();
        packet.extend_from_slice(&code.to_be_bytes());
        client.send(&packet);
        let mut answer = [0];
        std::io::Read::read_exact(&mut client.stream, &mut answer).unwrap();
        assert_eq!(&answer, b"N");
    }
    client.log_in();
    client.is_usable();
}

#[test]
fn trust_log_in_sends_exactly_the_greeting() {
    let world = World::new();
    let mut client = world.raw();
    client.send(b"\0\0\0\x09\0\x03\0\0\0");
    assert_eq!(client.message(), (b'R', vec![0; 4]));
    assert_eq!(client.message(), (b'S', b"client_encoding\0UTF8\0".to_vec()));
    assert_eq!(client.message(), (b'S', b"integer_datetimes\0on\0".to_vec()));
    assert_eq!(client.message(), (b'S', b"server_version\x0014.1\0".to_vec()));
    client.ready();
}

#[test]
fn garbage_closes_its_connection_and_harms_no_other() {
    let world = World::new();
    let mut good = world.client();
    let startups: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 64],
        b"\0\0\x27\x11\0\x03\0\0",
        b"\x16\x03\x01\x02\0\x01\0",
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02",
        b"\0\0\0\x08\x04\xd2\0\x01",
    ];
    for startup in startups {
        let mut client = world.raw();
        client.send(startup);
        client.closed();
    }
    let typed: [&[u8]; 9] = [
        b"d\x40\0\0\0",
        b"Q\x40\0\0\0",
        b"Q\xff\xff\xff\xffset",
        b"Q\0\0\0\x03",
        b"H\0\0\0\x04",
        b"d\0\0\0\x04",
        b"c\0\0\0\x04",
        b"p\0\0\0\x04",
        b"Q\0\0\0\x07set",
    ];
    for message in typed {
        let mut client = world.client();
        client.send(message);
        client.closed();
    }
    good.is_usable();
    eventually("all connections but one are gone", || world.service.as_ref().unwrap().live_connections() == 1);
}

#[test]
fn a_length_of_1_gib_inside_a_pagestream_ends_the_connection_after_what_came_before() {
    let world = World::new();
    let mut client = world.page_stream(pageserve::protocol::pagestream::Version::V3);
    let mut bytes = Vec::new();
    get_page(1, 7).encode(pageserve::protocol::pagestream::Version::V3, &mut bytes);
    bytes.extend_from_slice(b"d\x40\0\0\0");
    client.send(&bytes);
    client.page_of(1, 7);
    let (code, text) = client.error();
    assert_eq!((code.as_str(), text.as_str()), ("08006", "invalid message length 1073741824"));
    client.ready();
    client.closed();
}

#[test]
fn command_errors_keep_the_connection() {
    let world = World::new();
    let mut client = world.client();
    for (query, text) in [
        ("show all", "unsupported command show in show all"),
        ("pagestream a b", "unsupported command pagestream in pagestream a b"),
        ("", "cannot parse query: "),
        ("status", "cannot parse query: status"),
    ] {
        client.query(query);
        assert_eq!(client.error(), ("XX000".to_string(), text.to_string()));
        client.ready();
    }
    let (id, _) = shard(0, 0);
    client.query(&format!("basebackup {} {TIMELINE}", "00".repeat(16)));
    assert_eq!(client.error(), ("XX000".to_string(), "not found".to_string()));
    client.ready();
    client.query(&format!("basebackup {} {TIMELINE}", id.tenant));
    assert_eq!(client.error().1, "reconnect to switch tenant id", "bound to the first tenant it addressed");
    client.ready();
    client.is_usable();
}

#[test]
fn several_timelines_of_one_tenant_share_a_connection() {
    let world = World::new();
    let other = pageserve::ids::TimelineId([7; 16]);
    world.registry.attach_timeline(shard(0, 0).0, other, FakeSource::new()).unwrap();
    let mut client = world.client();
    for timeline in [TIMELINE, other] {
        client.query(&format!("basebackup {TENANT} {timeline}"));
        assert_eq!(client.message().0, b'H');
        assert_eq!(client.message().0, b'c');
        client.select_1();
        client.ready();
    }
}

#[test]
fn a_backup_is_copied_out_in_order() {
    let world = World::new();
    let chunks: Vec<Bytes> = (0..40u8).map(|i| Bytes::from(vec![i; 100_000])).collect();
    *world.handler.archive.lock().unwrap() = (chunks.clone(), None);
    let mut client = world.client();
    client.query(&format!("basebackup {TENANT} {TIMELINE} 0/1800 --gzip --replica"));
    assert_eq!(client.message(), (b'H', vec![0, 0, 0]));
    let mut archive = Vec::new();
    loop {
        match client.message() {
            (b'd', piece) => archive.extend_from_slice(&piece),
            (b'c', rest) if rest.is_empty() => break,
            other => panic!("{other:?}"),
        }
    }
    client.select_1();
    client.ready();
    assert_eq!(archive, chunks.concat());
    let request = world.handler.backups.lock().unwrap()[0].clone();
    assert_eq!(
        (request.lsn.map(|lsn| lsn.0), request.gzip, request.replica, request.full),
        (Some(0x1800), true, true, false)
    );
    client.query(&format!("fullbackup {TENANT} {TIMELINE} 0/1800 0/1700"));
    while client.message().0 != b'Z' {}
    let request = world.handler.backups.lock().unwrap()[1].clone();
    assert_eq!((request.prev_lsn.map(|lsn| lsn.0), request.full), (Some(0x1700), true));
}

#[test]
fn a_backup_checks_its_lsn_first_and_reports_late_errors_in_place_of_copy_done() {
    let world = World::new();
    let mut client = world.client();
    client.query(&format!("basebackup {TENANT} {TIMELINE} 0/800"));
    assert_eq!(
        client.error(),
        (
            "XX000".to_string(),
            "invalid basebackup lsn: LSN 0/800 is earlier than latest GC cutoff 0/1000 \
             (we might've already garbage collected needed data)"
                .to_string()
        )
    );
    client.ready();
    client.query(&format!("basebackup {TENANT} {TIMELINE} 0/9000"));
    assert_eq!(
        client.error().1,
        "Timed out while waiting for WAL record at LSN 0/9000 to arrive, last_record_lsn 0/2000 \
         disk consistent LSN=0/1800, WalReceiver status: streaming from somewhere"
    );
    client.ready();
    let failure = QueryError::Other("no control file".to_string());
    *world.handler.archive.lock().unwrap() = (vec![], Some(failure.clone()));
    client.query(&format!("basebackup {TENANT} {TIMELINE}"));
    assert_eq!(client.error().1, "no control file");
    client.ready();
    *world.handler.archive.lock().unwrap() = (vec![Bytes::from_static(b"abc")], Some(failure));
    client.query(&format!("basebackup {TENANT} {TIMELINE}"));
    assert_eq!(client.message().0, b'H');
    assert_eq!(client.payload(), b"abc");
    assert_eq!(client.error().1, "no control file");
    client.ready();
    // A maker that vanishes is an error too.
    *world.handler.keep_sinks.lock().unwrap() = true;
    client.query(&format!("basebackup {TENANT} {TIMELINE}"));
    eventually("the backup begins", || !world.handler.sinks.lock().unwrap().is_empty());
    world.handler.sinks.lock().unwrap().clear();
    assert_eq!(client.error().1, "the backup ended without a result");
    client.ready();
    client.is_usable();
}

#[test]
fn copy_out_works_through_the_extended_protocol() {
    let world = World::new();
    *world.handler.archive.lock().unwrap() = (vec![Bytes::from_static(b"abc")], None);
    let mut client = world.client();
    let mut parse = b"\0".to_vec();
    parse.extend_from_slice(format!("basebackup {TENANT} {TIMELINE}\0\0\0").as_bytes());
    client.send(&frame(b'P', &parse));
    client.send(&frame(b'D', b"S\0"));
    client.send(&frame(b'S', b""));
    for tag in *b"1tnZ" {
        assert_eq!(client.message().0, tag);
    }
    client.send(&frame(b'B', b"\0\0\0\0\0\0\0\0"));
    client.send(&frame(b'E', b"\0\0\0\0\0"));
    client.send(&frame(b'S', b""));
    for tag in *b"2HdcCZ" {
        assert_eq!(client.message().0, tag);
    }
    // Errors have their long form and no ReadyForQuery before Sync.
    let unknown = pageserve::ids::TimelineId([9; 16]);
    let mut parse = b"\0".to_vec();
    parse.extend_from_slice(format!("basebackup {TENANT} {unknown}\0\0\0").as_bytes());
    client.send(&frame(b'P', &parse));
    client.send(&frame(b'E', b"\0\0\0\0\0"));
    client.send(&frame(b'C', b"S\0"));
    client.send(&frame(b'S', b""));
    assert_eq!(client.message().0, b'1');
    assert_eq!(client.error(), ("XX000".to_string(), format!("Not found: Timeline {TENANT}/{unknown} was not found")));
    assert_eq!(client.message().0, b'3');
    client.ready();
    client.is_usable();
}

#[test]
fn a_lease_is_one_text_column_or_null() {
    let world = World::new();
    let mut client = world.client();
    client.query(&format!("lease lsn {TENANT} {TIMELINE} 0/2000"));
    assert_eq!(client.message().0, b'T');
    assert_eq!(client.message(), (b'D', b"\0\x01\0\0\0\x0d1735689600000".to_vec()));
    client.select_1();
    client.ready();
    client.query(&format!("lease lsn {TENANT} {TIMELINE} 0/10"));
    assert_eq!(client.message().0, b'T');
    assert_eq!(client.message(), (b'D', b"\0\x01\xff\xff\xff\xff".to_vec()));
    client.select_1();
    client.ready();
    client.query(&format!("lease lsn {TENANT}-0102 {TIMELINE} 0/2000"));
    assert_eq!(client.error(), ("XX000".to_string(), format!("Not found: Tenant {TENANT} not found")));
    client.ready();
}

#[test]
fn an_idle_connection_is_cut_but_a_busy_one_is_not() {
    let world = World::with(|config| config.read_timeout = Duration::from_millis(100));
    let mut idle = world.client();
    let started = Instant::now();
    idle.closed();
    assert!(started.elapsed() >= Duration::from_millis(90));
    let mut idle = world.page_stream(pageserve::protocol::pagestream::Version::V3);
    assert_eq!(idle.error(), ("08006".to_string(), "timed out".to_string()));
    idle.ready();
    idle.closed();
    *world.handler.keep_sinks.lock().unwrap() = true;
    let mut busy = world.client();
    busy.query(&format!("basebackup {TENANT} {TIMELINE}"));
    std::thread::sleep(Duration::from_millis(300));
    let sink = world.handler.sinks.lock().unwrap().pop().unwrap();
    sink.write_blocking(Bytes::from_static(b"late")).unwrap();
    sink.finish_blocking().unwrap();
    assert_eq!(busy.message().0, b'H');
    assert_eq!(busy.payload(), b"late");
}

#[test]
fn a_backup_to_a_client_that_does_not_read_ends_with_its_timeline() {
    let world = World::new();
    *world.handler.keep_sinks.lock().unwrap() = true;
    let mut client = world.client();
    client.query(&format!("basebackup {TENANT} {TIMELINE}"));
    eventually("the backup begins", || !world.handler.sinks.lock().unwrap().is_empty());
    let sink = world.handler.sinks.lock().unwrap().pop().unwrap();
    let writer = std::thread::spawn(move || while sink.write_blocking(Bytes::from(vec![0; 1 << 20])).is_ok() {});
    std::thread::sleep(Duration::from_millis(200));
    assert!(!writer.is_finished(), "the client does not read, so the maker must wait");
    let (id, identity) = shard(0, 0);
    world.registry.set_shard(id, identity, ShardState::Stopping);
    let closed = world.registry.close_timeline(id, TIMELINE, Closed::Shutdown, None).unwrap();
    assert!(closed.wait_left(Duration::from_secs(2)));
    writer.join().unwrap();
    eventually("the connection is gone", || world.service.as_ref().unwrap().live_connections() == 0);
}

#[test]
fn a_backup_waiting_for_its_maker_ends_with_shutdown() {
    let world = World::new();
    *world.handler.keep_sinks.lock().unwrap() = true;
    let mut client = world.client();
    client.query(&format!("basebackup {TENANT} {TIMELINE}"));
    eventually("the backup begins", || !world.handler.sinks.lock().unwrap().is_empty());
    world.registry.close_timeline(shard(0, 0).0, TIMELINE, Closed::Shutdown, None).unwrap();
    assert_eq!(client.error(), ("57P01".to_string(), "shutdown".to_string()));
    client.closed();
    let sink = world.handler.sinks.lock().unwrap().pop().unwrap();
    assert!(sink.write_blocking(Bytes::new()).is_err());
}

#[test]
fn stopping_ends_idle_connections_and_refuses_new_ones() {
    let mut world = World::new();
    let mut idle = world.client();
    let mut streaming = world.page_stream(pageserve::protocol::pagestream::Version::V3);
    let address = world.service.as_ref().unwrap().local_addr();
    world.service.as_ref().unwrap().stop_accepting();
    eventually("the port is closed", || std::net::TcpStream::connect(address).is_err());
    idle.is_usable();
    assert!(world.stop());
    idle.closed();
    streaming.closed();
}
