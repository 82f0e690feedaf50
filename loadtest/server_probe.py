"""`python -m loadtest.server_probe HOST:PORT`: exit code 0 when a server is serving there, for callers without gRPC."""

import sys

from server.client import Client
from server.errors import AddressError

_TIMEOUT_S = 5.0


def is_serving(address: str) -> bool:
    """Tell whether a server is serving at an address."""
    try:
        with Client(address) as client:
            return client.is_serving(timeout_s=_TIMEOUT_S)
    except AddressError:
        return False


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
