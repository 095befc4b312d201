//! One client connection: start-up, log-in, and the command loop of both query protocols (spec page-service.md 1).
//!
//! Runs as a tokio task. A pagestream moves the socket to a thread and back (see `pagestream`).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use pagecore::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::backup::BackupEnd;
use crate::buffer::InputBuffer;
use crate::context::{Authentication, Context, Encryption};
use crate::error::QueryError;
use crate::handler::LogLevel;
use crate::ids::{TenantId, TenantShardId, TimelineId};
use crate::lookup::Lookup;
use crate::metrics::CommandKind;
use crate::pagestream::{PageStream, StreamEnd};
use crate::protocol::backend;
use crate::protocol::command::Command;
use crate::protocol::frontend::{self, next_frame};
use crate::protocol::pagestream::Version;
use crate::protocol::startup::{self, Startup, StartupParameters};
use crate::timeline::ShardSelector;

/// Why a connection is over; the text is for the log.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said goodbye, or is simply gone.
    Quiet,
    /// Noteworthy: garbage, a protocol error, a failing socket.
    Failed(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => End::Quiet,
            _ => End::Failed(error.to_string()),
        }
    }
}

impl From<frontend::ProtocolError> for End {
    fn from(error: frontend::ProtocolError) -> Self {
        End::Failed(error.to_string())
    }
}

/// A command failed, or took its connection with it.
pub(crate) enum CommandEnd {
    Query(QueryError),
    Connection(End),
}

impl From<QueryError> for CommandEnd {
    fn from(error: QueryError) -> Self {
        CommandEnd::Query(error)
    }
}

impl From<End> for CommandEnd {
    fn from(end: End) -> Self {
        CommandEnd::Connection(end)
    }
}

pub(crate) struct Connection {
    pub context: Arc<Context>,
    /// None only while a pagestream's thread has it.
    stream: Option<TcpStream>,
    input: InputBuffer,
    pub output: Vec<u8>,
    pub lookup: Lookup,
    /// The text of the last Parse.
    parsed: Vec<u8>,
}

impl Connection {
    pub async fn serve(context: Arc<Context>, stream: TcpStream, peer: SocketAddr) {
        let handler = Arc::clone(&context.handler);
        let mut connection = Connection {
            context,
            stream: Some(stream),
            input: InputBuffer::default(),
            output: Vec::new(),
            lookup: Lookup::default(),
            parsed: Vec::new(),
        };
        if let Err(End::Failed(why)) = connection.run().await {
            handler.log(LogLevel::Info, &format!("page service connection from {peer} ended: {why}"));
        }
    }

    async fn run(&mut self) -> Result<(), End> {
        self.stream()?.set_nodelay(true)?;
        let Some(_parameters) = self.start_up().await? else { return Ok(()) };
        self.authenticate().await?;
        while let Some((tag, len)) = self.next_message().await? {
            let body = self.input.bytes()[5..len].to_vec();
            self.input.consume(len);
            let goes_on = self.handle_message(tag, &body).await?;
            self.flush().await?;
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }

    // --- socket ---------------------------------------------------------------------------------------------------

    fn stream(&mut self) -> Result<&mut TcpStream, End> {
        self.stream.as_mut().ok_or_else(|| End::Failed("the socket was lost".to_string()))
    }

    /// False at the end of the client's stream, and when the service stops: a message boundary or not, nothing more is
    /// taken.
    async fn read_more(&mut self) -> Result<bool, End> {
        let Some(stream) = self.stream.as_mut() else { return Ok(false) };
        let mut stopping = self.context.stopping.subscribe();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => Ok(false),
            read = tokio::time::timeout(self.context.config.read_timeout, stream.read(self.input.space())) => {
                let n = read.map_err(|_| End::Failed("timed out".to_string()))??;
                self.input.filled(n);
                Ok(n > 0)
            }
        }
    }

