//! What the user is told once all is ready.

use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;

/// Where everything is, and by what right.
pub(super) struct Ready {
    pub(super) base_url: String,
    pub(super) api_key: String,
    /// Made at this start: the one time that it is shown to people.
    pub(super) key_is_new: bool,
    pub(super) api_key_file: PathBuf,
    pub(super) admin_url: String,
    pub(super) admin_token: String,
    pub(super) admin_token_file: PathBuf,
    pub(super) console_url: String,
    pub(super) model: &'static str,
    pub(super) data_dir: PathBuf,
}

/// Prints it to standard output: for people, or as one line of JSON.
pub(super) fn print(ready: &Ready, as_json: bool) -> anyhow::Result<()> {
    let mut text = if as_json { json_line(ready) } else { for_people(ready) };
    text.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn json_line(ready: &Ready) -> String {
    json!({
        "base_url": ready.base_url,
        "api_key": ready.api_key,
        "admin_url": ready.admin_url,
        "admin_token": ready.admin_token,
        "console_url": ready.console_url,
        "model": ready.model,
    })
    .to_string()
}

fn for_people(ready: &Ready) -> String {
    let Ready { base_url, api_key, api_key_file, admin_url, admin_token_file, console_url, model, data_dir, .. } =
        ready;
    let key_file = quoted(&api_key_file.display().to_string());
    let (key_line, bearer) = if ready.key_is_new {
        (format!("{api_key}   (shown this once; kept in {key_file})"), api_key.clone())
    } else {
        (format!("in {key_file}"), format!("$(cat {key_file})"))
    };
    let token_file = quoted(&admin_token_file.display().to_string());
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello!"}]});
    format!(
        "
Turnpike is up.

  Base URL    {base_url}
  API key     {key_line}
  Model       {model}
  Admin API   {admin_url}/admin/v1   (token in {token_file})
  Console     {console_url}   (for now: the admin API's OpenAPI document)
  Data        {}

Try it:

  curl {base_url}/chat/completions -H \"Authorization: Bearer {bearer}\" -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops everything.",
        data_dir.display()
    )
}

/// As a shell takes it for one word.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | ':' | '@');
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(key_is_new: bool) -> Ready {
        Ready {
            base_url: "http://127.0.0.1:8080/v1".to_owned(),
            api_key: "sk-secret".to_owned(),
            key_is_new,
            api_key_file: "/my data/api_key".into(),
            admin_url: "http://127.0.0.1:8081".to_owned(),
            admin_token: "tpa-secret".to_owned(),
            admin_token_file: "/my data/admin_token".into(),
            console_url: "http://127.0.0.1:8081/openapi.json".to_owned(),
            model: "echo",
            data_dir: "/my data".into(),
        }
    }

    #[test]
    fn json_is_one_line_with_every_field() {
        let line = json_line(&ready(false));
        assert!(!line.contains('\n'));
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
        let mut fields: Vec<_> = object.keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["admin_token", "admin_url", "api_key", "base_url", "console_url", "model"]);
    }

    #[test]
    fn people_see_the_key_once_and_then_where_it_lies() {
        assert!(for_people(&ready(true)).contains("Bearer sk-secret"));
        let later = for_people(&ready(false));
        assert!(!later.contains("sk-secret") && later.contains("$(cat '/my data/api_key')"), "{later}");
        assert!(!for_people(&ready(true)).contains("tpa-secret"));
    }
}
