"""`bench peers`: decoding and prompts beside llama.cpp and transformers, on the same weights, contexts and threads.

The peers live in an environment of their own, which CLOUDCOMPLETE_PEERS names; docs/peers.md says how to make it.
CLOUDCOMPLETE_BENCH_SHAPES=starter or =110m measures one of the two models alone (a third or two of 17 minutes).
Every figure is a ratio of tokens per second, ours over theirs, the median over rounds in which both run in turn.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgspec
from safetensors.numpy import save_file

from engine.fim import FimTemplate, build_prompt
from engine.loader import STARTER
from engine.model.config import ModelConfig
from engine.tokenizer import Tokenizer
from engine.types import Output, Request, SamplingParams
from engine.weights.load import random_model
from loadtest.benchmarks.decode import time_step
from loadtest.benchmarks.prefill import time_prompt
from loadtest.benchmarks.shapes import SHAPE_110M, make_benches, real_code
from loadtest.errors import RunError

_VARIABLE = "CLOUDCOMPLETE_PEERS"
_SHAPES = "CLOUDCOMPLETE_BENCH_SHAPES"
_MODELS = ("starter", "110m")
_SCRIPTS = Path(__file__).parents[1] / "peers"
_CONTEXT = 1016
_NEW_TOKENS = 24
_CONCURRENT = (1, 8, 16)
_ROUNDS = 3
_PLACES = 16
_PLACE_TOKENS = 48
_PLACE_CHARS = 3000
_START_S = 60


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """Where the peers are."""

    python: Path
    llama_cpp: Path

    @classmethod
    def from_environment(cls) -> "Peers":
        """Find them; raises RunError."""
        named = os.environ.get(_VARIABLE)
        if not named:
            raise RunError(f"{_VARIABLE} is not set; expected the directory made as docs/peers.md says")
        root = Path(named)
        peers = cls(python=root / "venv/bin/python", llama_cpp=root / "llama.cpp")
        for needed in (peers.python, peers.batched_bench, peers.server):
            if not needed.exists():
                raise RunError(f"{_VARIABLE} is {named}; expected {needed}; make it as docs/peers.md says")
        return peers

    @property
    def batched_bench(self) -> Path:
        return self.llama_cpp / "build/bin/llama-batched-bench"

    @property
    def server(self) -> Path:
        return self.llama_cpp / "build/bin/llama-server"

    def run(self, command: list[str], *, may_end_badly: bool = False) -> str:
        """Return what a program prints; raises RunError with its last words.

        `may_end_badly`: a crash on leaving is overlooked; whoever asks looks at what was printed.
        """
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode and not may_end_badly:
            raise RunError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Convert the weights, then measure both sides in turn; the 110 M model's weights are random."""
    chosen = _chosen_models()
    peers = Peers.from_environment()
    headline: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            directory = STARTER if name == "starter" else _write_random_model(Path(scratch) / name, SHAPE_110M)
            for kind in ("f32", "q8_0"):
                on_progress(f"{name}: converting to {kind}")
                convert(peers, directory, _gguf(scratch, name, kind), kind)
            for case, figures in _measure_model(peers, name, directory, scratch, on_progress).items():
                rows.append({"model": name, "case": case, **figures})
        if "starter" in chosen:
            figures = _measure_drafted(peers, _gguf(scratch, "starter", "f32"), on_progress)
            rows.append({"model": "starter", "case": "drafted_b1_over_llamacpp", **figures})
    for row in rows:
        headline[f"{row['case']}_{row['model']}"] = row["ratio"]
        on_progress(f"{row['model']:>8} {row['case']:>32}: {row['ours']:8.0f} over {row['theirs']:8.0f} tokens/s")
    return headline, rows


def _chosen_models() -> list[str]:
    """Return which models are measured; raises RunError for a name that is none."""
    chosen = os.environ.get(_SHAPES, ",".join(_MODELS)).split(",")
    if unknown := [name for name in chosen if name not in _MODELS]:
        raise RunError(f"{_SHAPES} names {unknown[0]!r}; expected some of {', '.join(_MODELS)}, with commas between")
    return chosen


