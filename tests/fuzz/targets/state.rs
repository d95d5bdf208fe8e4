//! The state file: whatever its bytes are, it is taken as a whole or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nginx_consul_core::state::State;

fuzz_target!(|bytes: &[u8]| {
    // Hardly any input gets past the checksum, so the content is also read without.
    for state in [State::decode(bytes), State::decode_content(bytes)].into_iter().flatten() {
        for saved in &state.targets {
            assert!(saved.key != 0, "no target has the key 0");
        }
        let again = State::decode(&state.encode());
        assert_eq!(again.as_ref(), Ok(&state), "what is written is read");
    }
});
