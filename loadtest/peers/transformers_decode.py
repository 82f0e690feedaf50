"""Time transformers' greedy decoding of one sequence in float32; prints JSON.

    python transformers_decode.py MODEL_DIR CONTEXT_TOKENS NEW_TOKENS THREADS ROUNDS

Runs in the peers' environment (docs/peers.md).
"""

import json
import sys
import time

import torch  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM  # type: ignore[import-not-found]


def main() -> None:
    """Prefill, then decode token by token with the model's own KV cache, as `generate` does at its fastest."""
    directory = sys.argv[1]
    context, count, threads, rounds = map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds):
            out = model(torch.randint(10, 4000, (1, context)), use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            for _ in range(count):
                began = time.perf_counter()
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
                seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps({"decode_s": sorted(seconds)[len(seconds) // 2]}) + "\n")


if __name__ == "__main__":
    main()
