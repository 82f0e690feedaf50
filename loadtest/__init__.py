"""The room of proof: replayed typing, load, completion quality, benchmarks and their reports."""
