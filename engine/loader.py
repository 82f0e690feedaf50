"""From a model directory to a running engine: the engine's object graph, built in one visible function."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from engine.config import EngineConfig
from engine.costs import StepCosts
from engine.engine import Engine
from engine.fim import FimTemplate
from engine.model.config import ModelConfig
from engine.paths import Paths, choose_paths
from engine.plan import EnginePlan, resolve
from engine.programs import keep_compiled_programs
from engine.runner import DeviceRunner
from engine.thread import EngineThread
from engine.tokenizer import Tokenizer
from engine.weights.fingerprint import fingerprint
from engine.weights.load import LoadedModel, load_model, read_model_config

logger = logging.getLogger(__name__)

STARTER = Path(__file__).with_name("starter")
"""The model that comes with the package."""


def load_engine(
    model: Path | None = None,
    config: EngineConfig | None = None,
    *,
    on_progress: Callable[[str], None] = logger.info,
) -> EngineThread:
    """Load a model directory (None: the starter model), compile and warm every program, start stepping.

    Blocks for seconds; raises ModelError or ConfigError.
    """
    directory, config = model or STARTER, config or EngineConfig()
    on_progress(f"reading the model {directory.name}")
    model_config = read_model_config(directory)
    plan = resolve(config, model_config)
    tokenizer = Tokenizer.from_directory(directory)
    template = FimTemplate.detect(tokenizer)
    paths = choose_engine_paths(config, model_config, plan)
    loaded = load_model(directory, dtype=jnp.dtype(plan.dtype), hold=paths.hold)
    identity = f"{fingerprint(directory)} {plan.dtype} {plan.max_context} {paths.form} {template.name}"
    engine = build_engine(loaded, tokenizer, template, config, plan, paths, on_progress=on_progress, identity=identity)
    on_progress("ready")
    return EngineThread(engine)


def build_engine(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    template: FimTemplate,
    config: EngineConfig,
    plan: EnginePlan,
    paths: Paths,
    *,
    on_progress: Callable[[str], None],
    identity: str = "",
) -> Engine:
    """Compile and warm every program for a loaded model; nothing steps the engine yet."""
    logger.info(
        "%d slots of %s tokens (%.0f MB of KV), %s, %s attention, %s weights on %s",
        plan.num_slots,
        f"{plan.max_context:,}",
        plan.kv_bytes / 1e6,
        plan.dtype,
        paths.attention_name,
        paths.form,
        jax.default_backend(),
    )
    runner = DeviceRunner(
        graphdef=loaded.graphdef,
        weights=loaded.weights,
        config=loaded.config,
        plan=plan,
        attention=paths.attention,
        compiler_options=paths.compiler_options,
        num_tokens=tokenizer.num_tokens,
    )
    costs = StepCosts(runner.warm_up(on_progress))
    return Engine(
        runner=runner,
        tokenizer=tokenizer,
        template=template,
        plan=plan,
        costs=costs,
        max_waiting=config.max_waiting,
        identity=identity,
    )


def choose_engine_paths(config: EngineConfig, model: ModelConfig, plan: EnginePlan) -> Paths:
    """Choose what computes what, keeping kernels, verdicts and compiled programs where the config says."""
    cache = compile_cache_directory(config)
    keep_compiled_programs(cache / "xla")
    return choose_paths(config, model, plan, directory=cache / "native")


def compile_cache_directory(config: EngineConfig) -> Path:
    """Return where compiled programs are kept between starts."""
    if config.compile_cache:
        return Path(config.compile_cache).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cloudcomplete" / "compiled"
