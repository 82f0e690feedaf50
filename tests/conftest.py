"""Settings shared by all tests."""

import os

from hypothesis import settings

# The tests are written for CPUs; a machine with an accelerator must not change what they check.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("cloudcomplete", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cloudcomplete")
