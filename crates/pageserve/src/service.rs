//! The listener: settings, what all connections share, and the order of stopping (spec page-service.md 1.1, 4.7).

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle as RuntimeHandle;
use tokio::sync::watch;

use crate::connection::Connection;
use crate::handler::{Handler, LogLevel};
use crate::metrics::Metrics;
use crate::registry::{Registry, ResolveBudget};
use crate::timeline::lock;

/// What is in the output buffer when the service stops gets so long to be taken by the client.
const LAST_FLUSH: Duration = Duration::from_millis(500);
/// After a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: u32 = 1024;

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
    live: watch::Sender<usize>,
    /// Of the threads that block in them, to wake them.
    sockets: Mutex<HashMap<u64, Arc<TcpStream>>>,
    next_socket: AtomicU64,
}

impl Context {
    /// From now on stopping wakes a thread that blocks in this socket.
    pub fn register_socket(&self, socket: &Arc<TcpStream>) -> u64 {
        let id = self.next_socket.fetch_add(1, Relaxed);
        lock(&self.sockets).insert(id, Arc::clone(socket));
        id
    }

    pub fn forget_socket(&self, id: u64) {
        lock(&self.sockets).remove(&id);
    }

    fn shut_sockets(&self, how: Shutdown) {
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
struct Live(Arc<Context>);

impl Live {
    fn new(context: &Arc<Context>) -> Live {
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

/// A running page service. Stop it before its runtime ends.
pub struct PageService {
    context: Arc<Context>,
    accepting: watch::Sender<bool>,
    address: SocketAddr,
}

impl PageService {
    /// Binds the port and begins to accept. Must be called inside a multi-threaded runtime.
    pub fn start(
        config: ServiceConfig,
        registry: Arc<Registry>,
        handler: Arc<dyn Handler>,
        metrics: Arc<Metrics>,
    ) -> io::Result<PageService> {
        if config.max_batch_size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "max_batch_size must be at least 1"));
        }
        let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_keepalive(true)?; // accepted sockets inherit it
        socket.bind(config.listen)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let context = Arc::new(Context {
            config,
            registry,
            handler,
            metrics,
            runtime: RuntimeHandle::current(),
            stopping: watch::Sender::new(false),
            live: watch::Sender::new(0),
            sockets: Mutex::default(),
            next_socket: AtomicU64::new(0),
        });
        let accepting = watch::Sender::new(true);
        tokio::spawn(accept(listener, Arc::clone(&context), accepting.subscribe()));
        Ok(PageService { context, accepting, address })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    pub fn live_connections(&self) -> usize {
        *self.context.live.borrow()
    }

    /// First step of stopping: no new connections, existing ones go on.
    pub fn stop_accepting(&self) {
        self.accepting.send_replace(false);
    }

    /// Last step, after all timelines were closed: ends every connection at its next message boundary, and returns
    /// when all are gone. False if some are still busy after `timeout` (a read that does not come back).
    pub async fn stop(&self, timeout: Duration) -> bool {
        self.stop_accepting();
        self.context.stopping.send_replace(true);
        // Blocked reads return; what they already have is answered.
        self.context.shut_sockets(Shutdown::Read);
        let mut live = self.context.live.subscribe();
        let all_gone = async {
            if tokio::time::timeout(LAST_FLUSH, live.wait_for(|n| *n == 0)).await.is_err() {
                // Blocked writes fail.
                self.context.shut_sockets(Shutdown::Both);
                let _ = live.wait_for(|n| *n == 0).await; // the sender lives as long as we
            }
        };
        tokio::time::timeout(timeout, all_gone).await.is_ok()
    }
}

impl Drop for PageService {
    fn drop(&mut self) {
        self.stop_accepting();
        self.context.stopping.send_replace(true);
        self.context.shut_sockets(Shutdown::Both);
    }
}

async fn accept(listener: TcpListener, context: Arc<Context>, mut accepting: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = accepting.wait_for(|accepting| !*accepting) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let live = Live::new(&context);
                let context = Arc::clone(&context);
                tokio::spawn(async move {
                    let _live = live;
                    Connection::serve(context, socket, peer).await;
                });
            }
            Err(error) => {
                context.handler.log(LogLevel::Warning, &format!("page service cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
