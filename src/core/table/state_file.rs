//! When the state file was last written, and why it can't be now, for the status.

use std::io;

use super::layout::{Table, header};
use super::platform::atomic::Ordering::Relaxed;

impl Table<'_> {
    /// Notes when the state file was written, milliseconds of the monotonic clock.
    pub fn note_state_written(&self, at: u64) {
        self.word(header::STATE_ERROR).store(0, Relaxed);
        self.word(header::STATE_WRITTEN).store(at, Relaxed);
    }

    /// Notes why the state file can't be written.
    pub fn note_state_error(&self, error: &io::Error) {
        // EIO where the error is not the system's.
        let number = error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
        self.word(header::STATE_ERROR).store(u64::from(number.unsigned_abs()), Relaxed);
    }

    /// When the state file was last written (0: never), and why it can't be now.
    pub fn state_file(&self) -> (u64, Option<io::Error>) {
        let number = i32::try_from(self.load(header::STATE_ERROR)).unwrap_or(0);
        let error = (number != 0).then(|| io::Error::from_raw_os_error(number));
        (self.load(header::STATE_WRITTEN), error)
    }
}
