//! How the story is told.

use std::time::Duration;

/// Prints a step's heading.
pub(crate) fn step(number: usize, title: &str) {
    println!("\n{number:2}. {title}");
}

/// Prints a line below it.
pub(crate) fn say(line: impl AsRef<str>) {
    println!("    {}", line.as_ref());
}

/// A duration in the unit that reads best.
pub(crate) fn span(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    if ms < 0.1 {
        "less than 0.1 ms".to_owned()
    } else if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

/// A number with its noun: `1 request`, `2 requests`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
