"""`bench drafts`: how many tokens of the starter model's completions each source of drafts foresees, and what it costs.

The model completes places in real code greedily; then its completions are replayed against the drafts. Under greedy
decoding a draft token is accepted exactly if it is the token that comes next, so nothing is verified on a device here
and no length is chosen: every draft is as long as the widest program verifies. Completions come as text and are
encoded again; those that then have another number of tokens than the model produced are left out. Times are processor
time of the thread, since machines are shared.

Code: `samples/`, some modules of Python's standard library and, when the environment variable
CLOUDCOMPLETE_DRAFT_ROWS names a file as for `cloudcomplete evaluate`, 100 of its rows.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.config import EngineConfig
from engine.drafts.acceptance import Acceptance
from engine.drafts.corpus import Corpora, CorpusLookup
from engine.drafts.drafting import Drafting, Sources
from engine.drafts.sources import Drafter, GivenText, PromptLookup
from engine.engine import Engine
from engine.fim import FimTemplate, build_prompt
from engine.loader import STARTER, build_engine, choose_engine_paths
from engine.plan import EnginePlan, resolve
from engine.tokenizer import Tokenizer
from engine.types import Output, Request, SamplingParams
from engine.weights.load import load_model, read_model_config
from loadtest.rows import read_rows, sample

_SAMPLES = Path(__file__).parent.parent / "samples"
_MODULES = ("textwrap", "shlex", "csv", "heapq", "queue")
_ROWS_VARIABLE = "CLOUDCOMPLETE_DRAFT_ROWS"
_NUM_ROWS = 100
_PLACES_PER_FILE = 24
_BEFORE_CHARS, _AFTER_CHARS = 4000, 2000
_TYPED_CHARS = 3
"""Between the two completions asked for at a place: the first is the text given for the second."""
_MAX_TOKENS = 48
_DRAFT_TOKENS = 7
_HISTORY_TOKENS = 2000
_CORPUS_TOKENS = 1 << 17


class Place(NamedTuple):
    """A place in a file where someone types."""

    file: str
    """Its path; empty where it has none."""
    before: str
    typed: str
    """What is typed next."""
    after: str


class Completion(NamedTuple):
    """What the model wrote at a place."""

    prompt: np.ndarray
    heal: str
    """What the prompt leaves out before the cursor, so that the tokens begin with it."""
    tokens: list[int]
    text: str
    is_certain: bool
    """The tokens are as many as the model produced."""


class Visit(NamedTuple):
    """A place, its completion, and the tokens that a completion cache would give for it."""

    place: Place
    completion: Completion
    given: list[int]


class Step(NamedTuple):
    """What one decode step yields."""

    num_tokens: int
    num_proposed: int
    num_accepted: int
    seconds: float
    """Processor time of finding the draft."""


def measure(on_progress: Callable[[str], None]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Complete every place, replay the completions against each source, then time the sources on fixed sizes."""
    files = _read_files()
    places = [place for name, text in files.items() for place in _choose_places(name, text)]
    groups = {"code": places}
    if rows := os.environ.get(_ROWS_VARIABLE):
        groups["rows"] = _places_of_rows(Path(rows))
    model = _Model(on_progress)
    headline: dict[str, float] = {}
    results: list[dict[str, Any]] = []
    for group, chosen in groups.items():
        on_progress(f"{group}: completing {len(chosen)} places twice")
        visits = model.visit(chosen)
        certain = [visit for visit in visits if visit.completion.is_certain]
        on_progress(f"{group}: the tokens of {len(certain)} completions are certain")
        for source in ("given", "prompt", "corpus", "all"):
            row = _replay(source, certain, files, model)
            results.append({"code": group, "source": source, "completions": len(certain), **row})
            headline[f"{group}_{source}_tokens_per_step"] = row["tokens_per_step"]
            on_progress(
                f"{group} {source:>7}: {row['tokens_per_step']:.2f} tokens a step, {row['proposed_per_step']:.2f} "
                f"proposed, {row['accepted_per_step']:.2f} accepted, {row['propose_us_p50']:.0f} us"
            )
    costs = _measure_costs(model.tokenizer, files)
    for name, value in costs.items():
        on_progress(f"{name}: {value:.1f}")
    return {**headline, **costs}, results


