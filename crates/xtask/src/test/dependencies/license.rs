//! SPDX license expressions: `MIT OR Apache-2.0`, `(MIT OR Apache-2.0) AND Unicode-3.0`, and the old `MIT/Apache-2.0`.

/// Returns whether an expression can be satisfied with allowed licenses alone; `false` if it is not an expression.
pub(super) fn is_satisfied(expression: &str, allowed: &impl Fn(&str) -> bool) -> bool {
    let tokens = tokenize(expression);
    let mut parser = ExpressionParser { tokens: &tokens, allowed };
    parser.any_of() == Some(true) && parser.tokens.is_empty()
}

fn tokenize(expression: &str) -> Vec<String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// Each rule returns whether its part is satisfied, or `None` if the text is not an expression.
struct ExpressionParser<'a, A> {
    tokens: &'a [String],
    allowed: &'a A,
}

impl<A: Fn(&str) -> bool> ExpressionParser<'_, A> {
    fn any_of(&mut self) -> Option<bool> {
        let mut any = self.all_of()?;
        while self.accept("OR") {
            any |= self.all_of()?;
        }
        Some(any)
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut all = self.term()?;
        while self.accept("AND") {
            all &= self.term()?;
        }
        Some(all)
    }

    fn term(&mut self) -> Option<bool> {
        if self.accept("(") {
            let inner = self.any_of()?;
            return self.accept(")").then_some(inner);
        }
        let name = self.next().filter(|name| !["AND", "OR", "WITH", ")"].contains(&name.as_str()))?;
        if self.accept("WITH") {
            let exception = self.next()?;
            return Some((self.allowed)(&format!("{name} WITH {exception}")));
        }
        Some((self.allowed)(&name))
    }

    fn accept(&mut self, word: &str) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if first == word => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn next(&mut self) -> Option<String> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated_as_spdx_defines() {
        let allowed =
            |name: &str| ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].contains(&name);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            ("MIT/Apache-2.0", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
            ("GPL-3.0-only AND MIT OR Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("", false),
            ("MIT OR", false),
            ("MIT Apache-2.0", false),
            ("(MIT", false),
            ("OR MIT", false),
        ] {
            assert_eq!(is_satisfied(expression, &allowed), expected, "{expression:?}");
        }
    }
}
