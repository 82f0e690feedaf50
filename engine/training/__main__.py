"""The recipe's command line: `python -m engine.training corpus | vocabulary | train | decay | export | ...`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from tokenizers import Tokenizer

from engine.training.config import TrainingConfig
from engine.training.corpus import Document, gather, load_documents
from engine.training.errors import CheckpointError, CorpusError, TrainingError
from engine.training.manifest import MANIFEST_PATH, Split, load_manifest
from engine.training.rows import Cursor, make_rows, write_rows
from engine.training.vocabulary import learn_vocabulary, save_vocabulary

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train the starter model.")
console = Console()

DEFAULT_WORK = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudcomplete" / "training"
SPRINT_WORK = DEFAULT_WORK.with_name("sprint")
DEFAULT_OUT = Path(__file__).parents[1] / "starter"
GPU_CONFIG = Path(__file__).with_name("gpu.toml")

Work = Annotated[Path, typer.Option(help="Folder for downloads, corpus and checkpoints, outside the repository.")]
ManifestFile = Annotated[Path, typer.Option(help="Which packages to learn from.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of TrainingConfig fields.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Go on without packages that cannot be had.")]
InitFrom = Annotated[
    Path | None, typer.Option(help="An exported model of the same shape and vocabulary to begin with.")
]
Steps = Annotated[int, typer.Option(help="Steps of the phase; SIGTERM ends it earlier, the same command goes on.")]
Seconds = Annotated[float | None, typer.Option(help="Seconds of the phase instead of steps.")]


def load_config(path: Path | None) -> TrainingConfig:
    """Read a training configuration; without a path, the starter model's own."""
    if path is None:
        return TrainingConfig()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=TrainingConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingError(f"training config {path}: {error}; expected the fields of TrainingConfig") from error


@app.command()
def corpus(
    work: Work = DEFAULT_WORK, manifest: ManifestFile = MANIFEST_PATH, *, allow_missing: AllowMissing = False
) -> None:
    """Gather source text of the manifest's packages."""
    report = gather(load_manifest(manifest), work, allow_missing=allow_missing, console=console)
    console.print_json(msgspec.json.encode(report).decode())


@app.command()
def vocabulary(work: Work = DEFAULT_WORK, config: ConfigFile = None) -> None:
    """Learn the byte-level vocabulary from the training split."""
    size = load_config(config).shape.vocab_size
    texts = (document.text for document in load_documents(work) if document.split == "train")
    save_vocabulary(learn_vocabulary(texts, size), work / "tokenizer.json")
    console.print(f"{size} tokens in {work / 'tokenizer.json'}", markup=False)


@app.command()
def train(
    work: Work = DEFAULT_WORK,
    config: ConfigFile = None,
    steps: Steps = 5000,
    seconds: Seconds = None,
    init_from: InitFrom = None,
) -> None:
    """Train the stable phase, taking up the last checkpoint when there is one."""
    _run_phase(work, load_config(config), steps=steps, seconds=seconds, is_decay=False, init_from=init_from)


@app.command()
def decay(
    work: Work = DEFAULT_WORK,
    config: ConfigFile = None,
    steps: Steps = 600,
    seconds: Seconds = None,
) -> None:
    """Train the decay phase from the last checkpoint: long rows, falling learning rate."""
    _run_phase(work, load_config(config), steps=steps, seconds=seconds, is_decay=True)


@app.command()
def export(
    work: Work = DEFAULT_WORK,
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Where the Hugging Face directory goes.")] = DEFAULT_OUT,
) -> None:
    """Write the last checkpoint as a Hugging Face Llama directory."""
    from engine.training.checkpoint import CheckpointStore
    from engine.training.export import export_model

    store = CheckpointStore(work / "checkpoints", is_reader=True)
    try:
        step = export_model(load_config(config), store, work / "tokenizer.json", out)
    finally:
        store.close()
    console.print(f"step {step} in {out}", markup=False)


@app.command()
def evaluate(
    work: Work = DEFAULT_WORK,
    config: ConfigFile = None,
    lines: Annotated[int, typer.Option(help="Lines of each language.")] = 200,
    length: Annotated[int, typer.Option(help="Tokens of prompt and line together, at most.")] = 1024,
) -> None:
    """Measure the held-out projects: losses, and exact matches of the rest of a line by language."""
    from engine.training.checkpoint import CheckpointStore
    from engine.training.evaluate import measure_exact_matches, measure_losses
    from engine.training.examples import ExampleMaker
    from engine.training.export import last_checkpoint

    settings = load_config(config)
    documents, tokenizer = load_documents(work), _load_tokenizer(work)
    joint = msgspec.structs.replace(settings.examples, joint_share=1.0)
    makers = [
        ExampleMaker(documents, tokenizer, examples, split="held-out", seed=settings.seed)
        for examples in (settings.examples, joint)
    ]
    store = CheckpointStore(work / "checkpoints", is_reader=True)
    try:
        progress, params = last_checkpoint(settings, store)
    finally:
        store.close()
    losses = [
        measure_losses(settings, params, makers[0], num_rows=num_rows, length=row_length)
        for num_rows, row_length in ((settings.num_held_out_rows, settings.row_length), (24, settings.decay_row_length))
    ]
    figures = measure_exact_matches(settings, params, makers[1], lines_per_language=lines, length=length)
    console.print_json(msgspec.json.encode({"step": progress.step, "losses": losses, "lines": figures}).decode())


