//! An invoice as a page to be printed: A4, one file, no scripts.

use super::document::{Document, Party, percent_text};
use super::lines::{Line, UnitPrices};
use chrono::NaiveDate;
use turnpike_config::Usd;

const STYLE: &str = include_str!("invoice.css");
/// How amounts came about, for whoever checks them.
const NOTE: &str = "Each request is charged exactly, to 10⁻¹² dollars. Each line is rounded once, to the nearest cent, a \
                    half to the even cent; the discount once, from the sum of the rounded lines; the tax once, from the \
                    subtotal. Exact amounts of lines are shown in small print.";

/// Text that is safe in elements and quoted attributes.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

/// At least two decimal places, thousands apart.
fn amount(usd: Usd) -> String {
    let text = usd.to_string();
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("−", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    format!("{sign}{}.{fraction:0<2}", count_text(whole))
}

/// Digits in groups of three.
fn count_text(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn count(number: i64) -> String {
    let digits = count_text(&number.unsigned_abs().to_string());
    if number < 0 { format!("−{digits}") } else { digits }
}

fn party(title: &str, party: &Party) -> String {
    let mut lines = vec![format!("<strong>{}</strong>", escape(&party.name))];
    lines.extend(party.address.iter().map(|line| escape(line)));
    lines.extend(party.email.iter().map(|email| escape(email)));
    lines.extend(party.tax_id.iter().map(|id| format!("Tax ID {}", escape(id))));
    format!("<section><h2>{title}</h2><p>{}</p></section>", lines.join("<br>"))
}

/// What a million tokens cost, and a request.
fn prices(prices: &UnitPrices) -> String {
    let million = |usd: Usd| amount(Usd { pico: usd.pico.saturating_mul(1_000_000) });
    let mut parts = vec![format!("in {}", million(prices.input_token))];
    parts.extend(prices.cached_input_token.map(|usd| format!("cached in {}", million(usd))));
    parts.push(format!("out {} per million tokens", million(prices.output_token)));
    parts.extend(prices.request.map(|usd| format!("{} per request", amount(usd))));
    parts.join(", ")
}

fn line(line: &Line) -> String {
    let small = line.unit_prices.as_ref().map(prices).unwrap_or_default();
    let cached = if line.cached_tokens == 0 {
        String::new()
    } else {
        format!("<br><small>{} cached</small>", count(line.cached_tokens))
    };
    format!(
        "<tr><td>{}<br><small>{small}</small></td><td>{}</td><td>{}{cached}</td><td>{}</td>\
         <td>{}<br><small>{}</small></td></tr>\n",
        escape(&line.description),
        count(line.requests),
        count(line.prompt_tokens),
        count(line.completion_tokens),
        amount(line.amount),
        line.exact_amount,
    )
}

fn sums(document: &Document) -> String {
    let permille = document.discount_permille;
    let mut rows = vec![("Sum of lines".to_owned(), document.lines_total)];
    if permille > 0 {
        let off = Usd { pico: document.discount_amount.pico.saturating_neg() };
        rows.push((format!("Discount {}.{} %", permille / 10, permille % 10), off));
    }
    rows.push(("Subtotal".to_owned(), document.subtotal));
    rows.push((format!("Tax {} %", percent_text(document.tax_rate)), document.tax_amount));
    rows.push(("Total".to_owned(), document.total_amount));
    if document.credit_applied != Usd::ZERO {
        rows.push(("Paid from prepaid credit".to_owned(), Usd { pico: document.credit_applied.pico.saturating_neg() }));
    }
    let rows = rows.iter().map(|(name, usd)| format!("<tr><td>{name}</td><td>{}</td></tr>\n", amount(*usd)));
    let due = format!(
        "<tr class=\"due\"><td>Amount due ({})</td><td>{}</td></tr>\n",
        escape(&document.currency),
        amount(document.amount_due)
    );
    rows.chain([due]).collect()
}

/// What a credit note's page says beside what its invoice does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note<'a> {
    /// As shown.
    pub(crate) number: &'a str,
    /// When it was given.
    pub(crate) issued_on: NaiveDate,
    /// What is taken back, tax included.
    pub(crate) amount: Usd,
    /// The tax in it.
    pub(crate) tax: Usd,
    /// Why.
    pub(crate) reason: &'a str,
    /// It went into the ledger of money paid ahead.
    pub(crate) to_prepaid: bool,
}

/// The page of a credit note.
pub(crate) fn render_note(invoice: &Document, note: Note<'_>) -> String {
    let number = escape(note.number);
    let where_to = if note.to_prepaid { "added to prepaid credit" } else { "taken off the invoice" };
    let net = Usd { pico: note.amount.pico.saturating_sub(note.tax.pico) };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Credit note {number}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>Credit note</h1>\n<dl><dt>Number</dt><dd>{number}</dd>\
         <dt>Date</dt><dd>{}</dd><dt>For invoice</dt><dd>{}</dd><dt>Reason</dt><dd>{}</dd></dl></header>\n\
         <div class=\"parties\">{}{}</div>\n<table class=\"sums\">\n<tr><td>Net</td><td>{}</td></tr>\n\
         <tr><td>Tax</td><td>{}</td></tr>\n<tr class=\"due\"><td>Credit ({})</td><td>{}</td></tr>\n</table>\n\
         <footer>This amount is {where_to}. The tax in it is rounded once, in the proportion that it has in the \
         invoice.</footer>\n</body>\n</html>\n",
        note.issued_on,
        escape(&invoice.invoice_number),
        escape(note.reason),
        party("From", &invoice.seller),
        party("To", &invoice.buyer),
        amount(net),
        amount(note.tax),
        escape(&invoice.currency),
        amount(note.amount),
    )
}

