//! Pagestream and the tenants, shards and timelines behind it: which are found, what a client holds, what stops
//! (spec page-service.md 2-4).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use pagecore::Key;
use pageserve::ids::{ShardIndex, TenantShardId, TimelineId};
use pageserve::protocol::pagestream::{Body, Version};
use pageserve::registry::ShardState;
use pageserve::timeline::Closed;

const V3: Version = Version::V3;

#[test]
fn an_unknown_tenant_breaks_get_page_and_is_an_error_for_the_others() {
    let world = World::new();
    let unknown = pageserve::ids::TenantId([1; 16]);
    let mut client = world.client();
    client.query(&format!("pagestream_v3 {unknown} {TIMELINE}"));
    assert_eq!(client.message().0, b'W', "nothing is resolved at the start");
    client.request(V3, &req(1, Body::Nblocks { rel: REL }));
    assert_eq!(client.error(), ("XX000".to_string(), "not found".to_string()));
    client.ready();
    client.query(&format!("pagestream_v3 {unknown} {TIMELINE}"));
    assert_eq!(client.message().0, b'W');
    client.request(V3, &get_page(1, 1));
    assert_eq!(client.error(), ("08006".to_string(), "reconnect".to_string()));
    client.closed();
    assert_eq!(world.snapshot().misrouted_requests, 2);
    world.check_all_counted();
}

#[test]
fn an_unknown_timeline_and_another_tenant_are_errors_of_the_request() {
    let world = World::new();
    let unknown = TimelineId([9; 16]);
    let mut client = world.client();
    client.query(&format!("pagestream_v3 {TENANT} {unknown}"));
    assert_eq!(client.message().0, b'W');
    client.request(V3, &get_page(1, 1));
    assert_eq!(client.page_error(), format!("Not found: Timeline {TENANT}/{unknown} was not found"));
    world.registry.close_timeline(shard(0, 0).0, unknown, Closed::Shutdown, Some("Loading".to_string()));
    client.request(V3, &get_page(1, 1));
    assert_eq!(client.page_error(), format!("Not found: Timeline {TENANT}/{unknown} is not active, state: Loading"));
    client.request(V3, &req(1, Body::Nblocks { rel: REL }));
    assert_eq!(client.error(), ("XX000".to_string(), "not found".to_string()));
    client.ready();
    client.query(&format!("pagestream_v3 {} {TIMELINE}", "ab".repeat(16)));
    assert_eq!(client.message().0, b'W');
    client.request(V3, &get_page(1, 1));
    assert_eq!(client.page_error(), "Not found: reconnect to switch tenant id");
    client.request(V3, &req(1, Body::Nblocks { rel: REL }));
    assert_eq!(client.error(), ("XX000".to_string(), "reconnect to switch tenant id".to_string()));
    client.ready();
}

#[test]
fn tenant_states_decide_what_clients_are_told() {
    let world = World::new();
    let (id, identity) = shard(0, 0);
    let attempt = |state: ShardState| {
        world.registry.set_shard(id, identity, state);
        (world.page_stream(V3), world.page_stream(V3))
    };
    let (mut page, mut size) = attempt(ShardState::Broken("bad disk".to_string()));
    page.request(V3, &get_page(1, 1));
    assert_eq!(page.page_error(), "Not found: Tenant is broken: bad disk");
    size.request(V3, &req(1, Body::Nblocks { rel: REL }));
    assert_eq!(size.error(), ("XX000".to_string(), "Tenant is broken: bad disk".to_string()));
    size.ready();
    let (mut page, mut size) = attempt(ShardState::Stopping);
    page.request(V3, &get_page(1, 1));
    size.request(V3, &req(1, Body::Nblocks { rel: REL }));
    for client in [&mut page, &mut size] {
        assert_eq!(client.error(), ("57P01".to_string(), "shutdown".to_string()));
        client.closed();
    }
    let (mut page, mut size) = attempt(ShardState::Attaching);
    page.request(V3, &get_page(1, 1));
    let text = "Timed out waiting 50ms for tenant active state. Latest state: Some(Attaching)";
    assert_eq!(page.page_error(), format!("Not found: {text}"));
    size.request(V3, &req(1, Body::Nblocks { rel: REL }));
    assert_eq!(size.error(), ("08006".to_string(), text.to_string()));
    size.ready();
    size.is_usable();
    assert!(world.handler.activated.lock().unwrap().len() >= 2, "the tenant was asked to activate");
    // A transition or activation that ends within the budget is not noticed.
    for state in [ShardState::Attaching, ShardState::InTransition] {
        let (mut page, _size) = attempt(state);
        page.request(V3, &get_page(5, 5));
        std::thread::sleep(Duration::from_millis(70));
        world.registry.set_shard(id, identity, ShardState::Active);
        page.page_of(5, 5);
    }
}

