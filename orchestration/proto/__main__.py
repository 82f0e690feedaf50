"""`python -m orchestration.proto`: generate the gRPC code beside KEDA's interface file. Needs grpcio-tools."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTO = "orchestration/proto/externalscaler.proto"


def generate(out: Path) -> None:
    """Write the generated modules below `out`; exits with protoc's code when it fails."""
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{ROOT}", *outputs, str(ROOT / PROTO)])
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    generate(ROOT)
