"""Decoding: prefill, then rounds of draft, pack, verify and commit, on the device."""
