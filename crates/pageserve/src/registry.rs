//! Which tenants, shards and timelines are here, and how a request finds its timeline (spec page-service.md 3.5).
//!
//! The tenant manager pushes every change in; nothing is decided here. A request that meets a shard which may become
//! active soon waits for the next change, within a budget.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use pagecore::shard::key_to_shard;
use pagecore::ShardIdentity;
use tokio::sync::watch;

use crate::error::{PageError, QueryError};
use crate::handler::Handler;
use crate::ids::{ShardIndex, TenantId, TenantShardId, TimelineId};
use crate::source::PageSource;
use crate::throttle::{Throttle, ThrottleConfig, ThrottleSnapshot};
use crate::timeline::{Closed, ShardSelector, Timeline};

/// What the tenant manager says of one slot of its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Somebody is changing the slot; wait for the outcome.
    InTransition,
    Attaching,
    Activating,
    Active,
    Stopping,
    Broken(String),
}

#[derive(Clone)]
enum TimelineSlot {
    Active(Arc<Timeline>),
    /// The name of its state.
    Inactive(String),
}

struct Shard {
    identity: ShardIdentity,
    state: ShardState,
    throttle: Arc<Throttle>,
    timelines: HashMap<TimelineId, TimelineSlot>,
}

type Shards = BTreeMap<ShardIndex, Shard>;

pub struct Registry {
    tenants: RwLock<HashMap<TenantId, Shards>>,
    changes: watch::Sender<u64>,
}

/// How long a request waits for its shard (spec 3.5, 4.6).
#[derive(Clone, Copy, Debug)]
pub struct ResolveBudget {
    pub timeout: Duration,
    pub attempts: u32,
    pub pause: Duration,
}

