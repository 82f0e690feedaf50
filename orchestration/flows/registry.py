"""The flows by name, known without loading Prefect, which takes seconds."""

import importlib
from typing import Any

import msgspec

from orchestration.flows.errors import FlowInputError


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One flow."""

    name: str
    summary: str
    cron: str = ""
    """When `flows serve` runs it unless told otherwise (UTC); empty: only when asked."""

    @property
    def function_name(self) -> str:
        """The name of its module and of the flow in it."""
        return self.name.replace("-", "_")


FLOWS = {
    entry.name: entry
    for entry in (
        Entry(name="partition-model", summary="cut a model into stages, check and publish it"),
        Entry(name="warm-cache", summary="index projects, compile, ask again what was asked lately"),
        Entry(name="retrain-predictor", summary="learn which work ahead pays from recorded guesses; promote or keep"),
        Entry(name="retrain-policy", summary="learn from telemetry how many replicas to run; promote, keep or retire"),
        Entry(
            name="nightly", summary="the recurring work of one night; goes on where it was stopped", cron="0 3 * * *"
        ),
    )
}


def entry_of(name: str) -> Entry:
    """Return a flow's entry; raises FlowInputError."""
    if name not in FLOWS:
        raise FlowInputError(f"{name!r} is no flow; expected one of: {', '.join(FLOWS)}")
    return FLOWS[name]


def load_flow(name: str) -> Any:
    """Import a flow: a `prefect.Flow`; raises FlowInputError, or PrefectServerError where Prefect is not installed."""
    entry = entry_of(name)
    return getattr(importlib.import_module(f"orchestration.flows.{entry.function_name}"), entry.function_name)
