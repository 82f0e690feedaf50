"""The programs of a mesh: the model's layers divided over stages, microbatches circulating between them.

A step's rows and its chunk are divided into microbatches of at least `LEAST_TOKENS`. In each tick every stage runs its
layers over one microbatch and hands the result to the next stage by `ppermute`; microbatch `m` is at stage `s` in tick
`m + s`, so that `M` microbatches pass `S` stages in `M + S - 1` ticks of one compiled program. Every tick has the same
static budget: a share of the rows and a share of the chunk. The parts of a chunk follow each other through each stage,
so each finds the KV of those before. At both ends of a step stages run on bubbles: those write to no slot, and what
they compute reaches no output. Before the ticks tokens are looked up and after them scored by all stages at once, each
in its share of the vocabulary.

Within a stage `tensor` divides heads and MLP columns; two sums a layer bring the parts together. Every leaf of the
weights is `[stage, tensor, *local]`, one leaf per layer of a stage; stages with fewer layers have padding there, which
runs and is thrown away. The interface is `Programs`', so the runner does not know of meshes; attention is what the
caller passes. Block-sparse attention chooses for each part of a chunk by itself, on each device for the heads it has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.mesh import STAGE, TENSOR
from engine.model.attention import Attention
from engine.model.block_sparse import SparseAttention
from engine.model.config import ModelConfig
from engine.model.matrix import embed, multiply, score
from engine.model.transformer import Transformer
from engine.plan import EnginePlan
from engine.prefix_store import BLOCK_TOKENS
from engine.programs import (
    NOTHING_KEPT,
    Batch,
    KVCache,
    Programs,
    append_report,
    batch_shape,
    choose_tokens,
    copy_loads,
    copy_saves,
)
from engine.shapes import Shape
from engine.stages import StagePlan, plan_stages, tokens_per_stage
from engine.weights.load import Hold, hold_plain
from engine.weights.parameters import ParameterPath, Parameters, parameter_shapes, whole
from engine.weights.partition import vocabulary_axis

LEAST_TOKENS = 16
"""A microbatch has at least so many tokens: with fewer, a stage reads its weights for too little work."""
_MAX_MICROBATCHES = 8
"""Times the number of stages: more than that, and the ends of a step are no longer what costs."""

_BOTH = PartitionSpec(STAGE, TENSOR)


def num_microbatches(shape: Shape, num_stages: int) -> int:
    """Return into how many microbatches a step of this shape is divided."""
    if num_stages == 1:
        return 1
    limit = min(_MAX_MICROBATCHES * num_stages, max(1, shape.num_tokens // LEAST_TOKENS))
    sizes = [size for size in (shape.rows, shape.chunk) if size]
    return max(m for m in range(1, limit + 1) if all(size % m == 0 for size in sizes))


class MeshWeights:
    """Takes the parameters of a model one by one and puts each device's part on it.

    Parameters of stages that other processes have are dropped.
    """

    def __init__(
        self, config: ModelConfig, mesh: jax.sharding.Mesh, *, hold: Hold = hold_plain, padding: float = 0.0
    ) -> None:
        """`padding` fills what no parameter fills; the tests make it NaN."""
        self.config, self.mesh, self._hold, self._padding = config, mesh, hold, padding
        num_stages, num_tensor = mesh.devices.shape
        self.stages: list[StagePlan] = plan_stages(config, num_stages)
        self.local_config = msgspec.structs.replace(
            config,
            num_layers=max(stage.num_layers for stage in self.stages),
            num_heads=config.num_heads // num_tensor,
            num_kv_heads=config.num_kv_heads // num_tensor,
            intermediate_size=config.intermediate_size // num_tensor,
            vocab_size=tokens_per_stage(config.vocab_size, num_stages),
            windows=(),
        )
        self._parts: dict[tuple[int, int], dict[ParameterPath, Any]] = {
            (stage, tensor): {}
            for stage in range(num_stages)
            for tensor in range(num_tensor)
            if mesh.devices[stage, tensor].process_index == jax.process_index()
        }

    def take(self, path: ParameterPath, parameter: jax.Array | np.ndarray) -> jax.Array:
        """Divide one parameter (a `Hold`, for `load_model`); returns what stands in for it."""
        values: np.ndarray | None = None
        for (stage, tensor), parts in self._parts.items():
            plan = self.stages[stage]
            local = path
            if path[0] == "layers":
                assert isinstance(path[1], int), "a layer without a number"
                if path[1] not in plan.layers:
                    continue
                local = ("layers", path[1] - plan.first_layer, *path[2:])
            values = np.asarray(parameter) if values is None else values
            part = np.ascontiguousarray(self._part(path, values, plan, tensor))
            parts[local] = self._hold(local, jax.device_put(part, self.mesh.devices[stage, tensor]))
        return jnp.zeros(())

    @property
    def local_stages(self) -> frozenset[int]:
        """The stages that this process has devices of."""
        return frozenset(stage for stage, _ in self._parts)

    def read(self, parameters: Parameters, *, dtype: np.dtype[Any]) -> None:
        """Take every parameter that is needed here, of the vocabulary only this process's shares; raises
        WeightsError."""
        layers = {layer for stage in self.local_stages for layer in self.stages[stage].layers}
        for path, shape in parameter_shapes(self.config).items():
            if path[0] == "layers" and path[1] not in layers:
                continue
            axis = vocabulary_axis(path)
            if axis is None:
                self.take(path, parameters.read(path, whole(shape), dtype=dtype))
                continue
            for (stage, tensor), parts in self._parts.items():
                plan, index = self.stages[stage], list(whole(shape))
                index[axis] = slice(plan.first_token, plan.last_token)
                share = self._padded(parameters.read(path, tuple(index), dtype=dtype), axis, plan)
                parts[path] = self._hold(path, jax.device_put(share, self.mesh.devices[stage, tensor]))

    def assemble(self) -> tuple[nnx.GraphDef[Transformer], Any]:
        """Return the module of one device's part, and its weights, each leaf `[stage, tensor, *local]`."""
        abstract = nnx.eval_shape(lambda: Transformer(self.local_config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        paths = [cast(ParameterPath, path) for path, _ in nnx.to_flat_state(state)]
        weights: dict[Any, Any] = {}
        for path in paths:
            locals_ = []
            for (stage, tensor), parts in self._parts.items():
                if path not in parts:  # a layer that this stage does not have: as another of its own
                    like = parts[("layers", 0, *path[2:])]
                    parts[path] = jax.tree.map(partial(self._pad, self.mesh.devices[stage, tensor]), like)
                locals_.append(parts[path])
            *parents, name = path
            node = weights
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = jax.tree.map(self._join, *locals_)
        return graphdef, weights

    def _pad(self, device: jax.Device, like: jax.Array) -> Any:
        is_float = jnp.issubdtype(like.dtype, jnp.floating)
        return jax.device_put(np.full(like.shape, self._padding if is_float else 0, like.dtype), device)

    def _join(self, *locals_: jax.Array) -> jax.Array:
        shape = (*self.mesh.devices.shape, *locals_[0].shape)
        arrays = [part[None, None] for part in locals_]
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, _BOTH), arrays)

    def _padded(self, share: np.ndarray, axis: int, plan: StagePlan) -> np.ndarray:
        missing = [(0, 0)] * share.ndim
        missing[axis] = (0, self.local_config.vocab_size - plan.num_tokens)
        return np.pad(share, missing)

    def _part(self, path: ParameterPath, values: np.ndarray, plan: StagePlan, tensor: int) -> np.ndarray:
        c, num_tensor = self.config, self.mesh.devices.shape[1]

        def columns(*sizes: int) -> np.ndarray:
            """Of each of several matrices side by side, this device's columns."""
            each = np.split(values, np.cumsum(sizes)[:-1], axis=-1)
            return np.concatenate([np.split(one, num_tensor, axis=-1)[tensor] for one in each], axis=-1)

        name = path[-1]
        if (axis := vocabulary_axis(path)) is not None:
            share = np.take(values, np.arange(plan.first_token, plan.last_token), axis=axis)
            return self._padded(share, axis, plan)
        if "qkv" in path:
            kv_size = c.num_kv_heads * c.head_size
            return columns(c.num_heads * c.head_size, kv_size, kv_size)
        if "gate_up" in path:
            return columns(c.intermediate_size, c.intermediate_size)
        if "up" in path:
            return columns(c.intermediate_size)
        if name == "kernel" and ("output" in path or "down" in path):
            return np.split(values, num_tensor, axis=0)[tensor]
        return values


