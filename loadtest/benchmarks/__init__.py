"""Benchmarks, run by name and never collected by the tests: `cloudcomplete bench NAME`.

Speed is a ratio of two things measured side by side in one run, since machines are shared and noisy.
"""