    pub async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let Some(stream) = self.stream.as_mut() else { return Ok(()) };
        let written = tokio::select! {
            biased;
            written = stream.write_all(&self.output) => written,
            () = self.context.last_flush_over() => Err(ErrorKind::TimedOut.into()),
        };
        self.output.clear();
        Ok(written?)
    }

    /// Tag and whole length of the message at the front of the input; none at the end.
    async fn next_message(&mut self) -> Result<Option<(u8, usize)>, End> {
        loop {
            if let Some(frame) = next_frame(self.input.bytes())? {
                return Ok(Some((frame.tag, frame.len)));
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    // --- start-up -------------------------------------------------------------------------------------------------

    /// None: the client is gone or wanted to cancel something.
    async fn start_up(&mut self) -> Result<Option<StartupParameters>, End> {
        loop {
            let decoded = startup::decode(self.input.bytes()).map_err(|error| End::Failed(error.to_string()))?;
            let Some((packet, len)) = decoded else {
                if !self.read_more().await? {
                    return Ok(None);
                }
                continue;
            };
            self.input.consume(len);
            match packet {
                Startup::SslRequest => match self.context.config.encryption {
                    Encryption::Off => self.output.push(b'N'),
                },
                Startup::GssEncRequest => self.output.push(b'N'),
                Startup::CancelRequest => return Ok(None),
                Startup::Message(parameters) => return Ok(Some(parameters)),
            }
            self.flush().await?;
        }
    }

    async fn authenticate(&mut self) -> Result<(), End> {
        match self.context.config.authentication {
            Authentication::Trust => backend::trust_greeting(&mut self.output),
        }
        self.flush().await
    }

    /// Whether whoever logged in may address this tenant (spec 1.3).
    fn check_permission(&self, _tenant: TenantId) -> Result<(), QueryError> {
        match self.context.config.authentication {
            Authentication::Trust => Ok(()),
        }
    }

    // --- messages -------------------------------------------------------------------------------------------------

    /// False: the connection is over.
    async fn handle_message(&mut self, tag: u8, body: &[u8]) -> Result<bool, End> {
        match tag {
            b'Q' => return self.simple_query(frontend::query_text(body)?).await,
            b'P' => {
                self.parsed = frontend::parse_text(body)?.to_vec();
                self.output.extend_from_slice(backend::PARSE_COMPLETE);
            }
            b'D' => {
                frontend::check_describe(body)?;
                self.output.extend_from_slice(backend::NO_PARAMETERS_NO_DATA);
            }
            b'B' => {
                frontend::check_bind(body)?;
                self.output.extend_from_slice(backend::BIND_COMPLETE);
            }
            b'E' => {
                frontend::check_execute(body)?;
                return self.execute().await;
            }
            b'C' => self.output.extend_from_slice(backend::CLOSE_COMPLETE),
            b'S' => self.output.extend_from_slice(backend::READY_FOR_QUERY),
            b'X' => return Ok(false),
            // Left over from a COPY that is over, or meant for a log-in.
            b'd' | b'c' | b'f' | b'p' => return Ok(false),
            other => return Err(frontend::ProtocolError::MessageType(other).into()),
        }
        Ok(true)
    }

    async fn simple_query(&mut self, text: &[u8]) -> Result<bool, End> {
        let error = match self.run_command(text).await {
            Ok(()) => None,
            Err(CommandEnd::Query(error)) => Some(error),
            Err(CommandEnd::Connection(end)) => return Err(end),
        };
        if let Some(error) = &error {
            self.log_failure(text, error);
            backend::error_response(&mut self.output, error.sqlstate(), &error.simple_text());
        }
        match error {
            Some(QueryError::Shutdown | QueryError::Reconnect) => Ok(false),
            Some(QueryError::Disconnected(_)) => {
                self.output.extend_from_slice(backend::READY_FOR_QUERY);
                Ok(false)
            }
            _ => {
                self.output.extend_from_slice(backend::READY_FOR_QUERY);
                Ok(true)
            }
        }
    }

    async fn execute(&mut self) -> Result<bool, End> {
        let text = self.parsed.clone();
        match self.run_command(&text).await {
            Ok(()) => Ok(true),
            Err(CommandEnd::Connection(end)) => Err(end),
            Err(CommandEnd::Query(error)) => {
                self.log_failure(&text, &error);
                backend::error_response(&mut self.output, error.sqlstate(), &error.to_string());
                Ok(!matches!(error, QueryError::Disconnected(_)))
            }
        }
    }

    fn log_failure(&self, text: &[u8], error: &QueryError) {
        let text = String::from_utf8_lossy(text);
        self.context.handler.log(LogLevel::Info, &format!("page service command {text:.200?} failed: {error}"));
    }

    // --- commands -------------------------------------------------------------------------------------------------

    async fn run_command(&mut self, text: &[u8]) -> Result<(), CommandEnd> {
        match Command::parse(text)? {
            Command::Set => self.output.extend_from_slice(backend::COMMAND_COMPLETE_SELECT_1),
            Command::PageStream { version, tenant, timeline } => {
                self.check_permission(tenant)?;
                self.context.metrics.command(match version {
                    Version::V2 => CommandKind::PageStreamV2,
                    Version::V3 => CommandKind::PageStreamV3,
                });
                self.page_stream(version, tenant, timeline).await?;
            }
            Command::BaseBackup { tenant, timeline, lsn, gzip, replica } => {
                self.check_permission(tenant)?;
                self.context.metrics.command(CommandKind::BaseBackup);
                let wanted = crate::backup::Wanted { lsn, prev_lsn: None, full: false, gzip, replica };
                self.backup(tenant, timeline, wanted).await?;
            }
            Command::FullBackup { tenant, timeline, lsn, prev_lsn } => {
                self.check_permission(tenant)?;
                self.context.metrics.command(CommandKind::FullBackup);
                let wanted = crate::backup::Wanted { lsn, prev_lsn, full: true, gzip: false, replica: false };
                self.backup(tenant, timeline, wanted).await?;
            }
            Command::LeaseLsn { tenant_shard, timeline, lsn } => {
                self.check_permission(tenant_shard.tenant)?;
                self.context.metrics.command(CommandKind::LeaseLsn);
                let mut stopping = self.context.stopping.subscribe();
                let valid_until = tokio::select! {
                    biased;
                    _ = stopping.wait_for(|stopping| *stopping) => Err(QueryError::Shutdown),
                    granted = self.lease(tenant_shard, timeline, lsn) => granted,
                }?;
                backend::lease_row(&mut self.output, valid_until);
                self.output.extend_from_slice(backend::COMMAND_COMPLETE_SELECT_1);
            }
        }
        Ok(())
    }

    async fn lease(&mut self, id: TenantShardId, timeline: TimelineId, lsn: Lsn) -> Result<Option<u64>, QueryError> {
        let found = self.lookup.resolve(&self.context, id.tenant, timeline, ShardSelector::Known(id.shard)).await;
        // Errors of this command carry their full text.
        drop(found.map_err(|error| match error.for_command() {
            error @ QueryError::NotFound(_) => QueryError::Other(error.to_string()),
            error => error,
        })?);
        let (answer, granted) = oneshot::channel();
        self.context.handler.lease(id, timeline, lsn, answer);
        granted.await.unwrap_or(Err(QueryError::Shutdown))
    }

    async fn backup(
        &mut self,
        tenant: TenantId,
        timeline: TimelineId,
        wanted: crate::backup::Wanted,
    ) -> Result<(), CommandEnd> {
        match crate::backup::run(self, tenant, timeline, wanted).await {
            Ok(()) => Ok(()),
            Err(BackupEnd::Query(error)) => Err(error.into()),
            Err(BackupEnd::Cut(why)) => Err(End::Failed(why).into()),
        }
    }

    /// Writes part of a COPY, unless `cancelled` resolves first: then the message may be cut, and the connection with it.
    pub async fn write_or<T>(&mut self, cancelled: impl std::future::Future<Output = T>) -> Result<(), BackupEnd> {
        tokio::select! {
            biased;
            flushed = self.flush() => flushed.map_err(|end| match end {
                End::Quiet => BackupEnd::Cut("the client closed the connection during a backup".to_string()),
                End::Failed(why) => BackupEnd::Cut(why),
            }),
            _ = cancelled => Err(BackupEnd::Cut("the timeline shut down while the client did not read".to_string())),
        }
    }

    /// Hands the socket to a thread until the pagestream is over. Nothing is resolved here (spec 3.5).
    async fn page_stream(
        &mut self,
        version: Version,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<(), CommandEnd> {
        self.output.extend_from_slice(backend::COPY_BOTH_RESPONSE);
        self.flush().await?;
        let failed = |what: &str, error: std::io::Error| End::Failed(format!("{what}: {error}"));
        let stream = self.stream.take().ok_or(End::Quiet)?;
        let socket = stream.into_std().map_err(|error| failed("cannot detach the socket", error))?;
        socket.set_nonblocking(false).map_err(|error| failed("cannot make the socket blocking", error))?;
        let socket = Arc::new(socket);
        let mut pages = PageStream::new(
            Arc::clone(&self.context),
            version,
            (tenant, timeline),
            Arc::clone(&socket),
            std::mem::take(&mut self.input),
            std::mem::take(&mut self.lookup),
        );
        socket.set_read_timeout(Some(pages.read_slice())).map_err(|error| failed("cannot set a time-out", error))?;
        let registered = self.context.register_socket(&socket);
        drop(socket);
        let (done, wait) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("pagestream".to_string()).spawn(move || {
            let flow = pages.run();
            let _ = done.send((pages, flow)); // the connection waits for it in any case
        });
        let finished = match spawned {
            Ok(_) => wait.await.map_err(|_| End::Failed("the pagestream's thread died".to_string())),
            Err(error) => Err(failed("cannot start a thread for a pagestream", error)),
        };
        self.context.forget_socket(registered);
        let (pages, flow) = finished?;
        let PageStream { stream, input, output, lookup, .. } = pages;
        (self.input, self.lookup) = (input, lookup);
        // Somebody else still holds the socket only while the service stops.
        let socket = Arc::try_unwrap(stream).map_err(|_| End::Quiet)?;
        socket.set_nonblocking(true).map_err(|error| failed("cannot detach the socket", error))?;
        self.stream = Some(TcpStream::from_std(socket).map_err(|error| failed("cannot attach the socket", error))?);
        self.output = output.into_bytes();
        match flow {
            Ok(()) => Ok(()),
            Err(StreamEnd::Query(error)) => Err(error.into()),
            Err(StreamEnd::Close(why)) => Err(End::Failed(why).into()),
        }
    }
}
