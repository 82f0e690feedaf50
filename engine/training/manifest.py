"""The manifest: which packages the corpus is made of, at which versions and under which licences.

Knows nothing of how a package is downloaded or read (`corpus.py`).
"""

import re
from pathlib import Path
from typing import Literal

import msgspec

from engine.training.errors import ManifestError

MANIFEST_PATH = Path(__file__).with_name("manifest.toml")

Kind = Literal["stdlib", "pypi", "npm", "debian"]
Split = Literal["train", "held-out"]

PERMISSIVE_LICENCES = frozenset(
    [
        "0BSD",
        "Apache-2.0",
        "BSD-1-Clause",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    ]
)


class Package(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One project whose source is learned from, or held out whole."""

    name: str
    version: str
    """Exactly this version; for the standard library, the one whose figures the model card reports."""
    licence: str
    """SPDX expression of permissive licences."""
    kind: Kind
    """Where it comes from: the running interpreter, pip, npm or apt."""
    split: Split = "train"
    """Held-out projects are never trained on."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All packages of the corpus."""

    packages: tuple[Package, ...]


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest; raises ManifestError."""
    try:
        manifest = msgspec.toml.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ManifestError(
            f"manifest {path}: cannot be read ({error}); expected a TOML file; check --manifest"
        ) from error
    except msgspec.DecodeError as error:
        raise ManifestError(f"manifest {path}: {error}; expected [[packages]] tables; correct the file") from error
    for package in manifest.packages:
        names = re.split(r"[()\s]+(?:AND|OR)[()\s]+", package.licence)
        if foreign := [name for name in names if name not in PERMISSIVE_LICENCES]:
            raise ManifestError(
                f"manifest {path}: {package.name} is under {package.licence!r}; expected only "
                f"{', '.join(sorted(PERMISSIVE_LICENCES))}; got {', '.join(foreign)}; remove the package"
            )
    return manifest