impl Default for ResolveBudget {
    fn default() -> Self {
        ResolveBudget { timeout: Duration::from_secs(5), attempts: 10, pause: Duration::from_millis(100) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// Tenant or shard are not on this node; the text names the tenant.
    NoShard(String),
    TimedOut(String),
    Broken(String),
    Stopping,
    /// Unknown or not active.
    NoTimeline(String),
    /// It closed between finding and entering.
    GateClosed(Closed),
    OtherTenant,
}

impl ResolveError {
    /// For a GetPage request inside a pagestream.
    pub fn for_get_page(self) -> PageError {
        match self {
            ResolveError::NoShard(_) => PageError::Reconnect,
            ResolveError::TimedOut(text) | ResolveError::NoTimeline(text) => PageError::NotFound(text),
            ResolveError::Broken(reason) => PageError::NotFound(format!("Tenant is broken: {reason}")),
            ResolveError::Stopping | ResolveError::GateClosed(Closed::Shutdown) => PageError::Shutdown,
            ResolveError::GateClosed(Closed::Reconnect) => PageError::Reconnect,
            ResolveError::OtherTenant => PageError::NotFound("reconnect to switch tenant id".to_string()),
        }
    }

    /// For every other request and for commands.
    pub fn for_command(self) -> QueryError {
        match self {
            ResolveError::NoShard(text) | ResolveError::NoTimeline(text) => QueryError::NotFound(text),
            ResolveError::TimedOut(text) => QueryError::NotActiveInTime(text),
            ResolveError::Broken(reason) => QueryError::Other(format!("Tenant is broken: {reason}")),
            ResolveError::Stopping => QueryError::Shutdown,
            ResolveError::GateClosed(_) => QueryError::NotFound("timeline is shutting down".to_string()),
            ResolveError::OtherTenant => QueryError::Other("reconnect to switch tenant id".to_string()),
        }
    }
}

enum Step {
    Found(Arc<Timeline>),
    /// Wait for a change; `wanted` should be activated at once.
    Wait {
        latest: Option<ShardState>,
        wanted: Option<TenantShardId>,
    },
}

impl Default for Registry {
    fn default() -> Self {
        Registry { tenants: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<TenantId, Shards>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<TenantId, Shards>> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Adds the shard or changes its state. Timelines of a shard stay when its state changes. A shard must be set to
    /// `Stopping` before its timelines are closed, so that clients are told to go elsewhere.
    pub fn set_shard(&self, id: TenantShardId, identity: ShardIdentity, state: ShardState) {
        let mut tenants = self.write();
        let shards = tenants.entry(id.tenant).or_default();
        match shards.get_mut(&id.shard) {
            Some(shard) => {
                shard.identity = identity;
                shard.state = state;
            }
            None => {
                let throttle = Arc::default();
                shards.insert(id.shard, Shard { identity, state, throttle, timelines: HashMap::new() });
            }
        }
        drop(tenants);
        self.changed();
    }

    /// Forgets the shard and closes what is left of its timelines, which are returned so that the caller can wait.
    pub fn remove_shard(&self, id: TenantShardId) -> Vec<Arc<Timeline>> {
        let mut tenants = self.write();
        let shard = tenants.get_mut(&id.tenant).and_then(|shards| shards.remove(&id.shard));
        if tenants.get(&id.tenant).is_some_and(BTreeMap::is_empty) {
            tenants.remove(&id.tenant);
        }
        drop(tenants);
        let mut timelines = Vec::new();
        for slot in shard.into_iter().flat_map(|shard| shard.timelines.into_values()) {
            if let TimelineSlot::Active(timeline) = slot {
                timeline.close(Closed::Shutdown);
                timelines.push(timeline);
            }
        }
        self.changed();
        timelines
    }

    /// False if the shard is not here.
    pub fn set_throttle(&self, id: TenantShardId, config: Option<ThrottleConfig>) -> bool {
        let tenants = self.read();
        let Some(shard) = tenants.get(&id.tenant).and_then(|shards| shards.get(&id.shard)) else { return false };
        shard.throttle.configure(config, Instant::now());
        true
    }

    /// What the throttle of each shard did.
    pub fn throttle_counts(&self) -> Vec<(TenantShardId, ThrottleSnapshot)> {
        let tenants = self.read();
        let of_tenant = |(tenant, shards): (&TenantId, &Shards)| {
            let tenant = *tenant;
            let counts = |(shard, found): (&ShardIndex, &Shard)| {
                (TenantShardId { tenant, shard: *shard }, found.throttle.counts.snapshot())
            };
            shards.iter().map(counts).collect::<Vec<_>>()
        };
        tenants.iter().flat_map(of_tenant).collect()
    }

    /// Makes the timeline Active. None if the shard is not here. An Active timeline of that id is closed and replaced.
    pub fn attach_timeline(
        &self,
        shard_id: TenantShardId,
        id: TimelineId,
        source: Arc<dyn PageSource>,
    ) -> Option<Arc<Timeline>> {
        let mut tenants = self.write();
        let shard = tenants.get_mut(&shard_id.tenant)?.get_mut(&shard_id.shard)?;
        let timeline = Timeline::new(shard_id, id, shard.identity, Arc::clone(&shard.throttle), source);
        let old = shard.timelines.insert(id, TimelineSlot::Active(Arc::clone(&timeline)));
        drop(tenants);
        if let Some(TimelineSlot::Active(old)) = old {
            old.close(Closed::Shutdown);
        }
        self.changed();
        Some(timeline)
    }

    /// Closes the timeline if it is active. `state` is what remains known of it (`Loading`, `Stopping`, `Broken`);
    /// none: it is gone. Returns the closed timeline, for `wait_left`.
    pub fn close_timeline(
        &self,
        shard_id: TenantShardId,
        id: TimelineId,
        why: Closed,
        state: Option<String>,
    ) -> Option<Arc<Timeline>> {
        let mut tenants = self.write();
        let timelines = &mut tenants.get_mut(&shard_id.tenant)?.get_mut(&shard_id.shard)?.timelines;
        let old = match state {
            Some(state) => timelines.insert(id, TimelineSlot::Inactive(state)),
            None => timelines.remove(&id),
        };
        drop(tenants);
        match old {
            Some(TimelineSlot::Active(timeline)) => {
                timeline.close(why);
                Some(timeline)
            }
            _ => None,
        }
    }

    /// Finds the timeline, waiting for shards in transition or activation. The handler is told of shards which
    /// should become active at once.
    pub async fn resolve(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        selector: ShardSelector,
        budget: ResolveBudget,
        handler: &dyn Handler,
    ) -> Result<Arc<Timeline>, ResolveError> {
        let mut attempt = 1;
        loop {
            let result = self.resolve_once(tenant, timeline, selector, budget.timeout, handler).await;
            match result {
                Err(ResolveError::TimedOut(_)) if attempt < budget.attempts => attempt += 1,
                other => return other,
            }
            tokio::time::sleep(budget.pause).await;
        }
    }

    async fn resolve_once(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        selector: ShardSelector,
        timeout: Duration,
        handler: &dyn Handler,
    ) -> Result<Arc<Timeline>, ResolveError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut changes = self.changes.subscribe();
        let mut asked = None;
        loop {
            changes.borrow_and_update();
            let latest = match self.look_up(tenant, timeline, selector)? {
                Step::Found(timeline) => return Ok(timeline),
                Step::Wait { latest, wanted } => {
                    if let Some(shard) = wanted.filter(|_| wanted != asked) {
                        handler.activate(shard);
                        asked = wanted;
                    }
                    latest
                }
            };
            let change = tokio::time::timeout_at(deadline, changes.changed()).await;
            if !matches!(change, Ok(Ok(()))) {
                return Err(ResolveError::TimedOut(format!(
                    "Timed out waiting {timeout:?} for tenant active state. Latest state: {latest:?}"
                )));
            }
        }
    }

    fn look_up(&self, tenant: TenantId, id: TimelineId, selector: ShardSelector) -> Result<Step, ResolveError> {
        let tenants = self.read();
        let Some(shards) = tenants.get(&tenant) else {
            return Err(ResolveError::NoShard(format!("Tenant {tenant} not found")));
        };
        let mut in_transition = false;
        for (index, shard) in shards {
            if shard.state == ShardState::InTransition {
                in_transition = true;
                continue;
            }
            let is_wanted = match selector {
                ShardSelector::Zero => index.number == 0,
                // Parents and children of a split may be here together, so each slot's own count is what matters.
                ShardSelector::Page(key) => {
                    index.number == key_to_shard(shard.identity.count, shard.identity.stripe_size, &key)
                }
                ShardSelector::Known(known) => *index == known,
            };
            if !is_wanted {
                continue;
            }
            let tenant_shard = TenantShardId { tenant, shard: *index };
            return match &shard.state {
                ShardState::Active => match shard.timelines.get(&id) {
                    Some(TimelineSlot::Active(timeline)) => Ok(Step::Found(Arc::clone(timeline))),
                    Some(TimelineSlot::Inactive(state)) => Err(ResolveError::NoTimeline(format!(
                        "Timeline {tenant_shard}/{id} is not active, state: {state}"
                    ))),
                    None => Err(ResolveError::NoTimeline(format!("Timeline {tenant_shard}/{id} was not found"))),
                },
                ShardState::Broken(reason) => Err(ResolveError::Broken(reason.clone())),
                ShardState::Stopping => Err(ResolveError::Stopping),
                ShardState::InTransition | ShardState::Attaching | ShardState::Activating => {
                    Ok(Step::Wait { latest: Some(shard.state.clone()), wanted: Some(tenant_shard) })
                }
            };
        }
        if in_transition {
            return Ok(Step::Wait { latest: None, wanted: None });
        }
        Err(ResolveError::NoShard(format!("Tenant {tenant} not found")))
    }
}
