"""Model families: how each Hugging Face architecture's `config.json` and tensor names map to ours, and its markers.

Every module of this package is a family, found by being here: adding one is a file with what `Family` asks for, and a
test. What most of them share is in `hugging_face.py`; what a `Transformer` can be is in `ModelConfig`.
"""

import importlib
import pkgutil
from typing import Any, Protocol, cast

from engine.errors import ModelConfigError
from engine.markers import Markers
from engine.model.config import ModelConfig
from engine.model.hugging_face import TensorNames


class Family(Protocol):
    """What a family's module offers."""

    ARCHITECTURES: tuple[str, ...]
    MARKERS: tuple[Markers, ...]
    """How the family's models spell a fill-in-the-middle prompt; told apart by vocabulary alone."""

    def read_config(self, hf: dict[str, Any]) -> ModelConfig:
        """Turn a parsed `config.json` into model facts; raises ModelConfigError."""

    def tensor_names(self, config: ModelConfig) -> TensorNames:
        """Map each parameter's path to the Hugging Face tensors that make it, in the order they are packed."""


FAMILIES: tuple[Family, ...] = tuple(
    cast(Family, importlib.import_module(f"{__name__}.{module.name}")) for module in pkgutil.iter_modules(__path__)
)


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
