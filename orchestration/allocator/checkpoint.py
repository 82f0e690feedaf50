"""Saved policies: Orbax arrays, and beside them the layout of the state that they read.

A policy is written aside and renamed, so that a controller that looks while it is written sees the old one or the new.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import orbax.checkpoint as ocp

from orchestration.allocator.baselines import QUEUEING
from orchestration.allocator.errors import CheckpointError
from orchestration.allocator.policy import LEARNED, NETWORK, STATE_LAYOUT, Weights

_LAYOUT = "layout.json"
_ARRAYS = "arrays"


def save(weights: Weights, directory: Path) -> None:
    """Write a policy to a directory, which it replaces; raises CheckpointError."""
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    except OSError as error:
        raise CheckpointError(f"cannot write a policy to {directory}: {error.strerror}") from None
    if directory.exists() and not (directory / _LAYOUT).exists():
        aside.rmdir()
        raise CheckpointError(f"{directory} exists and is no policy; name another directory")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(aside / _ARRAYS, weights._asdict())
    (aside / _LAYOUT).write_bytes(msgspec.json.encode({"state": STATE_LAYOUT}))
    if directory.exists():
        old = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        os.replace(directory, old / "old")
        os.replace(aside, directory)
        shutil.rmtree(old)
    else:
        os.replace(aside, directory)


def load(directory: Path) -> Weights:
    """Read a policy; raises CheckpointError where it reads another state than this program makes."""
    directory = directory.absolute()
    try:
        layout = msgspec.json.decode((directory / _LAYOUT).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{directory} holds no policy: {error}; expected what `allocator train` wrote") from None
    state = layout.get("state") if isinstance(layout, dict) else None
    if state != list(STATE_LAYOUT):
        other = sorted(set(STATE_LAYOUT) ^ set(state)) if isinstance(state, list) else []
        raise CheckpointError(
            f"the policy in {directory} reads another state ({', '.join(map(str, other[:4])) or 'another order'} "
            "differs); train it again with this version"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            restored: dict[str, Any] = checkpointer.restore(directory / _ARRAYS, _like()._asdict())
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"the policy in {directory} is damaged: {error}; train it again") from None
    return Weights(**restored)


def _like() -> Weights:
    width = len(STATE_LAYOUT)
    return Weights(
        network=NETWORK.init(jax.random.key(0), jnp.zeros((1, width))),
        mean=jnp.zeros(width),
        deviation=jnp.zeros(width),
        base={key: jnp.float32(0) for key in QUEUEING.grid},
        setting={key: jnp.float32(0) for key in LEARNED.grid},
        may_miss=jnp.float32(0),
        capacity=jnp.float32(1),
    )
