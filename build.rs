//! Turns what nginx-sys found out about the nginx sources into `cfg`s.
fn main() {}
