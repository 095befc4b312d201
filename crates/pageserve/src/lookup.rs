//! How a connection finds timelines: its cache first, then the registry (spec page-service.md 3.5, 4.4).

use crate::context::Context;
use crate::ids::{TenantId, TimelineId};
use crate::registry::ResolveError;
use crate::timeline::{Closed, Handle, HandleCache, ShardSelector};

/// Lives as long as its connection.
#[derive(Default)]
pub(crate) struct Lookup {
    /// A connection is bound to the first tenant it addresses.
    tenant: Option<TenantId>,
    cache: HandleCache,
}

impl Lookup {
    /// Never waits. None: ask [`Self::resolve`].
    pub fn cached(
        &mut self,
        tenant: TenantId,
        timeline: TimelineId,
        selector: ShardSelector,
    ) -> Result<Option<Handle>, ResolveError> {
        match self.tenant {
            None => self.tenant = Some(tenant),
            Some(bound) if bound != tenant => return Err(ResolveError::OtherTenant),
            Some(_) => {}
        }
        Ok(self.cache.get(timeline, selector))
    }

    pub async fn resolve(
        &mut self,
        context: &Context,
        tenant: TenantId,
        timeline: TimelineId,
        selector: ShardSelector,
    ) -> Result<Handle, ResolveError> {
        if let Some(handle) = self.cached(tenant, timeline, selector)? {
            return Ok(handle);
        }
        let budget = context.config.resolve;
        let found = context.registry.resolve(tenant, timeline, selector, budget, &*context.handler).await?;
        self.cache.insert(&found).ok_or_else(|| {
            let why = *found.watch_closed().borrow();
            ResolveError::GateClosed(why.unwrap_or(Closed::Shutdown))
        })
    }
}
