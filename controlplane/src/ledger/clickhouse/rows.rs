//! An event in the shape of its row in `request_analytics`.

use super::read::SCALE;
use crate::store::requests::LoggedRequest;
use crate::store::usage::{Known, UsageRow};
use ::clickhouse::Row;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use turnpike_config::CacheStatus;
use uuid::Uuid;

/// Longest text that is stored of what a client or an engine gave, characters.
const MAX_TEXT: usize = 256;

#[derive(Clone, Debug, Row, Serialize, Deserialize)]
pub(super) struct EventRow {
    timestamp: u32,
    #[serde(with = "::clickhouse::serde::uuid")]
    event_id: Uuid,
    organization_id: String,
    api_key_id: String,
    model_id: String,
    model_version: String,
    request_type: String,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    estimated: bool,
    price_version: u32,
    /// Pico-dollars: a decimal with twelve places is sent as the whole number of its last.
    cost: i128,
    processing_time_ms: u32,
    queue_time_ms: u32,
    total_time_ms: u32,
    first_byte_ms: Option<u32>,
    status: String,
    http_status: u16,
    error_code: String,
    cache_status: String,
    streamed: bool,
    shadow: bool,
    retries: u8,
    request_size_bytes: u64,
    response_size_bytes: u64,
    region: String,
    edge: String,
    node: String,
    user_agent: String,
}

impl EventRow {
    /// A key or model that does not exist is stored as none.
    pub(super) fn new(row: &UsageRow, known: &Known) -> Self {
        let event = &row.event;
        let text = |text: &Option<String>| cut(text.as_deref().unwrap_or_default());
        let model = event.model.as_ref().filter(|model| known.models.contains(*model));
        Self {
            timestamp: u32::try_from(row.created_at.timestamp()).unwrap_or_default(),
            event_id: event.id.0,
            organization_id: event.organization.0.to_string(),
            api_key_id: Some(event.api_key.0)
                .filter(|key| known.keys.contains(key))
                .map(|key| key.to_string())
                .unwrap_or_default(),
            model_id: model.cloned().unwrap_or_default(),
            model_version: text(&event.model_version),
            request_type: event.endpoint.name().to_owned(),
            prompt_tokens: event.prompt_tokens,
            cached_tokens: event.cached_tokens,
            completion_tokens: event.completion_tokens,
            total_tokens: u64::from(event.prompt_tokens) + u64::from(event.completion_tokens),
            estimated: event.estimated,
            price_version: event.price_version,
            cost: event.cost.pico,
            processing_time_ms: event.processing_ms,
            queue_time_ms: event.queue_ms,
            total_time_ms: event.total_ms,
            first_byte_ms: event.first_byte_ms,
            status: event.status.name().to_owned(),
            http_status: event.http_status,
            error_code: text(&event.error_code),
            cache_status: event.cache.map(CacheStatus::name).unwrap_or_default().to_owned(),
            streamed: event.streamed,
            shadow: event.shadow,
            retries: event.retries,
            request_size_bytes: event.request_bytes,
            response_size_bytes: event.response_bytes,
            region: cut(&event.region),
            edge: cut(&event.edge),
            node: text(&event.node),
            user_agent: text(&event.user_agent),
        }
    }
}

impl From<&LoggedRequest> for EventRow {
    fn from(logged: &LoggedRequest) -> Self {
        let text = |text: &Option<String>| cut(text.as_deref().unwrap_or_default());
        let mut cost = logged.cost_usd;
        cost.rescale(SCALE);
        Self {
            timestamp: narrow(logged.created_at.timestamp()),
            event_id: logged.id,
            organization_id: logged.organization_id.to_string(),
            api_key_id: logged.api_key_id.map(|key| key.to_string()).unwrap_or_default(),
            model_id: logged.model_id.clone().unwrap_or_default(),
            model_version: text(&logged.model_version),
            request_type: logged.request_type.clone(),
            prompt_tokens: narrow(logged.prompt_tokens),
            cached_tokens: narrow(logged.cached_tokens),
            completion_tokens: narrow(logged.completion_tokens),
            total_tokens: narrow(logged.total_tokens),
            estimated: logged.estimated,
            price_version: narrow(logged.price_version),
            cost: cost.mantissa(),
            processing_time_ms: narrow(logged.processing_time_ms.unwrap_or_default()),
            queue_time_ms: narrow(logged.queue_time_ms.unwrap_or_default()),
            total_time_ms: narrow(logged.total_time_ms.unwrap_or_default()),
            first_byte_ms: logged.first_byte_ms.map(narrow),
            status: logged.status.clone(),
            http_status: narrow(logged.http_status.unwrap_or_default()),
            error_code: text(&logged.error_code),
            cache_status: text(&logged.cache_status),
            streamed: logged.streamed,
            shadow: logged.shadow,
            retries: narrow(logged.retries),
            request_size_bytes: narrow(logged.request_size_bytes.unwrap_or_default()),
            response_size_bytes: narrow(logged.response_size_bytes.unwrap_or_default()),
            region: text(&logged.region),
            edge: text(&logged.edge),
            node: text(&logged.node),
            user_agent: text(&logged.user_agent),
        }
    }
}

/// A figure that PostgreSQL keeps in a wider type than it came in.
fn narrow<T, U: TryFrom<T> + Default>(figure: T) -> U {
    U::try_from(figure).unwrap_or_default()
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// What an insert of these rows is recognised by when it is tried again. Made of all that could make another insert of
/// the same events store something else.
pub(super) fn token<'r>(rows: impl Iterator<Item = &'r EventRow>) -> String {
    let mut hasher = Sha256::new();
    for row in rows {
        hasher.update(row.event_id.as_bytes());
        hasher.update(row.model_id.as_bytes());
        hasher.update(row.api_key_id.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
