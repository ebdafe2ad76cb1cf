//! Reading the request log.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::AssertSqlSafe;
use utoipa::ToSchema;
use uuid::Uuid;

/// One request, whatever its end.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct LoggedRequest {
    /// Identity.
    pub(crate) id: Uuid,
    /// Who pays.
    pub(crate) organization_id: Uuid,
    /// With which key.
    pub(crate) api_key_id: Option<Uuid>,
    /// The model; null if it was refused before one was known.
    pub(crate) model_id: Option<String>,
    /// The version.
    pub(crate) model_version: Option<String>,
    /// `chat`, `completion`, `embedding` or `moderation`.
    pub(crate) request_type: String,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Of those, the engine had these from an earlier prompt.
    pub(crate) cached_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// Both.
    pub(crate) total_tokens: i64,
    /// The tokens are the edge's estimate.
    pub(crate) estimated: bool,
    /// Which of the model's prices the cost was reckoned by; 0 if the model had no numbered prices.
    pub(crate) price_version: i64,
    /// Exact decimal dollars.
    #[schema(value_type = String)]
    pub(crate) cost_usd: Decimal,
    /// Body size, bytes.
    pub(crate) request_size_bytes: Option<i64>,
    /// Answer size, bytes.
    pub(crate) response_size_bytes: Option<i64>,
    /// At the node, milliseconds.
    pub(crate) processing_time_ms: Option<i32>,
    /// Before the node, milliseconds.
    pub(crate) queue_time_ms: Option<i32>,
    /// Altogether, milliseconds.
    pub(crate) total_time_ms: Option<i32>,
    /// Until the first byte, milliseconds.
    pub(crate) first_byte_ms: Option<i32>,
    /// `success`, `error`, `timeout`, `rate_limited` or `client_gone`.
    pub(crate) status: String,
    /// Sent to the client.
    pub(crate) http_status: Option<i16>,
    /// OpenAI error code.
    pub(crate) error_code: Option<String>,
    /// Error text as sent to the client.
    pub(crate) error_message: Option<String>,
    /// `hit`, `miss`, `coalesced` or `bypass`; null if it was refused before the cache was asked.
    pub(crate) cache_status: Option<String>,
    /// Whether a stream was asked for.
    pub(crate) streamed: bool,
    /// A copy of a request, sent to a route's shadow: nobody pays for it, and it is in no sum.
    pub(crate) shadow: bool,
    /// Nodes tried beyond the first.
    pub(crate) retries: i16,
    /// Client's user agent.
    pub(crate) user_agent: Option<String>,
    /// Client's address.
    pub(crate) ip_address: Option<String>,
    /// Region of the edge.
    pub(crate) region: Option<String>,
    /// The edge.
    pub(crate) edge: Option<String>,
    /// The node.
    pub(crate) node: Option<String>,
    /// When it arrived.
    pub(crate) created_at: DateTime<Utc>,
    /// When it ended.
    pub(crate) completed_at: Option<DateTime<Utc>>,
}

/// Which requests are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Of this organization.
    pub(crate) organization: Option<Uuid>,
    /// With this key.
    pub(crate) key: Option<Uuid>,
    /// For this model.
    pub(crate) model: Option<String>,
    /// With this end.
    pub(crate) status: Option<String>,
    /// That arrived then or later.
    pub(crate) from: Option<DateTime<Utc>>,
    /// That arrived before then.
    pub(crate) to: Option<DateTime<Utc>>,
    /// Through this edge.
    pub(crate) edge: Option<String>,
    /// By this node.
    pub(crate) node: Option<String>,
    /// Of this region.
    pub(crate) region: Option<String>,
    /// Of this cache status.
    pub(crate) cache_status: Option<String>,
    /// With this OpenAI error code.
    pub(crate) error_code: Option<String>,
    /// Sent to a route's shadow, or not.
    pub(crate) shadow: Option<bool>,
}

/// Requests before `before` (time and id), the newest first, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    before: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<LoggedRequest>, StoreError> {
    let sql = format!(
        "{REQUESTS}
         WHERE ($1::uuid IS NULL OR organization_id = $1) AND ($2::uuid IS NULL OR api_key_id = $2)
             AND ($3::text IS NULL OR model_id = $3) AND ($4::text IS NULL OR status = $4)
             AND ($5::timestamptz IS NULL OR (created_at, id) < ($5, $6))
             AND ($8::timestamptz IS NULL OR created_at >= $8) AND ($9::timestamptz IS NULL OR created_at < $9)
             AND ($10::text IS NULL OR edge = $10) AND ($11::text IS NULL OR node = $11)
             AND ($12::text IS NULL OR region = $12) AND ($13::text IS NULL OR cache_status = $13)
             AND ($14::text IS NULL OR error_code = $14) AND ($15::boolean IS NULL OR shadow = $15)
         ORDER BY created_at DESC, id DESC LIMIT $7"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.organization)
        .bind(filter.key)
        .bind(&filter.model)
        .bind(&filter.status)
        .bind(before.map(|(at, _)| at))
        .bind(before.map(|(_, id)| id))
        .bind(limit)
        .bind(filter.from)
        .bind(filter.to)
        .bind(&filter.edge)
        .bind(&filter.node)
        .bind(&filter.region)
        .bind(&filter.cache_status)
        .bind(&filter.error_code)
        .bind(filter.shadow)
        .fetch_all(connection)
        .await?)
}

/// All requests before `before` (time and id) that arrived at `from` or later, the newest first, at most `limit`.
pub(crate) async fn before(
    connection: &mut PgConnection,
    from: DateTime<Utc>,
    before: (DateTime<Utc>, Uuid),
    limit: i64,
) -> Result<Vec<LoggedRequest>, StoreError> {
    // The time alone as well: that is what there is an index for.
    let sql = format!(
        "{REQUESTS} WHERE created_at >= $1 AND created_at <= $2 AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(from)
        .bind(before.0)
        .bind(before.1)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

const REQUESTS: &str = "
SELECT id, organization_id, api_key_id, model_id, model_version, request_type, prompt_tokens, cached_tokens,
    completion_tokens, total_tokens, estimated, price_version, cost_usd, request_size_bytes, response_size_bytes,
    processing_time_ms, queue_time_ms, total_time_ms, first_byte_ms, status, http_status, error_code, error_message,
    cache_status, streamed, shadow, retries, user_agent, host(ip_address) AS ip_address, region, edge, node, created_at,
    completed_at
FROM inference_requests";
