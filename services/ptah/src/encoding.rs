//! Bytes as text: base64 (RFC 4648, standard alphabet, padded), for credentials and for payloads that are not UTF-8.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes bytes as base64.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| chunk.get(index).copied().map_or(0, u32::from);
        let bits = (at(0) << 16) | (at(1) << 8) | at(2);
        for place in 0..4 {
            if place > chunk.len() {
                text.push('=');
                continue;
            }
            let six = (bits >> (18 - 6 * place)) & 0x3f;
            text.push(char::from(ALPHABET[six as usize]));
        }
    }
    text
}

/// Bytes as a JSON string, and how they were written: `utf8` when they are, else `base64`.
pub(crate) fn text_or_base64(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), "utf8"),
        Err(_) => (base64(bytes), "base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_as_the_standard_says() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }

    #[test]
    fn only_what_is_not_utf8_is_encoded() {
        assert_eq!(text_or_base64("grün".as_bytes()), ("grün".to_owned(), "utf8"));
        assert_eq!(text_or_base64(&[0xff]), ("/w==".to_owned(), "base64"));
    }
}