class MeshPrograms(Programs):
    """Compiles, keeps and counts the programs of one engine on a mesh."""

    def __init__(
        self,
        weights: MeshWeights,
        plan: EnginePlan,
        attention: Attention,
        num_tokens: int,
        compiler_options: dict[str, str | bool] | None = None,
        sparse_attention: SparseAttention | None = None,
    ) -> None:
        """`weights` have taken every parameter; `num_tokens` as in `Programs`."""
        self._mesh, self._stages, self._local = weights.mesh, weights.stages, weights.local_config
        self._each = NamedSharding(self._mesh, _BOTH)
        self._same = NamedSharding(self._mesh, PartitionSpec())
        graphdef, tree = weights.assemble()
        super().__init__(
            graphdef, tree, weights.config, plan, attention, num_tokens, compiler_options, sparse_attention
        )
        copying = partial(self._shard, in_specs=(_BOTH, _BOTH, *[PartitionSpec()] * 4), out_specs=_BOTH)
        self.save_blocks = jax.jit(copying(self._on_device(copy_saves)), donate_argnums=0)
        self.load_blocks = jax.jit(copying(self._on_device(copy_loads)), donate_argnums=0)

    def make_kv(self) -> KVCache:
        return self._zeros(self._plan.num_slots, self._plan.capacity)

    def make_store(self) -> KVCache:
        return self._zeros(self._plan.num_blocks, BLOCK_TOKENS)

    def _place(self, leaves: list[jax.Array]) -> list[jax.Array]:
        """The weights are where they belong; the rotary table, in the end, is the same everywhere."""
        tables = [
            jax.make_array_from_callback(leaf.shape, self._same, lambda index, leaf=leaf: np.asarray(leaf)[index])
            for leaf in leaves[-2:]
        ]
        return [*leaves[:-2], *tables]

    def _shard(self, function: Callable[..., Any], *, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    @staticmethod
    def _on_device(copy: Callable[..., KVCache]) -> Callable[..., KVCache]:
        def run(first: KVCache, second: KVCache, *columns: jax.Array) -> Any:
            return _outer(copy(_inner(first), _inner(second), *columns))

        return run

    def _zeros(self, num: int, length: int) -> KVCache:
        local = (num, self._local.num_kv_heads, length, self._local.head_size)
        shape, dtype = (*self._mesh.devices.shape, *local), jnp.dtype(self._plan.dtype)

        def zeros() -> jax.Array:
            return jax.make_array_from_callback(shape, self._each, lambda _: np.zeros((1, 1, *local), dtype))

        return [(zeros(), zeros()) for _ in range(self._local.num_layers)]

    def _lower(self, shape: Shape) -> jax.stages.Lowered:
        local = (self._plan.num_slots, self._local.num_kv_heads, self._plan.capacity, self._local.head_size)
        layer = jax.ShapeDtypeStruct(
            (*self._mesh.devices.shape, *local), jnp.dtype(self._plan.dtype), sharding=self._each
        )
        kv = [(layer, layer)] * self._local.num_layers
        batch = jax.tree.map(
            lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=self._same),
            batch_shape(shape, self.config.vocab_size),
        )
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in self.leaves]
        specs = [*[_BOTH] * (len(leaves) - 2), *[PartitionSpec()] * 2]
        step = self._shard(
            partial(self._mesh_step, shape),
            in_specs=(specs, _BOTH, PartitionSpec()),
            out_specs=(_BOTH, PartitionSpec()),
        )
        return jax.jit(step, donate_argnums=1, out_shardings=(self._each, self._same)).lower(leaves, kv, batch)

    def _mesh_step(self, shape: Shape, leaves: list[jax.Array], kv: KVCache, batch: Batch) -> tuple[KVCache, jax.Array]:
        """Look up, let microbatches pass the stages, score, choose: one device's part of a step."""
        leaves = [*_inner(leaves[:-2]), *leaves[-2:]]
        weights, rope = jax.tree.unflatten(self._treedef, leaves)
        model: Transformer = nnx.merge(self._graphdef, weights)
        for layer in model.layers:
            layer.output.multiply = layer.down.multiply = _summed_product
        stage, num_stages = jax.lax.axis_index(STAGE), len(self._stages)
        num_micro = num_microbatches(shape, num_stages)
        micro = Shape(shape.rows // num_micro, shape.width, shape.chunk // num_micro)
        num_row_tokens = shape.rows * shape.width

        embedded = self._embed(model, batch.tokens, stage)
        # [M, tokens of a microbatch, D]: rows, then the chunk.
        parts = [part.reshape(num_micro, -1, part.shape[-1]) for part in jnp.split(embedded, [num_row_tokens])]
        entering = jnp.concatenate(parts, axis=1)

        def tick(number: jax.Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
            kv, arriving, leaving, report = state
            index = number - stage
            is_real = (index >= 0) & (index < num_micro)
            index = jnp.clip(index, 0, num_micro - 1)
            x = jnp.where(stage == 0, entering[index], arriving)
            x, kv, kept = self._run_stage(model, micro, x, kv, batch, index, is_real, stage, rope)
            # The last stage's results of real microbatches are kept; a bubble's are never.
            keeps = is_real & (stage == num_stages - 1)
            leaving = jax.lax.dynamic_update_index_in_dim(leaving, jnp.where(keeps, x, leaving[index]), index, 0)
            if num_stages > 1:
                x = jax.lax.ppermute(x, STAGE, [(i, (i + 1) % num_stages) for i in range(num_stages)])
            return kv, x, leaving, report + kept

        state = (_inner(kv), jnp.zeros_like(entering[0]), jnp.zeros_like(entering), jnp.asarray(NOTHING_KEPT))
        kv, _, leaving, report = jax.lax.fori_loop(0, num_micro + num_stages - 1, tick, state)
        rows, chunks = jnp.split(leaving, [micro.rows * micro.width], axis=1)
        hidden = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in (rows, chunks)])

        def logits(scored: jax.Array) -> Any:
            """Hand the scored states of the last stage to all, score each share, put the shares side by side."""
            x = jnp.where(stage == num_stages - 1, hidden[scored], 0)
            x = model.norm(jax.lax.psum(x, STAGE))
            if model.head is None:
                scores = score(x, model.embedding.get_value())
            else:
                scores = multiply(x, model.head.kernel.get_value(), dtype=jnp.dtype(jnp.float32))
            every = jax.lax.all_gather(scores, STAGE, axis=1, tiled=True)
            return every[:, : self.config.vocab_size]

        chosen = choose_tokens(shape, batch, logits, vocab_size=self.config.vocab_size, num_tokens=self.num_tokens)
        if self.sparse_attention is not None and shape.chunk:
            chosen = append_report(chosen, jax.lax.psum(report, (STAGE, TENSOR)))
        return _outer(kv), chosen

    def _embed(self, model: Transformer, tokens: jax.Array, stage: jax.Array) -> Any:
        """Return the embeddings `[T, D]`, each from the stage that has it."""
        dtype = model.norm.scale[...].dtype
        share = self._local.vocab_size
        local = tokens - stage * share
        is_here = (local >= 0) & (local < share)
        found = embed(model.embedding.get_value(), jnp.clip(local, 0, share - 1), dtype=dtype)
        x = jax.lax.psum(jnp.where(is_here[:, None], found, 0), STAGE)
        scale = self.config.embedding_scale
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)

    def _run_stage(
        self,
        model: Transformer,
        micro: Shape,
        x: jax.Array,
        kv: KVCache,
        batch: Batch,
        index: jax.Array,
        is_real: jax.Array,
        stage: jax.Array,
        rope: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, KVCache, jax.Array]:
        """Run this stage's layers over microbatch `index`; a bubble writes to no slot. Returns the report, too."""
        kv, reports = list(kv), [jnp.asarray(NOTHING_KEPT)] * len(model.layers)
        num_before = index * micro.chunk  # tokens of the chunk in earlier microbatches
        parts = []
        """(tokens, slots, starts, width) of the rows, then of the chunk."""
        if micro.rows:
            first = index * micro.rows
            slots, starts = (jax.lax.dynamic_slice(a, (first,), (micro.rows,)) for a in (batch.slots, batch.starts))
            parts.append((slice(0, micro.rows * micro.width), slots, starts, micro.width))
        if micro.chunk:
            place = slice(micro.rows * micro.width, None)
            # A part of a chunk behind its last real token is as empty as a bubble.
            slots = jnp.where(num_before < batch.counts[-1:], batch.slots[-1:], -1)
            parts.append((place, slots, batch.starts[-1:] + num_before, micro.chunk))
        parts = [(tokens, jnp.where(is_real, slots, -1), starts, width) for tokens, slots, starts, width in parts]
        positions = jnp.concatenate(
            [(starts[:, None] + jnp.arange(width)).reshape(-1) for _, _, starts, width in parts]
        )
        cos, sin = (table[positions][:, None, :].astype(x.dtype) for table in rope)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            outs = []
            for tokens, slots, starts, _ in parts:
                arguments = (q[tokens], k[tokens], v[tokens], slots, starts, *kv[layer])
                if self.sparse_attention is not None and tokens.start == micro.rows * micro.width:
                    num_real = jnp.clip(batch.selection[1] - num_before, 1, micro.chunk)
                    out, *written, reports[layer] = self.sparse_attention(
                        *arguments, batch.selection.at[1].set(num_real), num_kept=self._plan.sparse_blocks
                    )
                else:
                    out, *written = self._attend(layer, stage, *arguments)
                kv[layer] = (written[0], written[1])
                outs.append(out)
            return outs[0] if len(outs) == 1 else jnp.concatenate(outs)

        counts = jnp.asarray([plan.num_layers for plan in self._stages])
        least = min(plan.num_layers for plan in self._stages)
        for number, layer in enumerate(model.layers):
            y = layer(x, number, cos, sin, attend)
            if number >= least:  # padding, on some stages
                is_layer = number < counts[stage]
                y, reports[number] = jnp.where(is_layer, y, x), jnp.where(is_layer, reports[number], 0)
            x = y
        return x, kv, sum(reports, jnp.asarray(NOTHING_KEPT))

    def _attend(self, layer: int, stage: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        """Attend within the window of the stage's layer; where stages differ in it, each takes its own branch."""
        windows = [self.config.window_of(plan.first_layer + min(layer, plan.num_layers - 1)) for plan in self._stages]
        distinct = list(dict.fromkeys(windows))
        branches = [partial(self._attention, window=window) for window in distinct]
        if len(branches) == 1:
            return branches[0](*arguments)
        which = jnp.asarray([distinct.index(window) for window in windows])[stage]
        out: tuple[jax.Array, ...] = jax.lax.switch(which, branches, *arguments)
        return out


def _summed_product(x: jax.Array, kernel: Any) -> Any:
    """The product with a matrix whose rows are divided over `tensor`; a bias comes after it, once."""
    return jax.lax.psum(multiply(x, kernel), TENSOR)


def _inner(tree: Any) -> Any:
    """Take off the axes of the mesh, within one device."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[2:]), tree)


def _outer(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None, None], tree)
