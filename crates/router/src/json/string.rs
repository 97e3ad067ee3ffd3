//! JSON strings: what one says, and how a name is written as one.

use std::borrow::Cow;

/// What the inside of a JSON string says; none where it is not Unicode text: invalid UTF-8, an escape that does
/// not exist, a lone surrogate (which Python accepts, and which equals no name).
pub(crate) fn decode(inside: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(inside).ok()?;
    let Some((plain, mut rest)) = text.split_once('\\') else { return Some(Cow::Borrowed(text)) };
    let mut decoded = String::with_capacity(text.len());
    decoded.push_str(plain);
    loop {
        let (character, behind) = decode_escape(rest)?;
        decoded.push(character);
        let Some((plain, next)) = behind.split_once('\\') else {
            decoded.push_str(behind);
            return Some(Cow::Owned(decoded));
        };
        decoded.push_str(plain);
        rest = next;
    }
}

/// The character that an escape means, and the text behind it; `rest` begins behind the backslash.
fn decode_escape(rest: &str) -> Option<(char, &str)> {
    let (kind, behind) = rest.split_at_checked(1)?;
    let character = match kind {
        "\"" | "\\" | "/" => kind.chars().next()?,
        "b" => '\u{8}',
        "f" => '\u{c}',
        "n" => '\n',
        "r" => '\r',
        "t" => '\t',
        "u" => return decode_unicode_escape(behind),
        _ => return None,
    };
    Some((character, behind))
}

fn decode_unicode_escape(rest: &str) -> Option<(char, &str)> {
    let (first, behind) = decode_hex(rest)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some((char::from_u32(first)?, behind));
    }
    let (second, behind) = decode_hex(behind.strip_prefix("\\u")?)?;
    let low = second.checked_sub(0xDC00).filter(|low| *low < 0x400)?;
    Some((char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + low)?, behind))
}

fn decode_hex(rest: &str) -> Option<(u32, &str)> {
    let (digits, behind) = rest.split_at_checked(4)?;
    let only_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((u32::from_str_radix(digits, 16).ok().filter(|_| only_hex)?, behind))
}

/// `name` as a JSON string, with its quotes.
pub(crate) fn encode(name: &str) -> String {
    // A `Value` of a string has no way to fail.
    serde_json::Value::from(name).to_string()
}
