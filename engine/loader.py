"""From a model directory to a running engine: the engine's object graph, built in one visible function."""

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from engine.budgets import make_budgets
from engine.config import EngineConfig
from engine.costs import StepCosts
from engine.engine import Engine
from engine.errors import ConfigError
from engine.fim import FimTemplate
from engine.group import Follower, Leader, LeadingRunner, Membership, join_runtime
from engine.mesh import STAGE, choose_mesh
from engine.model.config import ModelConfig
from engine.paths import Paths, choose_paths
from engine.pipeline import MeshPrograms, MeshWeights
from engine.plan import EnginePlan, available_kv_bytes, resolve
from engine.programs import Programs, keep_compiled_programs
from engine.replicas import Replicas
from engine.runner import DeviceRunner
from engine.stages import describe
from engine.thread import EngineThread
from engine.tokenizer import Tokenizer
from engine.weights.fingerprint import fingerprint
from engine.weights.load import LoadedModel, load_model, open_parameters, read_model_config
from engine.weights.partition import require_stages

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


def load_leader(
    member: Membership,
    model: Path | None = None,
    config: EngineConfig | None = None,
    *,
    on_progress: Callable[[str], None] = logger.info,
) -> EngineThread:
    """Do as `load_engine`, as the leader of a group of processes; raises GroupError too."""
    config = config or EngineConfig()
    on_progress(f"waiting for {member.num_processes - 1} other processes")
    leader = Leader(member, _group_identity(model, config))
    join_runtime(member)
    engine = EngineMaker(model, config, on_progress=on_progress, leader=leader).make()
    on_progress("ready")
    return engine


def follow(
    member: Membership,
    model: Path | None = None,
    config: EngineConfig | None = None,
    *,
    on_progress: Callable[[str], None] = logger.info,
) -> None:
    """Run as a follower until the leader is gone, which ends the process or raises GroupError.

    From the first progress on, JAX's runtime would wait for the other processes if this one left in an orderly way.
    """
    config = config or EngineConfig()
    follower = Follower(member, _group_identity(model, config))
    on_progress("joining the group")
    follower.watch()
    join_runtime(member)
    follower.follow(EngineMaker(model, config, on_progress=on_progress).make_runner())


def _group_identity(model: Path | None, config: EngineConfig) -> str:
    """Name what all processes of a group must have alike; asks JAX nothing."""
    if config.num_replicas != 1:
        raise ConfigError(
            f"{config.num_replicas} replicas in a group of processes; expected 1: start one group a replica"
        )
    alike = msgspec.json.encode(msgspec.structs.replace(config, compile_cache="")).decode()
    return f"{fingerprint(model or STARTER)} {alike}"


