"""The recurring work as Prefect flows: one a file, named by its verb.

Each is an async Prefect flow; `flow.fn(...)` is the same as a plain function, which needs no server and writes no
state. `registry.py` lists them without loading Prefect, `runs.py` runs and serves them, `steps.py` is what their steps
have in common.
"""
