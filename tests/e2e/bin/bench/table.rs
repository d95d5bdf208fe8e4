//! Tables in Markdown.

/// A table with a caption.
#[derive(Debug)]
pub(crate) struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(caption: impl Into<String>, head: impl IntoIterator<Item = String>) -> Table {
        Table { caption: caption.into(), head: head.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        println!("{}\n", self.caption);
        println!("| {} |", self.head.join(" | "));
        println!("|{}", "---|".repeat(self.head.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
        println!();
    }
}

/// Columns for list lengths, after one for the variant.
pub(crate) fn columns(lengths: &[usize]) -> Vec<String> {
    std::iter::once(String::new()).chain(lengths.iter().map(|n| format!("N = {n}"))).collect()
}

/// "least–**median**–most".
pub(crate) fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
        return "–".to_owned();
    };
    format!("{least:.digits$}–**{:.digits$}**–{most:.digits$}", median(&sorted))
}

/// The middle of values in any order; NaN of none.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { f64::NAN } else { median(&sorted) }
}

/// The middle of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