/// The page. `status` is the invoice's, `checksum` that of its canonical form, and `verified` whether it still holds.
pub(crate) fn render(document: &Document, status: &str, checksum: Option<&str>, verified: bool) -> String {
    let day = |day: Option<NaiveDate>| day.map_or_else(|| "—".to_owned(), |day| day.to_string());
    let number = escape(&document.invoice_number);
    let warning = match (verified, status) {
        (_, "draft") => "<p class=\"warning\">Draft: not an invoice yet.</p>",
        (_, "void") => "<p class=\"warning\">Void.</p>",
        (false, _) => "<p class=\"warning\">This invoice does not match its checksum: it was tampered with.</p>",
        (true, _) => "",
    };
    let lines: String = document.line_items.iter().map(line).collect();
    let checksum = checksum.map(|sum| format!("<br>SHA-256 {}", escape(sum))).unwrap_or_default();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Invoice {number}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>Invoice</h1>{warning}\n<dl>\
         <dt>Number</dt><dd>{number}</dd><dt>Date</dt><dd>{}</dd><dt>Due</dt><dd>{}</dd>\
         <dt>Period (UTC)</dt><dd>{} to {}</dd><dt>Status</dt><dd>{}</dd></dl></header>\n\
         <div class=\"parties\">{}{}</div>\n\
         <table class=\"lines\">\n<thead><tr><th>Model and price</th><th>Requests</th><th>Prompt tokens</th>\
         <th>Completion tokens</th><th>Amount</th></tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n\
         <table class=\"sums\">\n{}</table>\n<footer>{NOTE}{checksum}</footer>\n</body>\n</html>\n",
        day(document.issued_on),
        day(document.due_date),
        document.period_start,
        document.period_end,
        escape(status),
        party("From", &document.seller),
        party("Bill to", &document.buyer),
        sums(document),
    )
}

#[cfg(test)]
mod tests {
    use super::super::document::tests::document;
    use super::*;

    #[test]
    fn everything_is_escaped() {
        let mut page = document(&[1_500_000_000_000]);
        let evil = "</title><script>alert('x')</script>&\"";
        page.buyer = Party {
            name: evil.to_owned(),
            address: vec![evil.to_owned()],
            tax_id: Some(evil.to_owned()),
            email: Some(evil.to_owned()),
        };
        page.invoice_number = evil.to_owned();
        page.line_items[0].description = evil.to_owned();
        let html = render(&page, evil, Some(evil), true);
        assert!(!html.contains("<script") && !html.contains("'x'"), "{html}");
        assert!(html.contains("&lt;script&gt;"), "{html}");
        let open = html.matches('<').count();
        assert_eq!(open, html.matches('>').count());
    }

    #[test]
    fn amounts_are_shown_as_people_write_them() {
        let shown = |text: &str| amount(text.parse().unwrap_or_default());
        assert_eq!(shown("1234567.5"), "1,234,567.50");
        assert_eq!(shown("-3"), "−3.00");
        assert_eq!(shown("0.000002"), "0.000002");
        assert_eq!(count(-1000), "−1,000");
    }

    #[test]
    fn a_credit_note_says_what_it_takes_back_and_of_which_invoice() {
        let usd = |text: &str| text.parse().unwrap_or_default();
        let note = Note {
            number: "TP-CN-2026-000001",
            issued_on: NaiveDate::default(),
            amount: usd("3"),
            tax: usd("0.5"),
            reason: "<script>",
            to_prepaid: true,
        };
        let page = render_note(&document(&[1]), note);
        for part in ["TP-CN-2026-000001", "TP-2026-000001", "2.50", "0.50", "3.00", "prepaid credit", "&lt;script&gt;"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let page = document(&[1]);
        assert!(render(&page, "open", None, false).contains("tampered"));
        assert!(render(&page, "draft", None, true).contains("not an invoice yet"));
        let good = render(&page, "open", Some("ab"), true);
        assert!(!good.contains("class=\"warning\"") && good.contains("SHA-256 ab"), "{good}");
    }
}