@app.command()
def rows(
    out: Annotated[Path, typer.Argument(help="JSON Lines for `cloudcomplete evaluate`; gzipped when it ends in .gz.")],
    work: Work = DEFAULT_WORK,
    cursor: Annotated[Cursor, typer.Option(help="Where it is: anywhere in a line, or within an identifier.")] = "line",
    lines: Annotated[int, typer.Option(help="Rows of each language.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed gives other rows.")] = 20,
) -> None:
    """Make rows with known answers from the held-out projects."""
    made = make_rows(load_documents(work), cursor=cursor, per_language=lines, seed=seed)
    counts = write_rows(made, out)
    console.print_json(msgspec.json.encode(dict(sorted(counts.items()))).decode())


@app.command(name="all")
def run_all(
    work: Work = DEFAULT_WORK,
    config: ConfigFile = None,
    manifest: ManifestFile = MANIFEST_PATH,
    out: Annotated[Path, typer.Option(help="Where the Hugging Face directory goes.")] = DEFAULT_OUT,
    steps: Steps = 5000,
    decay_steps: Annotated[int, typer.Option(help="Steps of the decay phase.")] = 600,
    *,
    allow_missing: AllowMissing = False,
) -> None:
    """Do everything that is not done yet, from downloads to the exported model."""
    if not (work / "documents.msgpack").exists():
        corpus(work, manifest, allow_missing=allow_missing)
    if not (work / "tokenizer.json").exists():
        vocabulary(work, config)
    train(work, config, steps=steps)
    decay(work, config, steps=decay_steps)
    export(work, config, out)


@app.command(name="pack")
def pack_corpus(
    out: Annotated[Path, typer.Argument(help="Folder for the packed corpus and vocabulary.")],
    work: Work = DEFAULT_WORK,
) -> None:
    """Pack corpus and vocabulary for `sprint`."""
    from engine.training.sprint import pack

    console.print(f"{pack(work, out) / 2**20:.1f} MiB in {out}", markup=False)


@app.command()
def sprint(
    packed: Annotated[Path, typer.Argument(help="What `pack` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for what is to come back.")],
    config: ConfigFile = GPU_CONFIG,
    work: Work = SPRINT_WORK,
    stable_seconds: Annotated[float, typer.Option(help="Seconds of the stable phase.")] = 280.0,
    decay_seconds: Annotated[float, typer.Option(help="Seconds of the decay phase; 0: none yet.")] = 160.0,
    init_from: InitFrom = None,
    part_mib: Annotated[int, typer.Option(help="Largest file that may come back.")] = 15,
) -> None:
    """Train and export in one command of limited time, on a machine that keeps nothing (engine/training/README.md)."""
    from engine.training.sprint import unpack, write_parts

    unpack(packed, work)
    train(work, config, seconds=stable_seconds, init_from=init_from)
    if decay_seconds:
        decay(work, config, seconds=decay_seconds)
    export(work, config, work / "model")
    parts = write_parts(work / "model", out, part_mib * 2**20)
    (out / "log.jsonl").write_bytes((work / "log.jsonl").read_bytes())
    console.print(f"{len(parts)} parts in {out}", markup=False)


def _run_phase(
    work: Path,
    config: TrainingConfig,
    *,
    steps: int,
    seconds: float | None,
    is_decay: bool,
    init_from: Path | None = None,
) -> None:
    # JAX and Orbax are imported where they are needed: gathering a corpus needs neither.
    from engine.training.batches import InlineBatches, ProcessBatches
    from engine.training.checkpoint import CheckpointStore
    from engine.training.examples import ExampleMaker
    from engine.training.export import load_exported
    from engine.training.trainer import Trainer

    documents = load_documents(work)
    tokenizer = _load_tokenizer(work)

    def maker_of(documents: list[Document], *, is_training: bool) -> ExampleMaker:
        split: Split = "train" if is_training else "held-out"
        return ExampleMaker(documents, tokenizer, config.examples, split=split, seed=config.seed)

    store = CheckpointStore(work / "checkpoints")
    pool = ProcessBatches(work, config, config.num_processes) if config.num_processes else None
    try:
        batches = pool or InlineBatches(maker_of(documents, is_training=True))
        trainer = Trainer(config, batches, maker_of(documents, is_training=False), store, work / "log.jsonl")
        resumed = trainer.resume()
        if not resumed and init_from is not None:
            num_tokens, params = load_exported(config, work / "tokenizer.json", init_from)
            trainer.begin_from(params, num_tokens)
            console.print(f"begun with {init_from}, which has read {num_tokens:,} tokens", markup=False)
        else:
            console.print(f"{'resumed' if resumed else 'begun'} at step {trainer.progress.step}", markup=False)
        if is_decay:
            if not resumed:
                raise CheckpointError(
                    "no checkpoint to decay from; expected a trained one; run `python -m engine.training train`"
                )
            trainer.begin_decay(num_s=seconds) if seconds else trainer.begin_decay(num_steps=steps)
        elif trainer.progress.phase == "decay":
            console.print("the stable phase is over: the last checkpoint is in its decay phase", markup=False)
            return
        limits = {} if is_decay else {"num_s": seconds} if seconds else {"num_steps": steps}
        if not trainer.run(**limits, console=console):
            console.print("stopped by a signal; the same command goes on from here", markup=False)
            raise typer.Exit(130)
    finally:
        store.close()
        if pool:
            pool.close()


def _load_tokenizer(work: Path) -> Tokenizer:
    path = work / "tokenizer.json"
    if not path.exists():
        raise CorpusError(f"{path} is missing; expected a vocabulary; run `python -m engine.training vocabulary`")
    return Tokenizer.from_file(str(path))


def main() -> None:
    """Run the command line; a failure is one line, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it does as asked
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except TrainingError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
