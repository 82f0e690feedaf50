"""`cloudcomplete info`: what a model is, what it needs on this machine, and which versions are installed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import EngineConfig

NAME = "info"
SUMMARY = "show a model's facts and what fits on this machine"
_FLEETS = (100, 1_000, 10_000, 100_000, 1_000_000)
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
    parser.add_argument(
        "--plan", action="store_true", help="instead: what the model needs of GPUs and what they give (docs/scaling.md)"
    )
    parser.add_argument(
        "--assume", metavar="NAME=VALUE", action="append", default=[], help="with --plan: change an assumption"
    )
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the facts to OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Print the facts; raises SettingsError, ModelError, ConfigError, ReportError."""
    from cloudcomplete.config import load_settings
    from engine.loader import STARTER
    from loadtest.report import write_json

    if arguments.assume and not arguments.plan:
        arguments.fail("--assume belongs to --plan")
    if arguments.plan:
        plan = plan_capacity(arguments.model or STARTER, arguments.assume)
        print(describe_plan(plan))
        if arguments.json is not None:
            write_json(arguments.json, plan)
        return
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


def plan_capacity(directory: Path, assumed: list[str]) -> dict[str, Any]:
    """Return what `engine/capacity.py` computes for a model whose `config.json` is there; no weights are needed."""
    import msgspec

    from engine import capacity
    from engine.weights.load import read_model_config

    model, given = read_model_config(directory), capacity.read_assumptions(assumed)
    found = {name: capacity.layouts(model, device, given) for name, device in capacity.DEVICES.items()}
    chosen = {name: capacity.choose_layout(some) for name, some in found.items()}
    fleets = [
        {"device": name, "developers": developers, "tensor": layout.tensor, "stages": layout.stages}
        | capacity.fleet(layout, developers, given)
        for developers in _FLEETS
        for name, layout in chosen.items()
    ]
    return {
        "model": {
            "directory": str(directory),
            "num_parameters": model.num_parameters,
            "weights_bytes": model.num_parameters * given.weight_bytes,
            "kv_bytes_per_token": model.kv_bytes_per_token / 4 * given.kv_value_bytes,
        },
        "devices": msgspec.to_builtins(capacity.DEVICES),
        "assumptions": msgspec.to_builtins(given),
        "layouts": [msgspec.to_builtins(layout) for some in found.values() for layout in some],
        "fleets": fleets,
    }


def describe_plan(plan: dict[str, Any]) -> str:
    """Return a plan as tables for a person."""
    model, given = plan["model"], plan["assumptions"]
    lines = [
        f"{model['directory']}: {model['num_parameters'] / 1e9:.2f} B parameters, "
        f"{model['weights_bytes'] / 1e9:.1f} GB; KV {model['kv_bytes_per_token'] / 1e3:,.0f} kB a token",
        "assumed: " + ", ".join(f"{name}={value:g}" for name, value in given.items()),
        "",
        "one replica: GPU tensor x stages | rows | ms a token, full and alone (share that is messages) | tokens/s "
        "decode, prefill | first token ms | developers, per GPU",
    ]
    for row in plan["layouts"]:
        devices = row["tensor"] * row["stages"]
        lines.append(
            f"  {row['device']}  {row['tensor']} x {row['stages']} | {row['rows']:>4} | {row['token_ms']:>6.1f} "
            f"{row['alone_token_ms']:>6.1f} ({row['hop_share']:>4.0%}) | {row['decode_tokens_per_s']:>7,.0f} "
            f"{row['prefill_tokens_per_s']:>8,.0f} | {row['first_token_ms']:>5.0f} | {row['developers']:>6,.0f} "
            f"{row['developers'] / devices:>6,.0f}"
        )
    lines += ["", "a fleet: developers | GPU tensor x stages | replicas | GPUs | hosts"]
    for row in plan["fleets"]:
        lines.append(
            f"  {row['developers']:>7,} | {row['device']} {row['tensor']} x {row['stages']} | {row['replicas']:>5,} | "
            f"{row['devices']:>6,} | {row['hosts']:>5,}"
        )
    return "\n".join(lines)


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