class _Model:
    """The starter model, asked for whole completions."""

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        config = EngineConfig(num_slots=8, max_waiting=1 << 20, max_slowdown=0.0)
        self.tokenizer = Tokenizer.from_directory(STARTER)
        self.template = FimTemplate.detect(self.tokenizer)
        model = read_model_config(STARTER)
        self._plan: EnginePlan = resolve(config, model)
        paths = choose_engine_paths(config, model, self._plan)
        loaded = load_model(STARTER, dtype=np.dtype(np.float32), hold=paths.hold)
        self._engine: Engine = build_engine(
            loaded, self.tokenizer, self.template, config, self._plan, paths, on_progress=on_progress
        )

    def visit(self, places: list[Place]) -> list[Visit]:
        """Complete every place before and after something is typed there; the first completion is given to the second.

        Without what was typed since, or whole where something else was typed.
        """
        earlier = self.complete([place._replace(typed="") for place in places])
        visits = []
        for place, before, completion in zip(places, earlier, self.complete(places), strict=True):
            given = completion.heal + before.text.removeprefix(place.typed)
            visits.append(Visit(place, completion, self.tokenizer.encode(given)))
        return visits

    def complete(self, places: list[Place]) -> list[Completion]:
        """Return the model's completion after what is typed at each place."""
        requests = [_make_request(number, place) for number, place in enumerate(places)]
        texts = [""] * len(places)
        ends: dict[int, Output] = {}

        def sink(output: Output) -> None:
            texts[int(output.request_id)] += output.text
            if output.finish is not None:
                ends[int(output.request_id)] = output

        for request in requests:
            self._engine.submit(request, sink)
        while len(ends) < len(requests):
            self._engine.step()
        return [self._completion(request, texts[i], ends[i]) for i, request in enumerate(requests)]

    def _completion(self, request: Request, text: str, end: Output) -> Completion:
        assert end.finish is not None
        room = self._plan.max_context - request.sampling.max_tokens
        prompt = build_prompt(request, self.tokenizer, self.template, max_prompt_tokens=room)
        heal = prompt.heal.decode(errors="replace")
        tokens = self.tokenizer.encode(heal + text)
        if end.finish.reason == "stop":
            tokens.append(self.template.stop_ids[0])
        is_certain = len(tokens) == end.finish.usage.num_generated_tokens
        return Completion(np.array(prompt.tokens, np.int32), heal, tokens, text, is_certain)


def _replay(source: str, visits: list[Visit], files: dict[str, str], model: _Model) -> dict[str, float]:
    """Follow every completion with the drafts of one source; `all`: whichever promises most.

    The corpus holds the other files, not the one that is completed, and the completions so far as if all had been
    accepted.
    """
    acceptance, corpora = Acceptance(), Corpora(tenant_tokens=_CORPUS_TOKENS, markers=model.template.stop_ids)
    drafting = Drafting(acceptance, corpora, markers=model.template.stop_ids)
    for own in dict.fromkeys(visit.place.file for visit in visits):
        for name, text in files.items():
            if name != own:
                corpora.add(own, model.tokenizer.encode(text), key=name)
    steps: list[Step] = []
    for visit in visits:
        completion, tenant = visit.completion, visit.place.file
        sources = drafting.begin(completion.prompt, tenant=tenant, given=visit.given)
        if source != "all":
            one: dict[str, Drafter] = {
                "given": GivenText(visit.given, num_prompt_tokens=len(completion.prompt)),
                "prompt": PromptLookup(),
                "corpus": CorpusLookup(corpora, tenant),
            }
            sources.drafters[:] = [one[source]]
        steps += _follow(completion.tokens, sources, drafting, acceptance)
        corpora.add(tenant, np.concatenate([completion.prompt[-16:], completion.tokens]))
    tokens, proposed, accepted, seconds = zip(*steps, strict=True)
    return {
        "steps": len(steps),
        "tokens_per_step": statistics.mean(tokens),
        "proposed_per_step": statistics.mean(proposed),
        "accepted_per_step": statistics.mean(accepted),
        "accepted_share": sum(accepted) / max(1, sum(proposed)),
        "propose_us_p50": statistics.median(seconds) * 1e6,
        "propose_us_p99": float(np.percentile(seconds, 99)) * 1e6,
    }


