"""Serve a model by transformers in float32 as llama.cpp's server would: `GET /health`, `GET /props`, `POST /infill`.

    python transformers_infill.py MODEL_DIR PORT THREADS

Prompts as llama.cpp makes them: PRE, text before, SUF, text after, MID; of a text too long for the window the end of
what is before and the beginning of what is after. Greedy `generate` with a text streamer, one request at a time, since
it batches none; a client that is gone ends it at the next token, or before it begins. Runs in the peers' environment
(docs/peers.md).
"""

import contextlib
import json
import select
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    TextIteratorStreamer,
)

_SUFFIX_SHARE = 0.25


class _Gone(StoppingCriteria):
    """Whether the client has closed its connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def is_gone(self) -> bool:
        """Look, without reading and without waiting."""
        if not select.select([self._connection], [], [], 0)[0]:
            return False
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.is_gone(), dtype=torch.bool)


class _Model:
    """A model directory, and one lock for all who ask."""

    def __init__(self, directory: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.lock = threading.Lock()

    def prompt(self, asked: dict[str, Any]) -> Any:
        """Return the prompt, int64 `[1, T]`, that leaves room for the tokens asked for."""
        room = self._model.config.max_position_embeddings - asked["n_predict"] - 3
        before, after = (
            self._tokenizer.encode(text, add_special_tokens=False)
            for text in (asked["input_prefix"] + asked["prompt"], asked["input_suffix"])
        )
        after = after[: int(room * _SUFFIX_SHARE)]
        before = before[-(room - len(after)) :]
        prefix, suffix, middle = self._tokenizer.convert_tokens_to_ids(
            ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
        )
        return torch.tensor([[prefix, *before, suffix, *after, middle]])

    def stream(self, prompt: Any, new_tokens: int, gone: _Gone) -> Any:
        """Yield pieces of text, until the client is gone."""
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        words = {"max_new_tokens": new_tokens, "do_sample": False, "streamer": streamer, "stopping_criteria": [gone]}
        mask = torch.ones_like(prompt)
        thread = threading.Thread(
            target=self._model.generate, args=(prompt,), kwargs=words | {"attention_mask": mask}, daemon=True
        )
        thread.start()
        try:
            yield from streamer
        finally:
            thread.join()


def handler(model: _Model) -> type[BaseHTTPRequestHandler]:
    """Return what answers each connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Say that it is well, or that it has one slot."""
            self._begin("application/json")
            self.wfile.write(json.dumps({"total_slots": 1} if self.path == "/props" else {"status": "ok"}).encode())

        def do_POST(self) -> None:
            """Stream a completion as server-sent events."""
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._begin("text/event-stream")
            gone = _Gone(self.connection)
            with model.lock, contextlib.suppress(OSError):
                if gone.is_gone():
                    return
                prompt = model.prompt(asked)
                count = prompt.shape[1]
                with contextlib.closing(model.stream(prompt, asked["n_predict"], gone)) as texts:
                    for text in texts:
                        if text:
                            self._say({"content": text})
                self._say({"content": "", "stop": True, "tokens_evaluated": count, "timings": {"prompt_n": count}})

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def _say(self, event: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def main() -> None:
    """Serve on loopback until stopped."""
    directory, port, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(_Model(directory))).serve_forever()


if __name__ == "__main__":
    main()
