"""Errors of the engine.

    EngineError
    ├── ModelError             a model directory that cannot be used
    │   ├── ModelConfigError       config.json: missing, malformed, or an architecture nobody taught us
    │   ├── WeightsError           safetensors: missing, truncated, a tensor absent or of the wrong shape
    │   ├── PartitionError         a partitioned checkpoint: unfinished, changed, a stage missing, for other stages
    │   └── TokenizerError         tokenizer.json: missing, malformed, or without FIM markers
    ├── ConfigError            deployment choices that cannot hold together
    ├── GroupError             a process of a group is missing, lost, or does not belong to it
    ├── RequestError           one request that cannot be served as asked; others are not touched
    ├── QueueFullError         no room to wait; try again later
    ├── EngineClosedError      the engine is stopping or has stopped
    └── StepError              the device program failed; the sequences of that step fail, the engine goes on

Every message says what, expected, got, and the remedy.
"""


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class ModelError(EngineError):
    """A model directory that cannot be used."""


class ModelConfigError(ModelError):
    """`config.json` is missing, malformed or of an unknown architecture."""


class WeightsError(ModelError):
    """Weights are missing, truncated, or of another shape than the config promises."""


class PartitionError(ModelError):
    """A partitioned checkpoint that cannot be written, or is not what its manifest says."""


class TokenizerError(ModelError):
    """`tokenizer.json` is missing, malformed or lacks FIM markers."""


class ConfigError(EngineError):
    """Deployment choices that cannot hold together."""


class GroupError(EngineError):
    """A process of a group is missing, lost, or does not belong to it."""


class RequestError(EngineError):
    """One request that cannot be served as asked."""


class QueueFullError(EngineError):
    """No room to wait. `retry_after_s` is a hint for the client."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosedError(EngineError):
    """The engine is stopping or has stopped."""


class StepError(EngineError):
    """The device program of one step failed."""
