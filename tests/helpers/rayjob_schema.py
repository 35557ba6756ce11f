"""JSON schema of the fields that KubeRay 1.7.0 and Kubernetes allow in `sweeps/cluster/rayjob.yaml`.

Written by hand from the custom resource definition `rayjobs.ray.io`, version v1, which is a hundred times as long; it
has only the fields that the manifest may need. `test_the_schema_agrees_with_the_definition` compares the two where the
definition is at hand.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT, NUMBER, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
QUANTITY = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(*required: str, **properties: Schema) -> Schema:
    """Return the schema of an object with these fields and no others."""
    allowed = {"type": "object", "properties": properties, "additionalProperties": False}
    return allowed | {"required": list(required)}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def one_of(*values: str) -> Schema:
    return TEXT | {"enum": list(values)}


AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = fields(limits=AMOUNTS, requests=AMOUNTS)
CONTAINER = fields(
    "name",
    name=TEXT,
    image=TEXT,
    env=listed(fields("name", name=TEXT, value=TEXT)),
    envFrom=listed(fields(secretRef=fields(name=TEXT, optional=TRUTH))),
    resources=RESOURCES,
    volumeMounts=listed(fields("mountPath", "name", mountPath=TEXT, name=TEXT, readOnly=TRUTH, subPath=TEXT)),
)
VOLUME = fields("name", name=TEXT, persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly=TRUTH))
POD_SPEC = fields("containers", containers=listed(CONTAINER), volumes=listed(VOLUME), nodeSelector=TEXTS)
POD = fields(spec=POD_SPEC)
WORKERS = fields(
    *("groupName", "maxReplicas", "minReplicas", "template"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT),
    headGroupSpec=fields("template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=listed(WORKERS),
)
RAY_JOB_SPEC = fields(
    entrypoint=TEXT,
    backoffLimit=NUMBER,
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=NUMBER,
    rayClusterSpec=RAY_CLUSTER,
)
CLAIM_SPEC = fields(
    "accessModes",
    "resources",
    accessModes=listed(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
    storageClassName=TEXT,
    resources=RESOURCES,
)


def resource(version: str, kind: str, spec: Schema) -> Schema:
    return fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of(version),
        kind=one_of(kind),
        metadata=fields("name", name=TEXT, namespace=TEXT),
        spec=spec,
    )


RAY_JOB = resource("ray.io/v1", "RayJob", RAY_JOB_SPEC)
CLAIM = resource("v1", "PersistentVolumeClaim", CLAIM_SPEC)