#[test]
fn pages_are_found_on_the_shard_that_owns_them_also_in_the_middle_of_a_split() {
    let world = World::new();
    let tenant = pageserve::ids::TenantId([5; 16]);
    let attach = |number: u8, count: u8| {
        let id = TenantShardId { tenant, shard: ShardIndex { number, count } };
        let identity = pagecore::ShardIdentity { number, count, stripe_size: 8 };
        world.registry.set_shard(id, identity, ShardState::Active);
        let source = FakeSource::new();
        (id, world.registry.attach_timeline(id, TIMELINE, source.clone()).unwrap(), source)
    };
    let parent = attach(0, 0);
    let mut client = world.client();
    client.query(&format!("pagestream_v3 {tenant} {TIMELINE}"));
    assert_eq!(client.message().0, b'W');
    let ask_all = |client: &mut Client| {
        let mut bytes = Vec::new();
        for i in 0..64 {
            get_page(i, i as u32).encode(V3, &mut bytes);
        }
        client.send(&bytes);
        for i in 0..64 {
            client.page_of(i, i as u32);
        }
    };
    ask_all(&mut client);
    let children: Vec<_> = (0..4).map(|number| attach(number, 4)).collect();
    ask_all(&mut client);
    assert!(children[1].2.reads.lock().unwrap().is_empty(), "the cached parent is used until it is gone");
    world.registry.set_shard(parent.0, parent.1.identity, ShardState::InTransition);
    parent.1.close(Closed::Shutdown);
    world.registry.remove_shard(parent.0);
    ask_all(&mut client);
    let read: Vec<usize> = children.iter().map(|child| child.2.reads.lock().unwrap().iter().sum()).collect();
    assert_eq!(read.iter().sum::<usize>(), 64);
    assert!(read.iter().all(|n| n % 8 == 0), "stripes of 8 pages: {read:?}");
    assert!(counted(&world.snapshot().batch_breaks, "non_uniform_timeline") > 0);
    // Size requests go to shard 0; a shard that is not here breaks the connection.
    client.request(V3, &req(1, Body::Nblocks { rel: REL }));
    client.payload();
    for child in &children[1..] {
        world.registry.remove_shard(child.0);
    }
    let away = (0..64).find(|block| children[0].1.shard_of(&Key::rel_block(REL, *block)) != 0).unwrap();
    client.request(V3, &get_page(1, away));
    assert_eq!(client.error(), ("08006".to_string(), "reconnect".to_string()));
    client.closed();
}

#[test]
fn a_client_that_never_reads_keeps_neither_timeline_nor_service_from_stopping() {
    let mut world = World::new();
    let client = world.page_stream(V3);
    let mut writer = client.stream.try_clone().unwrap();
    writer.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut bytes = Vec::new();
    for i in 0..32 {
        get_page(i, i as u32).encode(V3, &mut bytes);
    }
    // Until the server stops reading because it cannot write.
    while writer.write_all(&bytes).is_ok() {}
    let started = Instant::now();
    let (id, identity) = shard(0, 0);
    world.registry.set_shard(id, identity, ShardState::Stopping);
    let closed = world.registry.close_timeline(id, TIMELINE, Closed::Shutdown, None).unwrap();
    assert!(closed.wait_left(Duration::from_secs(5)));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // No reference to the timeline remains but those of this test.
    let weak = Arc::downgrade(&closed);
    drop(closed);
    world.timeline = pageserve::timeline::Timeline::new(id, TIMELINE, identity, Arc::default(), FakeSource::new());
    eventually("the timeline is gone", || weak.strong_count() == 0);
    assert!(world.stop());
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    drop(client);
}

#[test]
fn a_sleeping_client_does_not_hold_the_timeline_and_learns_of_it_with_its_next_request() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    client.request(V3, &get_page(1, 1));
    client.page_of(1, 1);
    let (id, identity) = shard(0, 0);
    world.registry.set_shard(id, identity, ShardState::Stopping);
    let closed = world.registry.close_timeline(id, TIMELINE, Closed::Shutdown, None).unwrap();
    assert!(closed.wait_left(Duration::ZERO), "nothing is held between requests");
    client.request(V3, &get_page(2, 2));
    assert_eq!(client.error(), ("57P01".to_string(), "shutdown".to_string()));
    client.closed();
}

#[test]
fn a_running_read_is_waited_for_and_its_answer_still_goes_out() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    world.source.pause_reads(true);
    client.request(V3, &get_page(1, 1));
    eventually("the read runs", || world.source.waiting_readers.load(SeqCst) == 1);
    let closed = world.registry.close_timeline(shard(0, 0).0, TIMELINE, Closed::Shutdown, None).unwrap();
    assert!(!closed.wait_left(Duration::from_millis(50)));
    world.source.pause_reads(false);
    assert!(closed.wait_left(Duration::from_secs(2)));
    client.page_of(1, 1);
}

#[test]
fn dropping_a_connection_removes_its_handles() {
    let world = World::new();
    let references = Arc::strong_count(&world.timeline);
    for _ in 0..3 {
        let mut client = world.page_stream(V3);
        client.request(V3, &get_page(1, 1));
        client.page_of(1, 1);
    }
    eventually("all handles are gone", || Arc::strong_count(&world.timeline) == references);
    assert!(world.timeline.wait_left(Duration::ZERO));
}

#[test]
fn a_replaced_timeline_is_used_by_connections_that_knew_the_old_one() {
    let world = World::new();
    let mut client = world.page_stream(V3);
    client.request(V3, &get_page(1, 1));
    client.page_of(1, 1);
    let source = FakeSource::new();
    world.registry.attach_timeline(shard(0, 0).0, TIMELINE, source.clone()).unwrap();
    client.request(V3, &get_page(2, 2));
    client.page_of(2, 2);
    assert_eq!(*source.reads.lock().unwrap(), [1]);
}
