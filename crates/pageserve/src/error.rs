//! What a client is told when something fails (spec page-service.md 1.6, 3.5, 3.6).
//!
//! Two kinds: a [`QueryError`] ends a command and becomes an ErrorResponse; a [`PageError`] belongs to one pagestream
//! request. Only failures that would come again may be sent as a pagestream Error, since the compute turns it into an
//! error of the user's statement; what heals by itself breaks the connection, which the compute retries silently.

use crate::ids::TenantShardId;

/// A command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Tenant, shard or timeline unknown or not active; the text is for the log and for Execute.
    #[error("Not found: {0}")]
    NotFound(String),
    #[error("Unauthorized: {0}")]
    Unauthorized(String),
    #[error("Shutting down")]
    Shutdown,
    #[error("Server requested reconnect")]
    Reconnect,
    /// The tenant did not become active within the budget.
    #[error("{0}")]
    NotActiveInTime(String),
    /// The connection failed inside a COPY.
    #[error("{0}")]
    Disconnected(String),
    #[error("{0}")]
    Other(String),
}

pub const INTERNAL_ERROR: &str = "XX000";
pub const ADMIN_SHUTDOWN: &str = "57P01";
pub const CONNECTION_FAILURE: &str = "08006";

impl QueryError {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            QueryError::NotFound(_) | QueryError::Unauthorized(_) | QueryError::Other(_) => INTERNAL_ERROR,
            QueryError::Shutdown => ADMIN_SHUTDOWN,
            QueryError::Reconnect | QueryError::NotActiveInTime(_) | QueryError::Disconnected(_) => CONNECTION_FAILURE,
        }
    }

    /// The text for a simple query: details of what exists are kept from peers.
    pub fn simple_text(&self) -> String {
        match self {
            QueryError::NotFound(_) => "not found".to_string(),
            QueryError::Unauthorized(_) => "JWT authentication error".to_string(),
            QueryError::Shutdown => "shutdown".to_string(),
            QueryError::Reconnect => "reconnect".to_string(),
            QueryError::NotActiveInTime(text) | QueryError::Disconnected(text) | QueryError::Other(text) => {
                text.clone()
            }
        }
    }
}

/// One pagestream request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The read path failed; the detail is for the log only.
    #[error("error reading relation or page version: {0}")]
    Read(String),
    /// Records could not be replayed, which suggests damaged data: somebody should be woken up.
    #[error("error reading relation or page version: {detail}")]
    Redo { shard: TenantShardId, detail: String },
    #[error("LSN timeout: {0}")]
    LsnTimeout(String),
    #[error("Not found: {0}")]
    NotFound(String),
    #[error("Bad request: {0}")]
    BadRequest(String),
    #[error("Shutting down")]
    Shutdown,
    #[error("Server requested reconnect")]
    Reconnect,
}

impl PageError {
    /// The text of the Error message, or the command error that ends the pagestream instead.
    pub fn client_text(&self) -> Result<String, QueryError> {
        match self {
            PageError::Read(_) | PageError::Redo { .. } => Ok("Read error".to_string()),
            PageError::LsnTimeout(_) | PageError::NotFound(_) | PageError::BadRequest(_) => Ok(self.to_string()),
            PageError::Shutdown => Err(QueryError::Shutdown),
            PageError::Reconnect => Err(QueryError::Reconnect),
        }
    }
}
