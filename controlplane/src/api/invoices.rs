//! `/admin/v1/invoices`.

use super::ApiState;
use super::extract::{Body, Page, Path, Query, Window};
use super::problem::Problem;
use crate::action::credit_notes::{self, CreateCreditNote, CreditNoteView};
use crate::action::invoices::{self as action, CloseMonth, Closings, InvoiceQuery, InvoiceView, OpenDraft, Step};
use crate::action::{Operator, Reader};
use crate::invoicing;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use chrono::Utc;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// The page needs nothing but its own style.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(close))
        .routes(routes!(get))
        .routes(routes!(open))
        .routes(routes!(pay))
        .routes(routes!(void))
        .routes(routes!(give_up))
        .routes(routes!(list_credit_notes, create_credit_note))
        .routes(routes!(print_credit_note))
}

/// Which invoices.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct InvoiceParams {
    /// Only of this organization.
    organization: Option<Uuid>,
    /// Only with this status: `draft`, `open`, `paid`, `void` or `uncollectible`.
    status: Option<String>,
    /// Only of this calendar month, such as `2026-01`.
    month: Option<String>,
    /// `json` (default) or `csv`; otherwise by the `accept` header.
    format: Option<String>,
    /// Most entries, 1 to 500; 50 if absent.
    limit: Option<u16>,
    /// `next_cursor` of the page before; with CSV it is the header `x-next-cursor`.
    cursor: Option<String>,
}

/// In what form an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Html,
    Csv,
}

impl Form {
    fn named(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "html" => Some(Self::Html),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }

    /// By the first media type of `accept` that is known.
    fn accepted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let known = accept.split(',').filter_map(|range| match range.split(';').next().unwrap_or_default().trim() {
            "text/html" => Some(Self::Html),
            "text/csv" => Some(Self::Csv),
            "application/json" | "*/*" => Some(Self::Json),
            _ => None,
        });
        known.into_iter().next().unwrap_or(Self::Json)
    }
}

fn csv(text: String) -> Response {
    ([(header::CONTENT_TYPE, super::csv::CONTENT_TYPE)], text).into_response()
}

fn html(page: String) -> Response {
    ([(header::CONTENT_TYPE, HTML), (header::CONTENT_SECURITY_POLICY, POLICY)], page).into_response()
}

/// List invoices, the newest first; as JSON or CSV.
#[utoipa::path(get, path = "/admin/v1/invoices", tag = "billing", params(InvoiceParams),
    security(("token" = []), ("api_key" = [])),
    responses((status = 200, body = Page<InvoiceView>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    headers: HeaderMap,
    Query(params): Query<InvoiceParams>,
) -> Result<Response, Problem> {
    let window = Window::<Uuid>::new(params.limit, params.cursor.as_deref())?;
    let form = match params.format.as_deref() {
        None => Form::accepted(&headers),
        Some(name) => Form::named(name)
            .filter(|form| *form != Form::Html)
            .ok_or_else(|| Problem::field("format", "expected json or csv"))?,
    };
    let query =
        InvoiceQuery { organization: reader.only(params.organization)?, status: params.status, month: params.month };
    let found = action::list(&state.context, reader, query, window.after, window.fetch()).await?;
    let page = window.page(found, |invoice| invoice.id.to_string());
    if form != Form::Csv {
        return Ok(Json(page).into_response());
    }
    let rows = page.data.iter().map(|invoice| (invoice.id.to_string(), invoice.status.as_str(), &invoice.document));
    let mut response = csv(invoicing::csv_list(rows));
    if let Some(cursor) = page.next_cursor.and_then(|cursor| HeaderValue::from_str(&cursor).ok()) {
        response.headers_mut().insert("x-next-cursor", cursor);
    }
    Ok(response)
}

/// Get an invoice: as JSON, with `.html` or `accept: text/html` as a page to print, with `.csv` or `accept: text/csv`
/// its lines.
#[utoipa::path(get, path = "/admin/v1/invoices/{id}", tag = "billing",
    security(("token" = []), ("api_key" = [])),
    params(("id" = String, Path, description = "The invoice's id, and `.html` or `.csv` behind it if wanted so")),
    responses((status = 200, body = InvoiceView), (status = "4XX", body = Problem)))]
async fn get(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let (id, form) = match name.split_once('.') {
        Some((id, suffix)) => (id, Form::named(suffix)),
        None => (name.as_str(), Some(Form::accepted(&headers))),
    };
    let form = form.ok_or_else(|| Problem::field("path", "expected an id, .html or .csv behind it at most"))?;
    let id: Uuid = id.parse().map_err(|_| Problem::field("path", "expected the id of an invoice"))?;
    let invoice = action::get(&state.context, reader, id).await?;
    Ok(match form {
        Form::Json => Json(invoice).into_response(),
        Form::Csv => csv(invoicing::csv_lines(&invoice.document)),
        Form::Html => {
            let InvoiceView { document, status, checksum, checksum_valid, .. } = &invoice;
            let page = invoicing::html(document, status, checksum.as_deref(), *checksum_valid);
            html(page)
        }
    })
}

