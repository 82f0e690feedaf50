"""A small made-up corpus: two training projects and one held out, and a vocabulary learned from it."""

import pytest
from tokenizers import Tokenizer

from engine.training.config import ShapeConfig, TrainingConfig
from engine.training.corpus import Document
from engine.training.vocabulary import learn_vocabulary


def source(name: str, num_functions: int) -> str:
    functions = (
        f"def {name}_{i}(left, right):\n    total = left * {i} + right\n    if total > {i}:\n        return total\n"
        f"    return [total - value for value in range({i})]\n\n"
        for i in range(num_functions)
    )
    return f'"""About {name}."""\n\nimport os\n\n\n' + "\n".join(functions)


def document(project: str, name: str, num_functions: int = 12, *, split: str = "train") -> Document:
    return Document(
        project=project, path=f"{project}/{name}.py", language="python", split=split, text=source(name, num_functions)
    )


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    train = [document(project, f"{project}_{i}") for project in ("apples", "pears") for i in range(4)]
    return [*train, document("held", "plums", split="held-out")]


@pytest.fixture(scope="session")
def tokenizer(documents: list[Document]) -> Tokenizer:
    return learn_vocabulary((document.text for document in documents), 320)


@pytest.fixture(scope="session")
def config() -> TrainingConfig:
    shape = ShapeConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=8,
        max_context=128,
    )
    return TrainingConfig(
        shape=shape,
        row_length=64,
        rows_per_step=2,
        decay_row_length=128,
        decay_rows_per_step=1,
        warmup_steps=2,
        held_out_steps=2,
        num_held_out_rows=2,
    )
