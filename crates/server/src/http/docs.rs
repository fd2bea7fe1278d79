//! `/api/docs`: the OpenAPI document for people, as one page of plain HTML.
//!
//! Rendered here and not by a viewer: those are megabytes of JavaScript, from a foreign host or
//! vendored and to be kept up to date. This page runs no script and loads nothing, which its
//! content security policy makes the browser enforce. It needs no token, as the document does not.

use super::openapi::document;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY};
use axum::response::Html;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
const COMPONENTS: &str = "#/components/schemas/";

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::to_value(document()).unwrap_or_default();
    page(&document)
});

/// `GET /api/docs`
pub async fn serve() -> ([(HeaderName, &'static str); 3], Html<&'static str>) {
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(&PAGE))
}

/// The page of a document.
pub fn page(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let mut by_tag: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, item) in members(&document["paths"]) {
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                let tag = text(&operation["tags"][0]);
                by_tag
                    .entry(tag)
                    .or_default()
                    .push(endpoint(method, path, operation));
            }
        }
    }
    let mut nav = String::new();
    let mut body = String::new();
    for (tag, endpoints) in &by_tag {
        let tag = escape(tag);
        let _ = write!(nav, "<a href=\"#{tag}\">{tag}</a> ");
        let _ = write!(body, "<h2 id=\"{tag}\">{tag}</h2>\n{}", endpoints.concat());
    }
    let mut schemas = String::new();
    for (name, schema) in members(&document["components"]["schemas"]) {
        let _ = writeln!(
            schemas,
            "<section id=\"{0}\"><h3>{0}</h3>{1}{2}</section>",
            escape(name),
            prose(&schema["description"]),
            shape(schema),
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{0} API</title>\
         <style>{STYLE}</style></head><body>\n<h1>{0} API <small>{1}</small></h1>\n{2}\
         <p>For programs: <a href=\"openapi.json\">openapi.json</a></p>\n<nav>{nav}<a href=\"#types\">types</a>\
         </nav>\n{body}<h2 id=\"types\">types</h2>\n{schemas}</body></html>\n",
        escape(&title),
        escape(&text(&document["info"]["version"])),
        prose(&document["info"]["description"]),
    )
}

const STYLE: &str = include_str!("docs.css");

fn endpoint(method: &str, path: &str, operation: &Value) -> String {
    let mut out = format!(
        "<section><h3 id=\"{id}\"><code>{method} {path}</code></h3>{summary}{description}",
        id = escape(&text(&operation["operationId"])),
        method = method.to_uppercase(),
        path = escape(path),
        summary = prose(&operation["summary"]),
        description = prose(&operation["description"]),
    );
    if operation["security"].as_array().is_none_or(Vec::is_empty) {
        out.push_str("<p>Needs no token.</p>");
    }
    let rows: Vec<[String; 3]> = elements(&operation["parameters"])
        .map(|p| {
            let must = if p["required"] == true { "" } else { " (optional)" };
            [
                format!(
                    "<code>{}</code> {}{must}",
                    escape(&text(&p["name"])),
                    text(&p["in"])
                ),
                kind(&p["schema"]),
                inline(&p["description"]),
            ]
        })
        .collect();
    out.push_str(&table(&rows));
    if let Some(schema) = content(&operation["requestBody"]) {
        let _ = write!(out, "<p>Body: {}</p>", kind(schema));
    }
    let rows: Vec<[String; 3]> = members(&operation["responses"])
        .map(|(status, response)| {
            let body = content(response).map(kind).unwrap_or_default();
            [escape(status), body, inline(&response["description"])]
        })
        .collect();
    out.push_str(&table(&rows));
    out.push_str("</section>\n");
    out
}

/// The schema of a body, whatever its content type.
fn content(of: &Value) -> Option<&Value> {
    members(&of["content"]).next().map(|(_, media)| &media["schema"])
}

/// A schema as a table of its fields, or in one line.
fn shape(schema: &Value) -> String {
    let required: Vec<&str> = elements(&schema["required"]).filter_map(Value::as_str).collect();
    let rows: Vec<[String; 3]> = members(&schema["properties"])
        .map(|(name, field)| {
            let must = if required.contains(&name.as_str()) {
                ""
            } else {
                " (optional)"
            };
            [
                format!("<code>{}</code>{must}", escape(name)),
                kind(field),
                inline(&field["description"]),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => format!("<p>{}</p>", kind(schema)),
        false => table(&rows),
    }
}

/// A schema in few words, with links to the types it names.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix(COMPONENTS)) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    for (word, joint) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(parts) = schema[word].as_array() {
            return parts.iter().map(kind).collect::<Vec<_>>().join(joint);
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().map(|w| format!("<code>{}</code>", escape(&text(w))));
        return words.collect::<Vec<_>>().join(" | ");
    }
    let name = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        Value::String(one) if one == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(one) if one == "object" && !schema["properties"].is_null() => {
            let fields = members(&schema["properties"])
                .map(|(name, field)| format!("{}: {}", escape(name), kind(field)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::String(one) if one == "object" && schema["additionalProperties"].is_object() => {
            format!("map to {}", kind(&schema["additionalProperties"]))
        }
        Value::String(one) => one.clone(),
        _ => "any".into(),
    };
    let limits = [
        ("pattern", ""),
        ("minimum", "≥ "),
        ("exclusiveMinimum", "> "),
        ("maximum", "≤ "),
        ("default", "default "),
    ];
    limits
        .iter()
        .filter(|(key, _)| !schema[*key].is_null())
        .fold(name, |out, (key, say)| {
            format!("{out}, {say}<code>{}</code>", escape(&text(&schema[*key])))
        })
}

fn table(rows: &[[String; 3]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows: String = rows
        .iter()
        .map(|[a, b, c]| format!("<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>"))
        .collect();
    format!("<table>{rows}</table>")
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A text as it is, other values as JSON, nothing for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Paragraphs.
fn prose(value: &Value) -> String {
    let paragraphs = text(value);
    let paragraphs = paragraphs.split("\n\n").filter(|p| !p.trim().is_empty());
    paragraphs.map(|p| format!("<p>{}</p>\n", marked(p))).collect()
}

fn inline(value: &Value) -> String {
    marked(&text(value))
}

/// Text between backticks becomes code.
fn marked(text: &str) -> String {
    let pieces = text.split('`').enumerate();
    pieces
        .map(|(i, piece)| match i % 2 {
            0 => escape(piece),
            _ => format!("<code>{}</code>", escape(piece)),
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_type_is_on_the_page() {
        let document = serde_json::to_value(document()).unwrap();
        let page = page(&document);
        for (path, item) in members(&document["paths"]) {
            for method in METHODS.iter().filter(|m| item.get(**m).is_some()) {
                let line = format!("<code>{} {path}</code>", method.to_uppercase());
                assert!(page.contains(&line), "{line}");
            }
        }
        for (name, _) in members(&document["components"]["schemas"]) {
            assert!(page.contains(&format!("<section id=\"{name}\">")), "{name}");
        }
    }

    #[test]
    fn the_page_needs_no_other_host() {
        let page = page(&serde_json::to_value(document()).unwrap());
        for foreign in ["<script", "<link", "<img", "src=", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_a_document_says_is_text_not_markup() {
        let hostile = serde_json::json!({
            "info": { "title": "<script>alert(1)</script>", "description": "`<b>` & \"x\"" },
        });
        let page = page(&hostile);
        assert!(!page.contains("<script>"), "{page}");
        assert!(
            page.contains("<code>&lt;b&gt;</code> &amp; &quot;x&quot;"),
            "{page}"
        );
    }
}
