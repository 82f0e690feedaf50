"""`cloudcomplete allocator`: train the policy that decides how many replicas run, and compare it with plain rules."""

import argparse
from pathlib import Path

NAME = "allocator"
SUMMARY = "train and evaluate the policy that decides how many replicas run"
DESCRIPTION = (
    "train: learn a policy on the first 60 % of a trace. evaluate: run every baseline, an oracle and the learned "
    "policy on the last 40 %. A trace is a CSV file, plain or gzip, of requests "
    "(TIMESTAMP,ContextTokens,GeneratedTokens) or of rates (client,window_start_s,requests_per_s,interarrival_cv)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(metavar="train | evaluate", required=True, dest="action")
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
            "--model", metavar="F", type=Path, help="JSON of step times (`StepTimes`); default: assumed ones"
        )
        action.add_argument("--json", metavar="OUT", type=Path, help="also write the result to OUT")
    actions.choices["train"].add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="where the policy goes"
    )
    actions.choices["train"].add_argument("--budget-s", metavar="S", type=float, default=240, help="time for PPO")
    evaluate = actions.choices["evaluate"]
    evaluate.add_argument("--policy", metavar="DIR", type=Path, help="a trained policy; default: train one first")
    evaluate.add_argument("--no-policy", action="store_true", help="baselines and oracle only")
    evaluate.add_argument("--budget-s", metavar="S", type=float, default=240, help="time for PPO where it trains first")
    evaluate.add_argument("--seeds", metavar="N", type=int, default=5, help="draws of the traffic (default 5)")
    evaluate.add_argument("--plots", metavar="DIR", type=Path, help="write plots as SVG files")


def run(arguments: argparse.Namespace) -> None:
    """Train or evaluate; raises AllocatorError or ReportError."""
    from loadtest import report
    from orchestration.allocator import retraining

    if arguments.json is not None:
        report.check_writable(arguments.json)
    rules = retraining.rules_of(slo_s=arguments.slo_ms / 1e3, cold_start_s=arguments.cold_start_s)
    arena = retraining.prepare(
        arguments.trace,
        rules=rules,
        replicas=arguments.replicas,
        attainment=arguments.attainment,
        steps=retraining.read_steps(arguments.model),
        on_progress=print,
    )
    if arguments.action == "train":
        outcome = retraining.train(
            arena, attainment=arguments.attainment, budget_s=arguments.budget_s, on_progress=print
        )
        retraining.save(outcome, arguments.out)
        result = report.assemble(outcome.headline, [], command="cloudcomplete allocator train")
    else:
        candidate = None
        if not arguments.no_policy:
            if arguments.policy is None:
                candidate = retraining.train(
                    arena, attainment=arguments.attainment, budget_s=arguments.budget_s, on_progress=print
                )
            else:
                candidate = retraining.load(arguments.policy)
        comparison = retraining.evaluate(
            arena, candidate, attainment=arguments.attainment, num_seeds=arguments.seeds, on_progress=print
        )
        result = report.assemble(
            comparison.headline,
            comparison.rows,
            command=f"cloudcomplete allocator evaluate --trace {arguments.trace.name}",
            notes=comparison.notes,
        )
        if arguments.plots is not None:
            _write_plots(arguments.plots, comparison.rows)
    print(report.describe(result))
    if arguments.json is not None:
        report.write_json(arguments.json, result)


def _write_plots(directory: Path, rows: list[dict[str, object]]) -> None:
    from loadtest.plots import stacked_bars, write_plots

    kept = {
        str(row["policy"]): {"kept": round(10_000 * float(str(row["attainment"])))}
        | {"missed": round(10_000 * (1 - float(str(row["attainment"]))))}
        for row in rows
    }
    write_plots(
        directory, {"service-level": stacked_bars("Windows that kept the service level", kept, x_label="share")}
    )
