//! File names as text: any bytes, told apart and safe in a terminal.

use std::fmt::Write as _;

/// The path in readable UTF-8. Control characters and bytes that are not UTF-8 become `\xNN`,
/// and a backslash becomes `\\`, so that two different names never look the same and the text
/// can be turned back. Used in logs, errors and the keys of `metadata.json`.
pub fn printable(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_ascii_control() => _ = write!(out, "\\x{:02x}", c as u32),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| _ = write!(out, "\\x{b:02x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn odd_names_stay_apart() {
        assert_eq!(printable("modèles/a b.txt".as_bytes()), "modèles/a b.txt");
        assert_eq!(printable(b"a\nb\xff"), "a\\x0ab\\xff");
        assert_eq!(printable(b"a\\x0ab"), "a\\\\x0ab");
    }
}
