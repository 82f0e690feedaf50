"""Model families: how each Hugging Face architecture's `config.json` and tensor names map to ours.

Adding a family is one file with `ARCHITECTURES`, `read_config` and `tensor_names`, one line here, and one test.
"""

from typing import Any, Protocol

from engine.errors import ModelConfigError
from engine.model.config import ModelConfig
from engine.model.families import llama


class Family(Protocol):
    """What a family's module offers."""

    ARCHITECTURES: tuple[str, ...]

    def read_config(self, hf: dict[str, Any]) -> ModelConfig:
        """Turn a parsed `config.json` into model facts; raises ModelConfigError."""

    def tensor_names(self, config: ModelConfig) -> dict[tuple[str | int, ...], tuple[str, ...]]:
        """Map each parameter's path to the Hugging Face tensors that make it, in the order they are packed."""


FAMILIES: tuple[Family, ...] = (llama,)


def family_of(hf: dict[str, Any]) -> Family:
    """Return the family that reads this `config.json`; raises ModelConfigError with the list of known architectures."""
    listed = hf.get("architectures")
    names = listed if isinstance(listed, list) else []
    for family in FAMILIES:
        if any(name in family.ARCHITECTURES for name in names):
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.ARCHITECTURES))
    got = ", ".join(map(str, names)) or "none"
    raise ModelConfigError(
        f"config.json names the architecture {got}; expected one of: {known}; convert or choose another model"
    )
