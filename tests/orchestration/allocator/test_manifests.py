"""Manifests against schemas, written here from the published reference, of the fields that they use."""

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from cloudcomplete.commands import allocator as allocator_command
from cloudcomplete.config import load_settings

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
TEXT = {"type": "string", "minLength": 1}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


NAMES = {"type": "object", "additionalProperties": TEXT}
METADATA = closed(["name"], name=TEXT, labels=NAMES)
CONTAINER = closed(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    args={"type": "array", "items": TEXT},
    ports={"type": "array", "items": closed(["containerPort"], name=TEXT, containerPort=PORT)},
    readinessProbe=closed(["grpc"], grpc=closed(["port"], port=PORT), periodSeconds={"type": "integer"}),
    resources=closed([], requests=NAMES, limits=NAMES),
)
POD = closed(
    ["containers"],
    containers={"type": "array", "minItems": 1, "items": CONTAINER},
    terminationGracePeriodSeconds={"type": "integer", "minimum": 30},
)
LABELS = closed(["matchLabels"], matchLabels=NAMES)
TEMPLATE = closed(["metadata", "spec"], metadata=closed([], labels=NAMES), spec=POD)
TRIGGER = closed(
    ["type", "metadata"],
    type={"enum": ["external", "external-push"]},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata={"type": "object", "required": ["scalerAddress"], "additionalProperties": TEXT},
)
COUNT = {"type": "integer", "minimum": 0}
SCALED = closed(
    ["scaleTargetRef", "triggers"],
    scaleTargetRef=closed(["name"], name=TEXT),
    pollingInterval=COUNT,
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    advanced={"type": "object"},
    triggers={"type": "array", "minItems": 1, "items": TRIGGER},
)
SPECS = {
    ("apps/v1", "Deployment"): closed(["selector", "template"], selector=LABELS, template=TEMPLATE),
    ("v1", "Service"): closed(
        ["ports"],
        clusterIP={"const": "None"},
        publishNotReadyAddresses={"type": "boolean"},
        selector=NAMES,
        ports={"type": "array", "items": closed(["port"], name=TEXT, port=PORT, targetPort={})},
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED,
}


def read_manifests() -> list[dict[str, Any]]:
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize("manifest", read_manifests(), ids=lambda one: str(one["kind"]))
def test_a_manifest_has_the_fields_that_its_kind_knows(manifest: dict[str, Any]) -> None:
    spec = SPECS[manifest["apiVersion"], manifest["kind"]]
    whole = closed(["apiVersion", "kind", "metadata", "spec"], apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=spec)
    jsonschema.validate(manifest, whole)


def test_what_is_scaled_is_what_is_deployed() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one["spec"] for one in read_manifests()}
    scaled = found["ScaledObject", "cloudcomplete"]
    served = found["Deployment", scaled["scaleTargetRef"]["name"]]
    allocator = found["Deployment", "cloudcomplete-allocator"]
    for service, deployment in (
        ("cloudcomplete", served), ("cloudcomplete-metrics", served), ("cloudcomplete-allocator", allocator)
    ):  # fmt: skip
        assert found["Service", service]["selector"] == deployment["selector"]["matchLabels"]
        assert deployment["template"]["metadata"]["labels"] == deployment["selector"]["matchLabels"]


def test_the_allocator_asks_and_is_asked_at_addresses_that_exist() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one["spec"] for one in read_manifests()}
    [container] = found["Deployment", "cloudcomplete-allocator"]["template"]["spec"]["containers"]
    arguments = parse(container["args"])
    assert arguments.object == "default/cloudcomplete"
    assert load_settings(None, arguments.set).allocator.max_replicas == 24
    assert found["ScaledObject", "cloudcomplete"]["maxReplicaCount"] == 24
    [trigger] = found["ScaledObject", "cloudcomplete"]["triggers"]
    for address, port in ((trigger["metadata"]["scalerAddress"], 50052), (arguments.metrics[0], 9090)):
        place = urlsplit(address if "//" in address else f"//{address}")
        name, namespace, kind = str(place.hostname).split(".")
        assert (namespace, kind, place.port) == ("default", "svc", port)
        [ports] = found["Service", name]["ports"]
        assert ports["port"] == port
    assert arguments.listen.endswith(":50052")
    [server] = found["Deployment", "cloudcomplete"]["template"]["spec"]["containers"]
    assert load_settings(None, [server["args"][-1]]).server.metrics_port == 9090


def parse(words: list[str]) -> argparse.Namespace:
    """Return what the command would read; unknown options end the test."""
    parser = argparse.ArgumentParser()
    assert words[0] == allocator_command.NAME
    allocator_command.add_arguments(parser)
    return parser.parse_args(words[1:])
