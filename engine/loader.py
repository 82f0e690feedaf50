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
from engine.errors import ConfigError
from engine.fim import FimTemplate
from engine.model.attention import choose_attention
from engine.plan import EnginePlan, resolve
from engine.programs import keep_compiled_programs
from engine.runner import DeviceRunner
from engine.thread import EngineThread
from engine.tokenizer import Tokenizer
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
    plan = resolve(config, read_model_config(directory))
    tokenizer = Tokenizer.from_directory(directory)
    template = FimTemplate.detect(tokenizer)
    loaded = load_model(directory, dtype=jnp.dtype(plan.dtype))
    engine = build_engine(loaded, tokenizer, template, config, plan, on_progress=on_progress)
    on_progress("ready")
    return EngineThread(engine)


def build_engine(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    template: FimTemplate,
    config: EngineConfig,
    plan: EnginePlan,
    *,
    on_progress: Callable[[str], None],
) -> Engine:
    """Compile and warm every program for a loaded model; nothing steps the engine yet."""
    cache = compile_cache_directory(config)
    keep_compiled_programs(cache / "xla")
    try:
        attention_name, attention = choose_attention(
            config.attention,
            head_size=loaded.config.head_size,
            dtype=jnp.dtype(plan.dtype),
            build_directory=cache / "native",
        )
    except RuntimeError as error:
        raise ConfigError(str(error)) from None
    logger.info(
        "%d slots of %s tokens (%.0f MB of KV), %s, %s attention on %s",
        plan.num_slots,
        f"{plan.max_context:,}",
        plan.kv_bytes / 1e6,
        plan.dtype,
        attention_name,
        jax.default_backend(),
    )
    runner = DeviceRunner(
        graphdef=loaded.graphdef,
        weights=loaded.weights,
        config=loaded.config,
        plan=plan,
        attention=attention,
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
    )


def compile_cache_directory(config: EngineConfig) -> Path:
    """Return where compiled programs are kept between starts."""
    if config.compile_cache:
        return Path(config.compile_cache).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cloudcomplete" / "compiled"
