"""Which mesh is made, and which are refused with a remedy."""

import jax
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.mesh import choose_mesh, fewest_stages
from tests.engine.test_stages import shape

MODEL = shape(num_layers=4)


def refused(match: str, **choices: int) -> None:
    with pytest.raises(ConfigError, match=match):
        choose_mesh(EngineConfig(**choices), MODEL, jax.devices())


def test_one_device_is_a_mesh_of_one() -> None:
    assert dict(choose_mesh(EngineConfig(), MODEL, jax.devices()).shape) == {"stage": 1, "tensor": 1}
    assert choose_mesh(EngineConfig(num_stages=0), MODEL, jax.devices()).size == 1


def test_what_cannot_be_divided_is_refused_with_the_remedy() -> None:
    refused(r"8 stages are more than the model's 4 layers", num_stages=8)
    refused(r"a mesh of 4 stages x 1 tensor needs 4 devices, got 1; lower --stages or --tensor", num_stages=4)
    refused(r"the model's 4 query heads cannot be divided by --tensor 3; expected one of 1, 2; use", num_tensor=3)
    refused(r"the model's 2 KV heads cannot be divided by --tensor 4; expected one of 1, 2; use", num_tensor=4)
    refused(r"engine.num_tensor is 0; expected at least 1", num_tensor=0)
    refused(r"engine.num_stages is -1; expected at least 0", num_stages=-1)


def test_an_mlp_that_cannot_be_divided_is_refused() -> None:
    model = shape(num_layers=4, intermediate_size=127)
    with pytest.raises(ConfigError, match=r"MLP of 127 columns cannot be divided by --tensor 2; expected a divisor"):
        choose_mesh(EngineConfig(num_tensor=2), model, jax.devices())


def test_as_few_stages_as_the_memory_allows() -> None:
    needed = MODEL.num_parameters * 4
    assert fewest_stages(MODEL, num_tensor=1, bytes_each=4, device_bytes=2 * needed) == 1
    assert fewest_stages(MODEL, num_tensor=1, bytes_each=4, device_bytes=int(needed * 0.9)) == 2
    assert fewest_stages(MODEL, num_tensor=2, bytes_each=4, device_bytes=int(needed * 0.9)) == 1
    with pytest.raises(ConfigError, match=r"one layer a stage takes .* raise --tensor, or use engine.weights = 'int8'"):
        fewest_stages(MODEL, num_tensor=1, bytes_each=4, device_bytes=1000)
