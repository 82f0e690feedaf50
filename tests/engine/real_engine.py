"""An engine on a real, tiny model: its own programs, compiled when first needed, and costs that no clock decides."""

from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.fim import FimTemplate
from engine.model.attention import xla_attention
from engine.model.block_sparse import xla_sparse_attention
from engine.plan import resolve
from engine.programs import Programs
from engine.runner import DeviceRunner
from engine.tokenizer import Tokenizer
from engine.types import Request
from engine.weights.load import LoadedModel
from tests.engine.conftest import FixedCosts, Recorder


@dataclass(frozen=True)
class Given:
    """What engines have in common."""

    tokenizer: Tokenizer
    template: FimTemplate

    def engine(self, loaded: LoadedModel, kind: type[Engine] = Engine, **choices: Any) -> Engine:
        config = EngineConfig(
            **{"num_slots": 1, "prefill_chunk": 64, "prefix_store_mb": 0, "max_context": 512} | choices
        )
        plan = resolve(config, loaded.config, available_bytes=1 << 30)
        programs = Programs(
            loaded.graphdef,
            loaded.weights,
            loaded.config,
            plan,
            xla_attention,
            self.tokenizer.num_tokens,
            sparse_attention=None if plan.sparse_problem else xla_sparse_attention,
        )
        return kind(
            runner=DeviceRunner(config=loaded.config, plan=plan, programs=programs),
            tokenizer=self.tokenizer,
            template=self.template,
            plan=plan,
            costs=FixedCosts(dict.fromkeys(plan.shapes.shapes(), 1e-3)),
            max_waiting=config.max_waiting,
        )


def run(engine: Engine, requests: list[Request]) -> list[Recorder]:
    """Submit all and step until nothing is left."""
    recorders = [Recorder() for _ in requests]
    for request, recorder in zip(requests, recorders, strict=True):
        engine.submit(request, recorder)
    while engine.has_work():
        engine.step()
    engine.check_integrity()
    return recorders
