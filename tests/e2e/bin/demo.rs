//! The main job, told as a story.
fn main() {}
