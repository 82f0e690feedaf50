"""`cloudcomplete allocator`: train the policy that decides how many replicas run, compare it with rules, tell KEDA."""

import argparse
from pathlib import Path

NAME = "allocator"
SUMMARY = "train, evaluate and run what decides how many replicas run"
DESCRIPTION = (
    "train: learn a policy on the first 60 % of a trace. evaluate: run every baseline, an oracle and the learned "
    "policy on the last 40 %. A trace is a CSV file, plain or gzip, of requests "
    "(TIMESTAMP,ContextTokens,GeneratedTokens) or of rates (client,window_start_s,requests_per_s,interarrival_cv). "
    "scaler: read servers' metrics, decide each interval, and answer KEDA's external-scaler protocol until SIGTERM; "
    "for replicas of one process there is `cloudcomplete serve --allocator`. calibrate: ask a server for about half a "
    "minute and write its step times, which `--model`, `allocator.steps` and `retrain-policy steps=` read."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(metavar="train | evaluate | calibrate | scaler", required=True, dest="action")
    for name, text in (("train", "learn a policy"), ("evaluate", "compare policies on the test stretch")):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("--trace", metavar="F", type=Path, required=True, help="recorded traffic")
        action.add_argument("--replicas", metavar="N", type=int, default=8, help="best static size (default 8)")
        action.add_argument(
            "--slo-ms", metavar="MS", type=float, default=300.0, help="p95 to first token (default 300)"
        )
        action.add_argument("--cold-start-s", metavar="S", type=int, default=40, help="start of a replica (default 40)")
        action.add_argument(
            "--attainment", metavar="X", type=float, default=0.99, help="share of minutes (default 0.99)"
        )
        action.add_argument(
            "--model", metavar="F", type=Path, help="step times that `calibrate` wrote; default: assumed ones"
        )
        action.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    calibrate = actions.add_parser("calibrate", help="measure a server's step times", allow_abbrev=False)
    calibrate.add_argument("model", metavar="MODEL", nargs="?", help="what to serve; default: the starter model")
    calibrate.add_argument("--server", metavar="ADDR", help="a server that nobody else uses; default: one of its own")
    calibrate.add_argument("--out", metavar="F", type=Path, required=True, help="where the step times go, as JSON")
    scaler = actions.add_parser("scaler", help="tell KEDA how many replicas", allow_abbrev=False)
    scaler.add_argument(
        "--metrics",
        metavar="URL",
        action="append",
        required=True,
        help="http://HOST:PORT of a server's metrics; of all servers where HOST has several addresses; repeatable",
    )
    scaler.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:50052", help="where KEDA asks")
    scaler.add_argument(
        "--object", metavar="NAMESPACE/NAME", default="default/cloudcomplete", help="the ScaledObject that is sized"
    )
    for action in (calibrate, scaler):
        action.add_argument("--config", metavar="F", type=Path, help="TOML file of settings")
        action.add_argument(
            "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a setting"
        )
    actions.choices["train"].add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="where the policy goes"
    )
    actions.choices["train"].add_argument("--budget-s", metavar="S", type=float, default=240, help="time for PPO")
    evaluate = actions.choices["evaluate"]
    learned = evaluate.add_mutually_exclusive_group()
    learned.add_argument("--policy", metavar="DIR", type=Path, help="a trained policy; default: train one first")
    learned.add_argument("--no-policy", action="store_true", help="baselines and oracle only")
    evaluate.add_argument("--budget-s", metavar="S", type=float, default=240, help="time for PPO where it trains first")
    evaluate.add_argument("--seeds", metavar="N", type=int, default=5, help="draws of the traffic (default 5)")
    evaluate.add_argument("--plots", metavar="DIR", type=Path, help="write plots as SVG files")