def _measure_model(
    peers: Peers, name: str, directory: Path, scratch: str, on_progress: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return by case our tokens per second, theirs, and the median ratio."""
    [float32] = make_benches(on_progress, {name: directory})
    [int8] = make_benches(on_progress, {name: directory}, weights="int8")
    pairs: dict[str, list[tuple[float, float]]] = {}
    for number in range(_ROUNDS):
        on_progress(f"{name}: round {number + 1} of {_ROUNDS}")
        theirs = _llama_cpp_rates(peers, _gguf(scratch, name, "f32"))
        theirs_int8 = _llama_cpp_rates(peers, _gguf(scratch, name, "q8_0"))
        for rows in _CONCURRENT:
            ours = rows / time_step(float32, context=_CONTEXT, rows=rows, salt=f"{number} {rows}")
            pairs.setdefault(f"decode_b{rows}_f32_over_llamacpp", []).append((ours, theirs[f"decode {rows}"]))
            ours = rows / time_step(int8, context=_CONTEXT, rows=rows, salt=f"{number} {rows}")
            pairs.setdefault(f"decode_b{rows}_int8_over_llamacpp_q8", []).append((ours, theirs_int8[f"decode {rows}"]))
        seconds, length = time_prompt(float32, num_tokens=_CONTEXT, salt=f"{number} prompt")
        pairs.setdefault("prefill_1k_f32_over_llamacpp", []).append((length / seconds, theirs["prefill"]))
        ours = 1 / time_step(float32, context=_CONTEXT, rows=1, salt=f"{number} again")
        pairs.setdefault("decode_b1_f32_over_transformers", []).append((ours, _transformers_rate(peers, directory)))
    return {case: _summary(rates) for case, rates in pairs.items()}


def _summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"ours": ours, "theirs": theirs, "ratio": statistics.median(mine / other for mine, other in pairs)}


def _llama_cpp_rates(peers: Peers, model: Path) -> dict[str, float]:
    """Return tokens per second of one prompt and of decoding by sequences at once, by llama.cpp's own benchmark."""
    slots = max(_CONCURRENT)
    output = peers.run(
        [str(peers.batched_bench), "-m", str(model), "-c", str(slots * (_CONTEXT + _NEW_TOKENS + 64)),
         "-b", "2048", "-ub", "512", "-npp", str(_CONTEXT), "-ntg", str(_NEW_TOKENS),
         "-npl", ",".join(map(str, _CONCURRENT)), "-pps", "-t", str(_threads()), "-tb", str(_threads()),
         "--output-format", "jsonl"],
        may_end_badly=True,  # it does, after its last line
    )  # fmt: skip
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(results) < len(_CONCURRENT):
        raise RunError(
            f"{peers.batched_bench} printed {len(results)} results; expected {len(_CONCURRENT)}; run it by hand"
        )
    rates = {f"decode {result['pl']}": float(result["speed_tg"]) for result in results}
    return rates | {"prefill": max(float(result["speed_pp"]) for result in results if result["pl"] == 1)}


def _transformers_rate(peers: Peers, directory: Path) -> float:
    script = _SCRIPTS / "transformers_decode.py"
    arguments = map(str, (peers.python, script, directory, _CONTEXT, _NEW_TOKENS, _threads(), 2))
    return 1 / float(json.loads(peers.run(list(arguments)).splitlines()[-1])["decode_s"])


def _measure_drafted(peers: Peers, model: Path, on_progress: Callable[[str], None]) -> dict[str, float]:
    """Complete places of real code on both sides, ours with drafts; tokens per second after the first."""
    [bench] = make_benches(on_progress, {"starter": STARTER}, drafts=True)
    tokenizer = Tokenizer.from_directory(STARTER)
    template = FimTemplate.detect(tokenizer)
    pairs = []
    with _llama_server(peers, model) as address:
        for request in _places():
            prompt = build_prompt(request, tokenizer, template, max_prompt_tokens=2048 - _PLACE_TOKENS)
            theirs = _complete(address, list(prompt.tokens))
            outputs: list[Output] = []
            bench.engine.submit(request, outputs.append)
            while bench.engine.has_work():
                bench.engine.step()
            finish = outputs[-1].finish
            assert finish is not None
            usage = finish.usage
            pairs.append(((usage.num_generated_tokens - 1) / (usage.total_s - usage.first_token_s), theirs))
    return _summary(pairs)


def _places() -> Iterator[Request]:
    """Yield places at line starts of a real file, where nothing is to be healed: both sides get the same tokens."""
    text = real_code()
    for i in range(_PLACES):
        cursor = text.index("\n", _PLACE_CHARS + i * (len(text) - 2 * _PLACE_CHARS) // _PLACES) + 1
        before = text[cursor - _PLACE_CHARS : cursor]
        yield Request(
            request_id=f"place {i}",
            before=before,
            after=text[cursor : cursor + _PLACE_CHARS // 2],
            cut=len(before),
            sampling=SamplingParams(max_tokens=_PLACE_TOKENS),
        )


def _complete(address: str, tokens: list[int]) -> float:
    body = {
        "prompt": tokens,
        "n_predict": _PLACE_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return float(json.load(answer)["timings"]["predicted_per_second"])


@contextmanager
def _llama_server(peers: Peers, model: Path) -> Iterator[str]:
    """Run llama.cpp's server on a free port and stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(_threads())
    command = [
        str(peers.server), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
        "-c", "2048", "-np", "1", "-b", "2048", "-t", threads, "-tb", threads,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_S
        while not is_healthy(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"{command[0]} does not serve within {_START_S} s; run it by hand to see why")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def is_healthy(address: str) -> bool:
    """Tell whether a server of llama.cpp answers."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=1):
            return True
    except OSError:
        return False


def convert(peers: Peers, directory: Path, out: Path, kind: str) -> None:
    """Write a model directory as GGUF of a kind, such as f32; raises RunError."""
    script = _SCRIPTS / "convert_to_gguf.py"
    peers.run([str(peers.python), str(script), str(peers.llama_cpp), str(directory), str(out), kind])


def _gguf(scratch: str, name: str, kind: str) -> Path:
    return Path(scratch) / f"{name}-{kind}.gguf"


def _write_random_model(directory: Path, shape: ModelConfig) -> Path:
    """Write a model of random weights in bfloat16, with the starter's vocabulary, as all runtimes read it."""
    from engine.training.export import hugging_face_config, to_hugging_face  # needs the extra `training`

    directory.mkdir()
    weights = random_model(shape, seed=0, dtype=jnp.dtype("bfloat16")).weights
    save_file(to_hugging_face(weights, shape), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hugging_face_config(shape)))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(STARTER / name, directory / name)
    return directory


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _environment() -> dict[str, str]:
    """Return the environment of a peer: its threads wait without spinning, so that they take no time from ours."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive"}
