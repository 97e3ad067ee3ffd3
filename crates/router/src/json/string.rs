//! Decoding and encoding of JSON strings.

use std::borrow::Cow;

/// Decodes the inside of a JSON string. `None` if it is not Unicode text: invalid UTF-8, an unknown escape, or a lone
/// surrogate (which Python accepts, and which equals no name).
pub(crate) fn decode(inside: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(inside).ok()?;
    let Some((plain, mut rest)) = text.split_once('\\') else { return Some(Cow::Borrowed(text)) };
    let mut decoded = String::with_capacity(text.len());
    decoded.push_str(plain);
    loop {
        let (character, after) = decode_escape(rest)?;
        decoded.push(character);
        let Some((plain, next)) = after.split_once('\\') else {
            decoded.push_str(after);
            return Some(Cow::Owned(decoded));
        };
        decoded.push_str(plain);
        rest = next;
    }
}

/// Decodes the escape at the start of `rest`, which begins after the backslash. Returns the character and the text
/// after it.
fn decode_escape(rest: &str) -> Option<(char, &str)> {
    let (kind, after) = rest.split_at_checked(1)?;
    let character = match kind {
        "\"" | "\\" | "/" => kind.chars().next()?,
        "b" => '\u{8}',
        "f" => '\u{c}',
        "n" => '\n',
        "r" => '\r',
        "t" => '\t',
        "u" => return decode_unicode_escape(after),
        _ => return None,
    };
    Some((character, after))
}

fn decode_unicode_escape(rest: &str) -> Option<(char, &str)> {
    let (first, after) = decode_hex(rest)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some((char::from_u32(first)?, after));
    }
    let (second, after) = decode_hex(after.strip_prefix("\\u")?)?;
    let low = second.checked_sub(0xDC00).filter(|low| *low < 0x400)?;
    Some((char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + low)?, after))
}

fn decode_hex(rest: &str) -> Option<(u32, &str)> {
    let (digits, after) = rest.split_at_checked(4)?;
    let only_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((u32::from_str_radix(digits, 16).ok().filter(|_| only_hex)?, after))
}

/// Encodes `name` as a JSON string with quotes.
pub(crate) fn encode(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}
