//! What all connections of a service share: its settings, its parts, and the sockets that stopping has to wake.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle as RuntimeHandle;
use tokio::sync::watch;

use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::registry::{Registry, ResolveBudget};
use crate::timeline::lock;

/// What is in the output buffer when the service stops gets so long to be taken by the client.
pub const LAST_FLUSH: Duration = Duration::from_millis(500);

/// Where authentication stands. A mode that asks for a password does so before the greeting (spec 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Whoever connects may do everything.
    Trust,
}

/// Where TLS stands. A mode with a certificate answers SSLRequest with `S` and wraps the stream (spec 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Off,
}

/// How GetPage requests at different LSNs share a batch (spec 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    UniformLsn,
    ScatteredLsn,
}

#[derive(Clone, Debug)]
pub struct ServiceConfig {
    pub listen: SocketAddr,
    pub authentication: Authentication,
    pub encryption: Encryption,
    pub read_timeout: Duration,
    pub wait_lsn_timeout: Duration,
    /// 1 is the serial mode.
    pub max_batch_size: usize,
    pub batching: Batching,
    pub resolve: ResolveBudget,
    /// Answer Test messages; never in production.
    pub allow_test_messages: bool,
}

impl ServiceConfig {
    pub fn new(listen: SocketAddr) -> ServiceConfig {
        ServiceConfig {
            listen,
            authentication: Authentication::Trust,
            encryption: Encryption::Off,
            read_timeout: Duration::from_secs(600),
            wait_lsn_timeout: Duration::from_secs(300),
            max_batch_size: 32,
            batching: Batching::ScatteredLsn,
            resolve: ResolveBudget::default(),
            allow_test_messages: false,
        }
    }
}

/// What all connections share.
pub(crate) struct Context {
    pub config: ServiceConfig,
    pub registry: Arc<Registry>,
    pub handler: Arc<dyn Handler>,
    pub metrics: Arc<Metrics>,
    pub runtime: RuntimeHandle,
    pub stopping: watch::Sender<bool>,
    pub live: watch::Sender<usize>,
    /// Of the threads that block in them, to wake them.
    sockets: Mutex<HashMap<u64, Arc<TcpStream>>>,
    next_socket: AtomicU64,
}

impl Context {
    /// Must be called inside a runtime.
    pub fn new(
        config: ServiceConfig,
        registry: Arc<Registry>,
        handler: Arc<dyn Handler>,
        metrics: Arc<Metrics>,
    ) -> Context {
        Context {
            config,
            registry,
            handler,
            metrics,
            runtime: RuntimeHandle::current(),
            stopping: watch::Sender::new(false),
            live: watch::Sender::new(0),
            sockets: Mutex::default(),
            next_socket: AtomicU64::new(0),
        }
    }

    /// From now on stopping wakes a thread that blocks in this socket.
    pub fn register_socket(&self, socket: &Arc<TcpStream>) -> u64 {
        let id = self.next_socket.fetch_add(1, Relaxed);
        lock(&self.sockets).insert(id, Arc::clone(socket));
        id
    }

    pub fn forget_socket(&self, id: u64) {
        lock(&self.sockets).remove(&id);
    }

    pub fn shut_sockets(&self, how: Shutdown) {
        for socket in lock(&self.sockets).values() {
            let _ = socket.shutdown(how); // it may be closed by the peer already
        }
    }

    /// Resolves when a last flush has taken too long.
    pub async fn last_flush_over(&self) {
        let mut stopping = self.stopping.subscribe();
        let _ = stopping.wait_for(|stopping| *stopping).await; // the sender lives as long as we
        tokio::time::sleep(LAST_FLUSH).await;
    }
}

/// Counts a connection for as long as it lives, however it ends.
pub(crate) struct Live(Arc<Context>);

impl Live {
    pub fn new(context: &Arc<Context>) -> Live {
        context.metrics.connections_started.fetch_add(1, Relaxed);
        context.live.send_modify(|n| *n += 1);
        Live(Arc::clone(context))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.metrics.connections_finished.fetch_add(1, Relaxed);
        self.0.live.send_modify(|n| *n -= 1);
    }
}