def run(arguments: argparse.Namespace) -> None:
    """Train, evaluate, calibrate or scale; raises AllocatorError, OwnServerError, SettingsError or ReportError."""
    if arguments.action == "scaler":
        _scale(arguments)
        return
    if arguments.action == "calibrate":
        _calibrate(arguments)
        return
    from loadtest import report
    from orchestration.allocator import checkpoint, plots, retraining
    from orchestration.allocator.evaluate import tabulate
    from orchestration.allocator.service import read_steps

    if arguments.json is not None:
        report.check_writable(arguments.json)
    # A policy that cannot be used is refused before the minutes that simulating takes.
    policy = checkpoint.load(arguments.policy) if arguments.action == "evaluate" and arguments.policy else None
    rules = retraining.rules_of(slo_s=arguments.slo_ms / 1e3, cold_start_s=arguments.cold_start_s)
    arena = retraining.prepare(
        arguments.trace,
        rules=rules,
        replicas=arguments.replicas,
        attainment=arguments.attainment,
        steps=read_steps(arguments.model),
        on_progress=print,
    )
    if arguments.action == "train":
        outcome = retraining.train(
            arena, attainment=arguments.attainment, budget_s=arguments.budget_s, on_progress=print
        )
        checkpoint.save(outcome.weights, arguments.out)
        result = report.assemble(outcome.headline, [], command="cloudcomplete allocator train")
    else:
        if policy is None and not arguments.no_policy:
            policy = retraining.train(
                arena, attainment=arguments.attainment, budget_s=arguments.budget_s, on_progress=print
            ).weights
        comparison = retraining.evaluate(
            arena, policy, attainment=arguments.attainment, num_seeds=arguments.seeds, on_progress=print
        )
        result = report.assemble(
            comparison.headline,
            comparison.rows,
            command=f"cloudcomplete allocator evaluate --trace {arguments.trace.name}",
            notes=comparison.notes,
        )
        if arguments.plots is not None:
            report.write_plots(arguments.plots, plots.draw(comparison, attainment=arguments.attainment))
        print(tabulate(comparison.rows))
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)


def _calibrate(arguments: argparse.Namespace) -> None:
    import secrets
    from contextlib import ExitStack

    import msgspec

    from cloudcomplete.config import load_settings
    from cloudcomplete.foretelling import calibrate_server
    from cloudcomplete.own_server import OwnServer, serve_command
    from loadtest import report

    report.check_writable(arguments.out)
    num_slots = load_settings(arguments.config, arguments.set).engine.num_slots
    with ExitStack() as stack:
        address = arguments.server
        if address is None:
            options = [arguments.model] if arguments.model else []
            options += ["--config", str(arguments.config)] if arguments.config else []
            for setting in (*arguments.set, "engine.max_slowdown=0"):  # nothing may be refused for being late
                options += ["--set", setting]
            address = stack.enter_context(OwnServer(serve_command(options))).address
        seed = secrets.randbelow(1 << 31)  # places that no earlier calibration of that server has asked about
        calibration = calibrate_server(address, num_slots=num_slots, on_progress=print, seed=seed)
    arguments.out.write_bytes(msgspec.json.format(msgspec.json.encode(calibration.steps)) + b"\n")
    print(f"{calibration.steps}; half of the times measured within {calibration.median_error:.1%}")


def _scale(arguments: argparse.Namespace) -> None:
    import asyncio
    import logging
    import signal
    import sys

    import msgspec

    from cloudcomplete.config import load_settings
    from orchestration.allocator.errors import ScalerError
    from orchestration.allocator.scaler import run_scaler

    config = load_settings(arguments.config, arguments.set).allocator
    namespace, slash, name = arguments.object.partition("/")
    if not (namespace and slash and name):
        raise ScalerError(f"--object got {arguments.object!r}; expected NAMESPACE/NAME of a ScaledObject")
    if config.mode == "off":
        config = msgspec.structs.replace(config, mode="shadow")
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("orchestration").setLevel(logging.INFO)

    async def scale() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await run_scaler(
            config,
            metrics=arguments.metrics,
            address=arguments.listen,
            scaled=(namespace, name),
            stopping=stopping,
            report=lambda line: print(line, flush=True),
        )

    asyncio.run(scale())
