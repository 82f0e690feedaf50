"""The learned policy: a small network that corrects the M/M/c baseline by -1, 0 or +1 replica.

It sees the forecaster's features, what the baseline wants, and the state of the fleet. `caution` is one number that is
tuned like a baseline's setting: how much likelier (in log odds) going down must be than not, and how unlikely a need
for one more may be and still be met. Knows no training.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from orchestration.allocator.baselines import QUEUEING, Baseline, Smoothed, decide_queueing, hold
from orchestration.allocator.forecaster import FEATURES
from orchestration.allocator.simulator import Observation

STATE_LAYOUT = (
    *FEATURES,
    "base",
    "base_over_load_30s",
    "base_over_load_120s",
    "total_over_base",
    "warming",
    "backlog",
    "late_share",
    "load_over_base",
)
"""What the network reads, in order; kept with every checkpoint."""
NUM_ACTIONS = 3
"""-1, 0, +1."""


class Network(nn.Module):
    """Two hidden layers for the choice and two for the value."""

    num_actions: int = NUM_ACTIONS
    width: int = 64

    @nn.compact
    def __call__(self, state: Array) -> tuple[Array, Array]:
        """Return (logits [B, num_actions], value [B]) of states [B, n]."""
        hidden = nn.tanh(nn.Dense(self.width)(state))
        hidden = nn.tanh(nn.Dense(self.width)(hidden))
        logits = nn.Dense(self.num_actions, kernel_init=nn.initializers.orthogonal(0.01))(hidden)
        critic = nn.tanh(nn.Dense(self.width)(state))
        critic = nn.tanh(nn.Dense(self.width)(critic))
        return logits, nn.Dense(1)(critic)[..., 0]


NETWORK = Network()


class Weights(NamedTuple):
    """All that a trained policy is."""

    network: Any
    mean: Array
    """[STATE_LAYOUT] of the states it was trained on; also what tells that a state is far from them."""
    deviation: Array
    base: dict[str, Array]
    """Setting of the M/M/c baseline that it corrects."""


class Corrected(NamedTuple):
    """Memory: the baseline's, and targets of the last intervals."""

    base: Smoothed
    recent: Array


def describe_state(base: Array, seen: Observation) -> Array:
    """Return [fleets, STATE_LAYOUT] before normalisation."""
    own = jnp.stack(
        [
            base,
            base - seen.features[:, 0],
            base - seen.features[:, 1],
            seen.ready + seen.warming - base,
            seen.warming,
            jnp.minimum(seen.waiting / seen.capacity, 5.0),
            seen.late_share,
            seen.features[:, 0] / jnp.maximum(base, 1),
        ],
        axis=1,
    )
    return jnp.concatenate([seen.features, own], axis=1)


def normalise(weights: Weights, state: Array) -> Array:
    """Return states in deviations from the mean, clipped."""
    return jnp.clip((state - weights.mean) / weights.deviation, -6, 6)


def choose(logits: Array, caution: Array) -> Array:
    """Return corrections in replicas: up unless that is surely not needed, down only if it surely suffices."""
    down = logits[:, 0] - jnp.logaddexp(logits[:, 1], logits[:, 2])
    up = logits[:, 2] - jnp.logaddexp(logits[:, 0], logits[:, 1])
    return jnp.where(up > -caution, 1.0, jnp.where(down > caution, -1.0, 0.0))


def start_corrected(ready: Array) -> Corrected:
    """Return the memory of fleets of `ready` replicas."""
    base = QUEUEING.start(ready)
    return Corrected(base, base.recent)


def base_setting(weights: Weights, like: Array) -> dict[str, Array]:
    """Return the baseline's setting for each fleet."""
    return {key: jnp.broadcast_to(value, like.shape) for key, value in weights.base.items()}


def decide_learned(parameters: Any, memory: Corrected, seen: Observation) -> tuple[Array, Corrected]:
    """Correct the baseline; parameters are (Weights, {caution, hold})."""
    weights, setting = parameters
    base, base_memory = decide_queueing(base_setting(weights, seen.rate), memory.base, seen)
    state = describe_state(base, seen)
    logits, _ = NETWORK.apply(weights.network, normalise(weights, state))
    target, recent = hold(memory.recent, base + choose(logits, setting["caution"]), setting["hold"])
    return target, Corrected(base_memory, recent)


LEARNED = Baseline(
    name="learned",
    decide=decide_learned,
    start=start_corrected,
    grid={
        "caution": (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
        "hold": (0.0, 2.0, 5.0),
    },
)


def distance(weights: Weights, state: np.ndarray) -> float:
    """Return how far a state [STATE_LAYOUT] is from those of training, in deviations of its farthest number."""
    return float(np.abs((state - np.asarray(weights.mean)) / np.asarray(weights.deviation)).max())
