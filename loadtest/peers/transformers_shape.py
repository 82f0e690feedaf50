"""Time transformers' greedy decoding of one sequence by a shape of random weights in bfloat16; prints JSON.

    python transformers_shape.py 'CONFIG AS JSON' CONTEXT_TOKENS NEW_TOKENS

On the first GPU that torch sees, else on the CPU. Needs torch and transformers and nothing of this project.
"""

import json
import sys
import time

import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]


def main() -> None:
    """Prefill, then decode token by token with the model's own KV cache, as `generate` does at its fastest."""
    facts = json.loads(sys.argv[1])
    context, count = map(int, sys.argv[2:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.AutoConfig.for_model(**facts)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    seconds = []
    with torch.inference_mode():
        out = model(torch.randint(10, 400, (1, context), device=device), use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(count):
            began = time.perf_counter()
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            token.tolist()  # waits for the device
            seconds.append(time.perf_counter() - began)
    found = {"decode_s": sorted(seconds)[len(seconds) // 2], "device": device, "version": transformers.__version__}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
