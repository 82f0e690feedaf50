"""`cloudcomplete info`: what a model is, what it needs on this machine, and which versions are installed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import EngineConfig

NAME = "info"
SUMMARY = "show a model's facts and what fits on this machine"
DESCRIPTION = "Show a model's facts, the memory its KV takes, how many slots fit, the devices and the versions."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", type=Path, help="model directory; default: the starter model"
    )
    parser.add_argument("--config", metavar="F", type=Path, help="TOML file: [engine], [server], [cache]")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one setting; may be repeated"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the facts to OUT")


def run(arguments: argparse.Namespace) -> None:
    """Print the facts; raises SettingsError, ModelError, ConfigError, ReportError."""
    from cloudcomplete.config import load_settings
    from engine.loader import STARTER
    from loadtest.report import write_json

    settings = load_settings(arguments.config, arguments.set)
    facts = gather(arguments.model or STARTER, settings.engine)
    print(describe(facts))
    if arguments.json is not None:
        write_json(arguments.json, facts)


def gather(directory: Path, config: "EngineConfig") -> dict[str, Any]:
    """Return the facts as plain values, units in the names; raises ModelError or ConfigError."""
    import msgspec

    from engine.fim import FimTemplate
    from engine.plan import available_kv_bytes, resolve
    from engine.tokenizer import Tokenizer
    from engine.weights.load import read_model_config, weights_bytes
    from loadtest.benchmarks.machine import describe_devices
    from loadtest.machine import describe_machine, describe_versions

    model = read_model_config(directory)
    tokenizer = Tokenizer.from_directory(directory)
    plan = resolve(config, model)
    free_bytes = available_kv_bytes()
    slot_bytes = plan.kv_bytes // plan.num_slots
    return {
        "model": {
            "directory": str(directory),
            **msgspec.to_builtins(model),
            "num_parameters": model.num_parameters,
            "weights_bytes": weights_bytes(directory),
            "num_tokens": tokenizer.num_tokens,
            "markers": FimTemplate.detect(tokenizer).name,
        },
        "kv": {
            "bytes_per_token": slot_bytes // plan.capacity,
            "bytes_per_slot": slot_bytes,
            "free_bytes": free_bytes,
            "num_slots_that_fit": free_bytes // slot_bytes,
        },
        "plan": msgspec.to_builtins(plan),
        "machine": describe_machine() | {"devices": describe_devices()},
        "versions": describe_versions(),
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the facts as lines for a person."""
    model, kv, plan, machine = facts["model"], facts["kv"], facts["plan"], facts["machine"]
    rows = {
        "model": model["directory"],
        "family": f"{model['family']}, {model['num_layers']} layers, hidden {model['hidden_size']}, "
        f"{model['num_heads']} heads ({model['num_kv_heads']} for KV) of {model['head_size']}",
        "parameters": f"{model['num_parameters'] / 1e6:,.1f} M, {model['weights_bytes'] / 1e6:,.1f} MB on disk",
        "vocabulary": f"{model['num_tokens']:,} tokens, markers {model['markers']}",
        "context": f"{model['max_context']:,} tokens, {plan['max_context']:,} used",
        "KV": f"{kv['bytes_per_token']:,} bytes a token, {kv['bytes_per_slot'] / 1e6:,.1f} MB a slot, {plan['dtype']}",
        "slots": f"{plan['num_slots']} configured; {kv['num_slots_that_fit']:,} fit into "
        f"{kv['free_bytes'] / 1e9:,.1f} GB of free memory",
        "machine": f"{machine['devices']}; {machine['processor']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
