#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dumont_fuzz::run("chunk_back", data));
