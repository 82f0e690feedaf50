"""Convert a model directory to GGUF with llama.cpp's own converter, told that the pre-tokenizer is GPT-2's.

    python convert_to_gguf.py LLAMA_CPP_SOURCE MODEL_DIR OUT.gguf f32|q8_0

The converter knows pre-tokenizers by a checksum of what they do to a text, and so none that was trained elsewhere.
Runs in the peers' environment (docs/peers.md).
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Convert; the converter's own errors are shown as they are."""
    source, model, out, kind = sys.argv[1:]
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]
    from conversion import base  # type: ignore[import-not-found]

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = [str(Path(source) / "convert_hf_to_gguf.py"), model, "--outfile", out, "--outtype", kind]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
