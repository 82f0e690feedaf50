"""Checkpoints of a training run, written by Orbax: whole or not there at all, the last few kept.

Knows no model: a state is a tree of arrays whose structure the caller has, and progress is opaque bytes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp


class Restored(NamedTuple):
    """A checkpoint's content."""

    step: int
    state: Any
    progress: bytes


class CheckpointStore:
    """A folder of checkpoints. Orbax writes each aside and renames it, and removes old ones only after that."""

    def __init__(self, folder: Path, *, num_kept: int = 3, is_reader: bool = False) -> None:
        # A reader beside a running writer must not clean up what that one is just writing.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=num_kept,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not is_reader,
            read_only=is_reader,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: Any, progress: bytes) -> None:
        """Write a checkpoint; one of the same step is left as it is."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_by_place(state)), progress=ocp.args.JsonSave({"progress": progress.decode()})
        )
        self._manager.save(step, args=items)

    def restore_last(self, like: Any) -> Restored | None:
        """Return the newest checkpoint in the structure of `like`, or None when there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _by_place(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        leaves = [restored.state[name] for name in sorted(restored.state)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, restored.progress["progress"].encode())

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _by_place(state: Any) -> dict[str, jax.Array]:
    """Name the leaves by their place: optimiser states hold tuples that no file format keeps."""
    return {f"{place:05d}": leaf for place, leaf in enumerate(jax.tree.leaves(state))}
