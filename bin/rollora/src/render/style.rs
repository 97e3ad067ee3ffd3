//! Colors and tables of the text output.

/// Style of the output.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TextStyle {
    /// Whether to use colors.
    pub(crate) color: bool,
}

impl TextStyle {
    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn success(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn active(self, text: &str) -> String {
        self.paint("36", text)
    }

    pub(super) fn error(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Rows of aligned cells. Each cell is a pair of its plain text, which gives its width, and the text that is printed.
#[derive(Debug, Default)]
pub(super) struct TextTable {
    rows: Vec<Vec<(String, String)>>,
}

impl TextTable {
    /// Adds a row; each cell is the plain and the printed text.
    pub(super) fn push_row(&mut self, cells: impl IntoIterator<Item = (String, String)>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Renders the rows. Each line begins with `indent`, and has no trailing spaces.
    pub(super) fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(plain, _)| plain.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            text.push_str(indent);
            let last = row.iter().rposition(|(plain, _)| !plain.is_empty()).unwrap_or(0);
            for (column, (plain, shown)) in row.iter().enumerate().take(last + 1) {
                text.push_str(shown);
                if column < last {
                    text.push_str(&" ".repeat(widths[column] - plain.chars().count() + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A cell whose printed text is plain.
pub(super) fn plain_cell(text: impl Into<String>) -> (String, String) {
    let text = text.into();
    (text.clone(), text)
}
