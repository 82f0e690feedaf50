"""The engine: tokens in, tokens out.

Knows models, KV, schedules and devices. Does not know networks, editors or stored answers. Imports with jax, flax,
numpy, msgspec, safetensors, tokenizers and orbax alone, so that a worker needs nothing else. Read `engine.py` first.
"""