class EngineMaker:
    """Reads a model once and makes engines that share its weights and compiled programs; each has its own KV."""

    def __init__(
        self,
        model: Path | None,
        config: EngineConfig,
        *,
        on_progress: Callable[[str], None],
        leader: Leader | None = None,
    ) -> None:
        """Read the model; raises ModelError or ConfigError."""
        self._leader = leader
        directory = model or STARTER
        on_progress(f"reading the model {directory.name}")
        self._config, self._on_progress = config, on_progress
        self._model_config = read_model_config(directory)
        self._mesh = choose_mesh(config, self._model_config, jax.devices())
        require_stages(directory, self._mesh.shape[STAGE])
        if self._mesh.size * config.num_replicas > len(jax.devices()) and self._mesh.size > 1:
            raise ConfigError(
                f"{config.num_replicas} replicas of {self._mesh.size} devices need "
                f"{self._mesh.size * config.num_replicas}, got {len(jax.devices())}; lower --replicas, or --stages and "
                "--tensor"
            )
        used = {device.process_index for device in self._mesh.devices.flat}
        if len(used) != jax.process_count():
            raise ConfigError(
                f"the mesh of {self._mesh.size} devices uses {len(used)} of {jax.process_count()} processes; expected "
                "all of them; raise --stages or --tensor, or lower --processes"
            )
        plan = self._resolve(is_loaded=False)
        self._tokenizer = Tokenizer.from_directory(directory)
        self._template = FimTemplate.detect(self._tokenizer)
        self._paths = choose_engine_paths(config, self._model_config, plan)
        self._identity = (
            f"{fingerprint(directory)} {plan.dtype} {plan.max_context} {self._paths.form} {self._template.name}"
            f"{_sparseness(plan)}"
        )
        self._directory = directory
        self._programs: dict[int, Programs] = {}
        self._engines: dict[int, EngineThread] = {}
        self._programs_of(0, plan)
        self._lock = threading.Lock()

    def make(self, replica: int = 0) -> EngineThread:
        """Return one more warm engine; raises ConfigError when its KV does not fit beside the others'."""
        del replica
        with self._lock:
            plan, place = self._resolve(), self._free_place()
            engine = warm_engine(
                self._programs_of(place, plan),
                self._tokenizer,
                self._template,
                self._config,
                plan,
                self._paths,
                on_progress=self._on_progress,
                identity=self._identity,
                make_runner=DeviceRunner if self._leader is None else partial(LeadingRunner, self._leader),
            )
            self._engines[place] = EngineThread(engine)
            return self._engines[place]

    def _free_place(self) -> int:
        """Return which devices the next engine gets: those of one device are shared, those of a mesh never."""
        if self._mesh.size == 1:
            return 0
        places = range(len(jax.devices()) // self._mesh.size)
        free = [place for place in places if place not in self._engines or not self._engines[place].is_alive]
        if not free:
            raise ConfigError(
                f"one more replica of {self._mesh.size} devices does not fit: {len(places)} run on "
                f"{len(jax.devices())} devices; drain one first"
            )
        return free[0]

    def make_runner(self) -> DeviceRunner:
        """Return a follower's runner, its programs compiled."""
        plan = self._resolve()
        programs = self._programs_of(0, plan)
        programs.compile_all(self._on_progress)
        return DeviceRunner(config=programs.config, plan=plan, programs=programs)

    def _resolve(self, *, is_loaded: bool = True) -> EnginePlan:
        """Resolve for the mesh: the devices of one have their memory together, but those of a CPU share one."""
        num_memories = 1 if jax.default_backend() == "cpu" else self._mesh.size
        return resolve(
            self._config,
            self._model_config,
            available_bytes=available_kv_bytes() * num_memories,
            is_loaded=is_loaded,
        )

    def _programs_of(self, place: int, plan: EnginePlan) -> Programs:
        """Return the programs of the engines on some devices, with weights."""
        size = self._mesh.size
        if place in self._programs:
            return self._programs[place]
        dtype, paths = jnp.dtype(plan.dtype), self._paths
        if size == 1:
            loaded = load_model(self._directory, dtype=dtype, hold=paths.hold)
            self._programs[place] = make_programs(loaded, self._tokenizer, plan, paths)
            return self._programs[place]
        devices = jax.devices()[place * size : (place + 1) * size]
        weights = MeshWeights(
            self._model_config, choose_mesh(self._config, self._model_config, devices), hold=paths.hold
        )
        self._on_progress(describe(weights.stages))
        with open_parameters(self._directory, stages=weights.local_stages) as parameters:
            weights.read(parameters, dtype=np.dtype(dtype))
        self._programs[place] = MeshPrograms(
            weights,
            plan,
            paths.attention,
            self._tokenizer.num_tokens,
            paths.compiler_options,
            paths.sparse_attention,
        )
        return self._programs[place]


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
    programs = make_programs(loaded, tokenizer, plan, paths)
    return warm_engine(programs, tokenizer, template, config, plan, paths, on_progress=on_progress, identity=identity)


def warm_engine(
    programs: Programs,
    tokenizer: Tokenizer,
    template: FimTemplate,
    config: EngineConfig,
    plan: EnginePlan,
    paths: Paths,
    *,
    on_progress: Callable[[str], None],
    identity: str = "",
    make_runner: Callable[..., DeviceRunner] = DeviceRunner,
) -> Engine:
    """Make an engine over programs, compiling those that are not yet; nothing steps it yet."""
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
    runner = make_runner(config=programs.config, plan=plan, programs=programs)
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
        budgets=make_budgets(config.budgets, costs, plan.shapes, has_drafts=plan.has_drafts),
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
