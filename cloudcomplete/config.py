"""The one configuration file: TOML with a section for each package, strict, overridden by `--set section.key=value`.

    [engine]
    num_slots = 8

    [server]
    grpc_port = 50052

    [cache]
    shared = "none"

    [allocator]
    mode = "shadow"

`deploy/cloudcomplete.toml` shows every setting. A name that does not exist, or a value of another type, fails at start
and names its path.
"""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from cache.config import CacheConfig
from cloudcomplete.errors import SettingsError
from engine.config import EngineConfig
from orchestration.allocator.config import AllocatorConfig
from server.config import ServerConfig

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All deployment choices."""

    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    cache: CacheConfig = CacheConfig()
    allocator: AllocatorConfig = AllocatorConfig()


def load_settings(path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read a file (None: only defaults) and apply `section.key=value` overrides in order; raises SettingsError."""
    settings = _convert(_read(path), f"{path}") if path is not None else Settings()
    for override in overrides:
        settings = _apply(settings, override)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the configuration {path}: {error.strerror}; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} is not TOML: {error}; correct it, or start from deploy/cloudcomplete.toml"
        ) from None


def _apply(settings: Settings, override: str) -> Settings:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise SettingsError(f"--set got {override!r}; expected section.key=value, such as server.drain_s=5")
    tree = msgspec.to_builtins(settings)
    if section not in tree:
        raise _unknown("--set", "", section)
    if key not in tree[section]:
        raise _unknown("--set", section, key)
    tree[section][key] = _parse(tree[section][key], text.strip())
    return _convert(tree, f"--set {override}")


def _parse(current: Any, text: str) -> Any:
    """Read a value as TOML would, except that a text setting takes its text without quotes."""
    if isinstance(current, str) and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # of a wrong type: the conversion says which one it expected


def _convert(tree: dict[str, Any], origin: str) -> Settings:
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        assert found is not None, "the pattern matches any text"
        path = found["path"] or ""
        if unknown := _UNKNOWN.match(found["what"]):
            raise _unknown(origin, path, unknown["name"]) from None
        place = f"{path}: " if path else ""
        raise SettingsError(f"{origin}: {place}{found['what']}{_choices(path)}") from None


def _choices(path: str) -> str:
    """Return what is expected of a setting with a few values; "" for others, whose errors name the type expected."""
    section, _, name = path.partition(".")
    for field in msgspec.structs.fields(getattr(Settings(), section, Settings())):
        if name and field.name == name and get_origin(field.type) is Literal:
            return f"; expected one of: {', '.join(get_args(field.type))}"
    return ""


def _unknown(origin: str, section: str, name: str) -> SettingsError:
    sections = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    if section:
        known = [field.name for field in msgspec.structs.fields(sections[section])]
        what = f"{section}.{name} is no setting"
    else:
        known = list(sections)
        what = f"{name} is no section"
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"expected one of: {', '.join(known)}"
    return SettingsError(f"{origin}: {what}; {remedy}")