def _follow(tokens: list[int], sources: Sources, drafting: Drafting, acceptance: Acceptance) -> Iterator[Step]:
    """Yield the decode steps of a completion; its first token comes from the prompt's last chunk."""
    sources.append(tokens[:1])
    at = 1
    while at < len(tokens):
        began = time.thread_time()
        draft = drafting.propose(sources, min(_DRAFT_TOKENS, len(tokens) - at))
        seconds = time.thread_time() - began
        pairs = zip(draft.tokens, tokens[at:], strict=False)
        accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        acceptance.record(draft, num_verified=len(draft.tokens), num_accepted=accepted)
        taken = tokens[at : at + accepted + 1]
        sources.append(taken)
        at += len(taken)
        yield Step(len(taken), len(draft.tokens), accepted, seconds)


def _measure_costs(tokenizer: Tokenizer, files: dict[str, str]) -> dict[str, float]:
    """Return microseconds of setting up and proposing on a prompt of 2,000 tokens, and of adding to a full corpus."""
    text = np.array([token for text in files.values() for token in tokenizer.encode(text)], np.int32)
    draw = np.random.default_rng(0)
    prompt = text[:_HISTORY_TOKENS]
    corpora = Corpora(tenant_tokens=_CORPUS_TOKENS)
    for _ in range(2 * _CORPUS_TOKENS // _HISTORY_TOKENS):  # real n-grams in a new order, as a project's files are
        lines = draw.permutation(len(text) // 40)[: _HISTORY_TOKENS // 40]
        corpora.add("", np.concatenate([text[40 * line : 40 * line + 40] for line in lines]))
    drafting = Drafting(Acceptance(), corpora)
    begin_s, propose_s, add_s = [], [], []
    for at in range(200):
        began = time.thread_time()
        sources = drafting.begin(prompt, tenant="", given=text[:48].tolist())
        begin_s.append(time.thread_time() - began)
        sources.drafters.pop(0)
        sources.append(text[37 * at : 37 * at + 8].tolist())
        began = time.thread_time()
        for drafter in sources.drafters:
            drafter.propose(sources.history, _DRAFT_TOKENS)
        propose_s.append(time.thread_time() - began)
        added = np.roll(prompt, 37 * at)
        began = time.thread_time()
        corpora.add("", added)
        add_s.append(time.thread_time() - began)
    return {
        "begin_2k_us_p50": statistics.median(begin_s) * 1e6,
        "propose_2k_us_p50": statistics.median(propose_s) * 1e6,
        "propose_2k_us_max": max(propose_s) * 1e6,
        "corpus_add_2k_us_p50": statistics.median(add_s) * 1e6,
        "corpus_add_2k_us_max": max(add_s) * 1e6,
    }


def _read_files() -> dict[str, str]:
    paths = sorted(_SAMPLES.iterdir())
    for module in _MODULES:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            paths.append(Path(spec.origin))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def _choose_places(name: str, text: str) -> Iterator[Place]:
    """Yield places a few characters into lines spread over a file; the rest of the line is not yet written."""
    starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]
    lines = [(start, text[start : text.find("\n", start)]) for start in starts[:-1]]
    long = [(start, line) for start, line in lines if len(line.strip()) >= 4 * _TYPED_CHARS]
    for start, line in long[:: max(1, len(long) // _PLACES_PER_FILE)]:
        at = start + len(line) - len(line.lstrip()) + _TYPED_CHARS
        yield Place(name, text[:at], text[at : at + _TYPED_CHARS], text[start + len(line) :])


def _places_of_rows(path: Path) -> list[Place]:
    places = []
    for row in sample(read_rows(path).usable, _NUM_ROWS):
        hole = row.canonical_solution
        at = len(hole) - len(hole.lstrip()) + _TYPED_CHARS
        places.append(Place(row.path or "", row.prompt + hole[:at], hole[at : at + _TYPED_CHARS], row.suffix))
    return places


def _make_request(number: int, place: Place) -> Request:
    before = (place.before + place.typed)[-_BEFORE_CHARS:]
    return Request(
        request_id=str(number),
        before=before,
        after=place.after[:_AFTER_CHARS],
        cut=before.rfind("\n") + 1,
        path=place.file,
        sampling=SamplingParams(max_tokens=_MAX_TOKENS),
    )
