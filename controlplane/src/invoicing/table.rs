//! Invoices as CSV (RFC 4180).

use super::document::Document;
use turnpike_config::Usd;

/// A field: quoted where it must be. What a spreadsheet would take for a formula is made text.
fn field(text: &str) -> String {
    let formula =
        text.starts_with(['=', '+', '@', '\t', '\r']) || text.starts_with('-') && text.parse::<Usd>().is_err();
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

fn row(fields: &[String]) -> String {
    let mut row = fields.iter().map(|text| field(text)).collect::<Vec<_>>().join(",");
    row.push_str("\r\n");
    row
}

/// A row for each line of an invoice.
pub(crate) fn lines(document: &Document) -> String {
    let titles = "invoice_number,kind,description,model_id,month,price_version,requests,prompt_tokens,cached_tokens,\
                  completion_tokens,exact_amount,amount,currency\r\n";
    let rows = document.line_items.iter().map(|line| {
        let kind = serde_json::to_value(line.kind).ok();
        row(&[
            document.invoice_number.clone(),
            kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default().to_owned(),
            line.description.clone(),
            line.model_id.clone(),
            line.month.clone(),
            line.price_version.map(|version| version.to_string()).unwrap_or_default(),
            line.requests.to_string(),
            line.prompt_tokens.to_string(),
            line.cached_tokens.to_string(),
            line.completion_tokens.to_string(),
            line.exact_amount.to_string(),
            line.amount.to_string(),
            document.currency.clone(),
        ])
    });
    std::iter::once(titles.to_owned()).chain(rows).collect()
}

/// A row for each invoice, with its id and status.
pub(crate) fn list<'a>(invoices: impl Iterator<Item = (String, &'a str, &'a Document)>) -> String {
    let titles = "id,invoice_number,organization_id,period_start,period_end,status,issued_on,due_date,exact_total,\
                  lines_total,discount_amount,subtotal,tax_amount,total_amount,credit_applied,amount_due,currency\r\n";
    let day = |day: Option<chrono::NaiveDate>| day.map(|day| day.to_string()).unwrap_or_default();
    let rows = invoices.map(|(id, status, invoice)| {
        row(&[
            id,
            invoice.invoice_number.clone(),
            invoice.organization_id.to_string(),
            invoice.period_start.to_string(),
            invoice.period_end.to_string(),
            status.to_owned(),
            day(invoice.issued_on),
            day(invoice.due_date),
            invoice.exact_total.to_string(),
            invoice.lines_total.to_string(),
            invoice.discount_amount.to_string(),
            invoice.subtotal.to_string(),
            invoice.tax_amount.to_string(),
            invoice.total_amount.to_string(),
            invoice.credit_applied.to_string(),
            invoice.amount_due.to_string(),
            invoice.currency.clone(),
        ])
    });
    std::iter::once(titles.to_owned()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invoicing::document::tests::document;

    #[test]
    fn fields_are_quoted_and_no_formulas() {
        assert_eq!(field("plain"), "plain");
        assert_eq!(field("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(field("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(field("-1.5"), "-1.5");
        assert_eq!(field("-cmd"), "'-cmd");
    }

    #[test]
    fn every_row_has_every_column() {
        let document = document(&[5, 7]);
        for text in [lines(&document), list([("id".to_owned(), "open", &document)].into_iter())] {
            let columns: Vec<usize> =
                text.lines().map(|line| line.replace("m, 2026-01, price 3", "").matches(',').count()).collect();
            assert!(columns.len() > 1 && columns.iter().all(|count| *count == columns[0]), "{text}");
        }
    }
}
