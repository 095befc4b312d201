//! The listener, and the order of stopping (spec page-service.md 1.1, 4.7).

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use crate::connection::Connection;
pub use crate::context::{Authentication, Batching, Encryption, ServiceConfig};
use crate::context::{Context, Live, LAST_FLUSH};
use crate::handler::{Handler, LogLevel};
use crate::metrics::Metrics;
use crate::registry::Registry;

/// After a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: u32 = 1024;

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
        let context = Arc::new(Context::new(config, registry, handler, metrics));
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
