"""Errors of the training recipe.

    EngineError
    └── TrainingError          the recipe cannot go on
        ├── ManifestError          the manifest is missing, malformed, or names a licence that is not permissive
        ├── CorpusError            packages that could not be had, or a corpus that is missing or empty
        └── CheckpointError        no checkpoint where one is needed

Every message says what, expected, got, and the remedy.
"""

from engine.errors import EngineError


class TrainingError(EngineError):
    """The recipe cannot go on."""


class ManifestError(TrainingError):
    """The manifest is missing, malformed, or names a licence that is not permissive."""


class CorpusError(TrainingError):
    """Packages could not be had, or the corpus is missing or empty."""


class CheckpointError(TrainingError):
    """There is no checkpoint where one is needed."""
