"""From a model directory to a running engine: the engine's object graph, built in one visible function."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from engine.config import EngineConfig
from engine.costs import StepCosts
from engine.engine import Engine
from engine.errors import ConfigError
from engine.fim import FimTemplate
from engine.model.config import ModelConfig
from engine.paths import Paths, choose_paths
from engine.plan import EnginePlan, resolve
from engine.programs import Programs, keep_compiled_programs
from engine.replicas import Replicas
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
    engine = EngineMaker(model, config or EngineConfig(), on_progress=on_progress).make()
    on_progress("ready")
    return engine


def load_replicas(
    model: Path | None = None,
    config: EngineConfig | None = None,
    *,
    on_progress: Callable[[str], None] = logger.info,
) -> Replicas:
    """Do as `load_engine`, for `num_replicas` engines behind a router, which makes more of them when asked to."""
    config = config or EngineConfig()
    if config.num_replicas < 1:
        raise ConfigError(f"engine.num_replicas is {config.num_replicas}; expected at least 1")
    replicas = Replicas(EngineMaker(model, config, on_progress=on_progress).make, config.num_replicas)
    on_progress("ready")
    return replicas


class EngineMaker:
    """Reads a model once and makes engines that share its weights and compiled programs; each has its own KV."""

    def __init__(self, model: Path | None, config: EngineConfig, *, on_progress: Callable[[str], None]) -> None:
        """Read the model; raises ModelError or ConfigError."""
        directory = model or STARTER
        on_progress(f"reading the model {directory.name}")
        self._config, self._on_progress = config, on_progress
        self._model_config = read_model_config(directory)
        plan = resolve(config, self._model_config, is_loaded=False)
        self._tokenizer = Tokenizer.from_directory(directory)
        self._template = FimTemplate.detect(self._tokenizer)
        self._paths = choose_engine_paths(config, self._model_config, plan)
        self._loaded = load_model(directory, dtype=jnp.dtype(plan.dtype), hold=self._paths.hold)
        self._identity = (
            f"{fingerprint(directory)} {plan.dtype} {plan.max_context} {self._paths.form} {self._template.name}"
            f"{_sparseness(plan)}"
        )
        self._programs = make_programs(self._loaded, self._tokenizer, plan, self._paths)
        self._lock = threading.Lock()

    def make(self, replica: int = 0) -> EngineThread:
        """Return one more warm engine; raises ConfigError when its KV does not fit beside the others'."""
        del replica
        with self._lock:
            engine = build_engine(
                self._loaded,
                self._tokenizer,
                self._template,
                self._config,
                resolve(self._config, self._model_config),
                self._paths,
                on_progress=self._on_progress,
                identity=self._identity,
                programs=self._programs,
            )
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
    programs: Programs | None = None,
) -> Engine:
    """Compile (unless given) and warm every program for a loaded model; nothing steps the engine yet."""
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
    programs = programs or make_programs(loaded, tokenizer, plan, paths)
    runner = DeviceRunner(config=loaded.config, plan=plan, programs=programs)
    costs = StepCosts(runner.warm_up(on_progress))
    return Engine(
        runner=runner,
        tokenizer=tokenizer,
        template=template,
        plan=plan,
        costs=costs,
        max_waiting=config.max_waiting,
        max_slowdown=config.max_slowdown,
        unhurried_s=config.unhurried_s,
        identity=identity,
    )


def make_programs(loaded: LoadedModel, tokenizer: Tokenizer, plan: EnginePlan, paths: Paths) -> Programs:
    """Return the programs of a loaded model, none of them compiled yet."""
    return Programs(
        graphdef=loaded.graphdef,
        weights=loaded.weights,
        config=loaded.config,
        plan=plan,
        attention=paths.attention,
        sparse_attention=paths.sparse_attention,
        num_tokens=tokenizer.num_tokens,
        compiler_options=paths.compiler_options,
    )


def _sparseness(plan: EnginePlan) -> str:
    """Return what of an engine's identity block-sparse attention is; "" where no request that does not say gets it."""
    is_possible = plan.sparse == "on" or (plan.sparse == "auto" and plan.sparse_tokens <= plan.max_context)
    if plan.sparse_problem is not None or not is_possible:
        return ""
    return f" sparse {plan.sparse} {plan.sparse_tokens} {plan.sparse_blocks}"


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
