"""Manifests against schemas, written here from the published reference, of the fields that they use."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

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
    by_kind = {one["kind"]: one for one in read_manifests()}
    name = by_kind["Deployment"]["metadata"]["name"]
    assert by_kind["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == name
    assert by_kind["Service"]["spec"]["selector"] == by_kind["Deployment"]["spec"]["selector"]["matchLabels"]
