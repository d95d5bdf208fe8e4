//! Tables in Markdown.

/// A table with a caption.
#[derive(Debug)]
pub(crate) struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    missed: bool,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(caption: impl Into<String>, head: impl IntoIterator<Item = String>) -> Table {
        Table {
            caption: caption.into(),
            head: head.into_iter().collect(),
            rows: Vec::new(),
            missed: false,
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds a row with a last cell that says whether what is promised was kept.
    pub(crate) fn judged(&mut self, cells: impl IntoIterator<Item = String>, kept: bool) {
        let verdict = if kept { "kept" } else { "**missed**" };
        self.row(cells.into_iter().chain([verdict.to_owned()]));
        self.missed |= !kept;
    }

    /// Whether a row misses what is promised.
    pub(crate) fn missed(&self) -> bool {
        self.missed
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

/// Whether the middle of the values and the greatest are at most this.
pub(crate) fn within(values: &[f64], most_median: f64, most: f64) -> bool {
    median_of(values) <= most_median && values.iter().all(|&v| v <= most)
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
