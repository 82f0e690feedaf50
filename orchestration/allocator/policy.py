"""The learned policy: a small network that corrects the M/M/c baseline by -1, 0 or +1 replica.

It sees the forecaster's features, what the baseline wants, and the state of the fleet. `caution` is one number that is
tuned like a baseline's setting: how much likelier (in log odds) going down must be than not, and how unlikely a need
for one more may be and still be met. On top of it comes caution that is learned while it runs: a window that is missed
adds `adapt`, and it wears off at the rate at which windows may be missed (the online quantile tracking of adaptive
conformal inference, Gibbs and Candès, 2021), so that traffic that is harder than what was tuned on is met with more
replicas and not with more misses. Knows no training.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from orchestration.allocator.baselines import QUEUEING, Baseline, Smoothed, decide_queueing, hold
from orchestration.allocator.forecaster import FEATURES
from orchestration.allocator.simulator import LATE_SHARE, Observation

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
_WINDOW_INTERVALS = 6
"""Intervals after which it is judged whether a window was missed: a minute at the usual 10 s."""
_MOST_EXTRA = 4.0


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
    setting: dict[str, Array]
    """Its own, as training chose it: values of the keys of `LEARNED.grid`."""
    may_miss: Array
    """Share of windows that may be missed."""
    capacity: Array
    """Requests per second that a replica sustained in the simulator that it was trained in."""


class Corrected(NamedTuple):
    """Memory: the baseline's, targets of the last intervals, and what became of windows."""

    base: Smoothed
    recent: Array
    number: Array
    """Intervals of this window so far; [fleets] as all that follows."""
    requests: Array
    late: Array
    extra: Array
    """Caution for windows that were missed."""


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
    zeros = jnp.zeros(ready.shape, jnp.float32)
    return Corrected(base, base.recent, zeros, zeros, zeros, zeros)


def base_setting(weights: Weights, like: Array) -> dict[str, Array]:
    """Return the baseline's setting for each fleet."""
    return {key: jnp.broadcast_to(value, like.shape) for key, value in weights.base.items()}


def learn_caution(memory: Corrected, seen: Observation, adapt: Array, may_miss: Array) -> Corrected:
    """Count the last interval; at the end of a window, add caution if it was missed, else let some wear off."""
    requests = memory.requests + seen.rate
    late = memory.late + seen.rate * seen.late_share
    is_end = memory.number >= _WINDOW_INTERVALS - 1
    missed = (late > LATE_SHARE * requests + 1e-6).astype(jnp.float32)
    extra = jnp.clip(memory.extra + adapt * (missed - may_miss), 0, _MOST_EXTRA)
    keep = ~is_end
    return memory._replace(
        number=(memory.number + 1) * keep,
        requests=requests * keep,
        late=late * keep,
        extra=jnp.where(is_end, extra, memory.extra),
    )


def correct(
    weights: Weights, setting: dict[str, Array], memory: Corrected, base: Array, seen: Observation
) -> tuple[Array, Array, Corrected]:
    """Return (target, state that was looked at, memory) where the baseline wants `base`."""
    memory = learn_caution(memory, seen, setting["adapt"], weights.may_miss)
    state = describe_state(base, seen)
    logits, _ = NETWORK.apply(weights.network, normalise(weights, state))
    target, recent = hold(memory.recent, base + choose(logits, setting["caution"] + memory.extra), setting["hold"])
    return target, state, memory._replace(recent=recent)


def decide_learned(parameters: Any, memory: Corrected, seen: Observation) -> tuple[Array, Corrected]:
    """Correct the baseline; parameters are (Weights, setting)."""
    weights, setting = parameters
    base, base_memory = decide_queueing(base_setting(weights, seen.rate), memory.base, seen)
    target, _, memory = correct(weights, setting, memory._replace(base=base_memory), base, seen)
    return target, memory


LEARNED = Baseline(
    name="learned",
    decide=decide_learned,
    start=start_corrected,
    grid={
        "caution": (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
        "hold": (0.0, 2.0, 5.0),
        "adapt": (0.0, 1.0),
    },
)


def distance(weights: Weights, state: np.ndarray) -> float:
    """Return how far a state [STATE_LAYOUT] is from those of training, in deviations of its farthest number."""
    return float(np.abs((state - np.asarray(weights.mean)) / np.asarray(weights.deviation)).max())