/// Close a month: make invoices of what was used. Again, it changes nothing more.
#[utoipa::path(post, path = "/admin/v1/invoices/close", tag = "billing", request_body = CloseMonth,
    responses((status = 200, body = Closings), (status = "4XX", body = Problem)))]
async fn close(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CloseMonth>,
) -> Result<Json<Closings>, Problem> {
    Ok(Json(action::close(&state.context, operator, input, Utc::now()).await?))
}

/// Open a draft: it gets its number and is frozen.
#[utoipa::path(post, path = "/admin/v1/invoices/{id}/open", tag = "billing", params(("id" = Uuid, Path), OpenDraft),
    responses((status = 200, body = InvoiceView), (status = "4XX", body = Problem)))]
async fn open(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Query(input): Query<OpenDraft>,
) -> Result<Json<InvoiceView>, Problem> {
    Ok(Json(action::open(&state.context, operator, id, input, Utc::now()).await?))
}

/// How an invoice was paid.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PayParams {
    /// Take what is still due from money paid ahead; refused if less is left. Requests that run may have been let in on
    /// the strength of it: what they cost makes the balance negative.
    #[serde(default)]
    from_prepaid: bool,
}

/// Note that an invoice was paid, or pay it from money paid ahead.
#[utoipa::path(post, path = "/admin/v1/invoices/{id}/pay", tag = "billing", params(("id" = Uuid, Path), PayParams),
    responses((status = 200, body = InvoiceView), (status = "4XX", body = Problem)))]
async fn pay(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Query(params): Query<PayParams>,
) -> Result<Json<InvoiceView>, Problem> {
    let step = if params.from_prepaid { Step::PayFromPrepaid } else { Step::Pay };
    Ok(Json(action::step(&state.context, operator, id, step, Utc::now()).await?))
}

/// Take an invoice back. Its number stays; the month can be closed again. One with credit notes is refused: they would
/// be lost.
#[utoipa::path(post, path = "/admin/v1/invoices/{id}/void", tag = "billing", params(("id" = Uuid, Path)),
    responses((status = 200, body = InvoiceView), (status = "4XX", body = Problem)))]
async fn void(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<InvoiceView>, Problem> {
    Ok(Json(action::step(&state.context, operator, id, Step::Void, Utc::now()).await?))
}

/// Note that an invoice will not be paid.
#[utoipa::path(post, path = "/admin/v1/invoices/{id}/mark_uncollectible", tag = "billing",
    params(("id" = Uuid, Path)), responses((status = 200, body = InvoiceView), (status = "4XX", body = Problem)))]
async fn give_up(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<InvoiceView>, Problem> {
    Ok(Json(action::step(&state.context, operator, id, Step::GiveUp, Utc::now()).await?))
}

/// The credit notes of an invoice.
#[derive(Serialize, ToSchema)]
struct CreditNotes {
    /// The oldest first.
    data: Vec<CreditNoteView>,
}

/// List the credit notes of an invoice.
#[utoipa::path(get, path = "/admin/v1/invoices/{id}/credit_notes", tag = "billing", params(("id" = Uuid, Path)),
    security(("token" = []), ("api_key" = [])),
    responses((status = 200, body = CreditNotes), (status = "4XX", body = Problem)))]
async fn list_credit_notes(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    Path(id): Path<Uuid>,
) -> Result<Json<CreditNotes>, Problem> {
    Ok(Json(CreditNotes { data: credit_notes::list(&state.context, reader, id).await? }))
}

/// Get a credit note as a page to print.
#[utoipa::path(get, path = "/admin/v1/invoices/{id}/credit_notes/{note}", tag = "billing",
    security(("token" = []), ("api_key" = [])),
    params(("id" = Uuid, Path), ("note" = String, Path, description = "The note's id, and `.html` behind it if wanted")),
    responses((status = 200, body = String, content_type = "text/html"), (status = "4XX", body = Problem)))]
async fn print_credit_note(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    Path((id, note)): Path<(Uuid, String)>,
) -> Result<Response, Problem> {
    let note = note.strip_suffix(".html").unwrap_or(&note);
    let note = note.parse().map_err(|_| Problem::field("path", "expected the id of a credit note"))?;
    Ok(html(credit_notes::page(&state.context, reader, id, note).await?))
}

/// Correct an invoice by a credit note. A key that was used before makes nothing and answers 200.
#[utoipa::path(post, path = "/admin/v1/invoices/{id}/credit_notes", tag = "billing", params(("id" = Uuid, Path)),
    request_body = CreateCreditNote,
    responses((status = 201, body = CreditNoteView), (status = 200, body = CreditNoteView),
        (status = "4XX", body = Problem)))]
async fn create_credit_note(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<CreateCreditNote>,
) -> Result<(StatusCode, Json<CreditNoteView>), Problem> {
    let (note, new) = credit_notes::create(&state.context, operator, id, input, Utc::now()).await?;
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, Json(note)))
}
