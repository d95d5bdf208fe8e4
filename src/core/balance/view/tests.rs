use super::*;

#[test]
fn more_peers_than_fit_inline_are_remembered() {
    let tried = Tried::default();
    (0..40).step_by(2).for_each(|p| tried.insert(p));
    assert_eq!((0..40).filter(|&p| tried.contains(p)).count(), 20);
    assert!(tried.contains(0) && tried.contains(38) && !tried.contains(37));
    assert!(!tried.contains(100_000));
}
