//! Reading Vast.ai's JSON without trusting its types.
//!
//! The service writes numbers as strings, strings with trailing white space, `null` for
//! anything, and Python's bare `NaN`. A field that cannot be read is absent; whether that
//! spoils the row or only the field is the caller's to say.

use serde_json::Value;

/// Longest text that is taken from a row.
pub const MAX_TEXT: usize = 300;

/// The body as JSON. Python writes `NaN` and `Infinity` where JSON has no word; they become
/// texts that are no numbers, so that one bad price does not hide every other offer. They do not become
/// `null`: in some places that is a word of the service's own, for what is gone or at its end.
pub fn parse(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body)
        .ok()
        .or_else(|| serde_json::from_slice(&without_nan(body)?).ok())
}

fn without_nan(body: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let (mut out, mut in_string, mut changed) = (Vec::with_capacity(body.len() + 16), false, false);
    let mut rest = body;
    while let Some((&byte, tail)) = rest.split_first() {
        if !in_string && let Some(after) = WORDS.iter().find_map(|w| rest.strip_prefix(*w)) {
            out.extend_from_slice(br#""NaN""#);
            (rest, changed) = (after, true);
            continue;
        }
        out.push(byte);
        rest = tail;
        if byte == b'"' {
            in_string = !in_string;
        } else if in_string && byte == b'\\' {
            let (&escaped, tail) = rest.split_first()?;
            out.push(escaped);
            rest = tail;
        }
    }
    changed.then_some(out)
}

/// A finite number, also from text.
pub fn number(row: &Value, field: &str) -> Option<f64> {
    let number = match row.get(field)? {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    number.filter(|n| n.is_finite())
}

/// A number of something: finite and not negative, fractions cut.
pub fn count(row: &Value, field: &str) -> Option<u64> {
    // Casting saturates, and nothing real comes near 2^53.
    number(row, field)
        .filter(|n| (0.0..9.0e15).contains(n))
        .map(|n| n as u64)
}

/// An id: a positive integer, kept as its digits.
pub fn id(row: &Value, field: &str) -> Option<String> {
    id_of(row.get(field)?)
}

pub fn id_of(value: &Value) -> Option<String> {
    let id = match value {
        Value::Number(n) => n.as_u64()?,
        Value::String(s) if !s.trim().starts_with('+') => s.trim().parse().ok()?,
        _ => return None,
    };
    (id > 0).then(|| id.to_string())
}

/// Text that is safe to show and to keep; `None` when nothing is left of it.
pub fn text(row: &Value, field: &str) -> Option<String> {
    let text = match row.get(field)? {
        Value::String(s) => clean(s),
        Value::Number(n) => n.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

pub fn truth(row: &Value, field: &str) -> Option<bool> {
    match row.get(field)? {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().map(|n| n != 0.0),
        Value::String(s) if s.trim().eq_ignore_ascii_case("true") => Some(true),
        Value::String(s) if s.trim().eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Control characters (terminal escapes, direction marks) become spaces, ends are trimmed,
/// and what is left is cut to [`MAX_TEXT`] characters.
pub fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    // The first cut keeps the work small when megabytes are given.
    let spaced: String = text
        .trim()
        .chars()
        .take(MAX_TEXT)
        .map(|c| if hidden(c) { ' ' } else { c })
        .collect();
    spaced.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_come_in_many_forms() {
        let row =
            json!({"a": 1.5, "b": " 2.5 ", "c": "NaN", "d": null, "e": "inf", "f": -3, "g": [1], "h": "x"});
        assert_eq!((number(&row, "a"), number(&row, "b")), (Some(1.5), Some(2.5)));
        for absent in ["c", "d", "e", "g", "h", "missing"] {
            assert_eq!(number(&row, absent), None, "{absent}");
        }
        assert_eq!((count(&row, "f"), count(&row, "b")), (None, Some(2)));
    }

    #[test]
    fn ids_are_positive_integers_only() {
        let row = json!({"a": 7, "b": "7 ", "c": 0, "d": -7, "e": "7/../8", "f": 7.5, "g": "+7"});
        assert_eq!(
            (id(&row, "a").unwrap(), id(&row, "b").unwrap()),
            ("7".into(), "7".into())
        );
        for bad in ["c", "d", "e", "f", "g"] {
            assert_eq!(id(&row, bad), None, "{bad}");
        }
    }

    #[test]
    fn pythons_nan_becomes_a_text_outside_of_strings() {
        let body = br#"{"p":NaN,"q":-Infinity,"r":[Infinity],"s":"NaN \" Infinity"}"#;
        assert_eq!(
            parse(body).unwrap(),
            json!({"p":"NaN","q":"NaN","r":["NaN"],"s":"NaN \" Infinity"})
        );
        for broken in ["", "{", "NaN\"", "{\"a\":NaN", "\"\\"] {
            let _ = parse(broken.as_bytes());
        }
    }

    #[test]
    fn texts_lose_what_a_terminal_would_obey() {
        assert_eq!(clean("\u{1b}[31mred\n\u{202e}x \n"), "[31mred  x");
        assert_eq!(clean(&"é".repeat(9_999)).chars().count(), MAX_TEXT);
    }
}
