"""The completion cache's room: completions in, completions out. Knows no JAX and no network framework."""
