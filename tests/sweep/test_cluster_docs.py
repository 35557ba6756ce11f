"""The files of `sweeps/cluster`: manifests that their schemas accept, and commands whose flags exist."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray.autoscaler
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from tests.helpers.rayjob_schema import CLAIM, RAY_JOB, RAY_JOB_SPEC, Schema

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "sweeps" / "cluster"
README, DOCKERFILE = (FOLDER / "README.md").read_text(), (FOLDER / "Dockerfile").read_text()
SHELL_BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M)
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
VOLUME_CLAIM, JOB = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
CRD = os.environ.get("IKD_RAYJOB_CRD")  # of `kubectl get crd rayjobs.ray.io -o json`


def commands(text: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell text, without the variables set for them."""
    words: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word and not set(word) <= set("();<>|&"):
                words += [word] if words or not re.match(r"\w+=", word) else []
            elif words:
                yield words
                if words[:2] == ["ray", "exec"]:
                    yield from commands(words[-1])
                words = []


def shell_texts() -> Iterator[str]:
    """Yield everything in the folder that a shell reads."""
    yield from SHELL_BLOCKS
    yield from (line for name, value in CLUSTER.items() if name.endswith("_commands") for line in value)
    yield JOB["spec"]["entrypoint"]


COMMANDS = [command for text in shell_texts() for command in commands(text)]
RAY_COMMANDS = [words[1:] for words in COMMANDS if words[0] == "ray"]
SWEEPS = [words[2:] for words in COMMANDS if words[0] == "python" and words[1].endswith("sweeps/run.py")]


def check_cluster(config: dict[str, Any]) -> None:
    """Check what `ray up` checks before it asks a cloud, and the keys of `provider`, which Ray's schema leaves open."""
    validate_config(prepare_config(copy.deepcopy(config)))
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert config["provider"].keys() <= schema["properties"]["provider"]["properties"].keys()


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each key of nested mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from paths(inner, (*path, key))


def check_job(job: Schema) -> None:
    jsonschema.validate(job, RAY_JOB)


def test_ray_and_kubernetes_accept_the_files():
    check_cluster(CLUSTER)
    check_job(JOB)
    jsonschema.validate(VOLUME_CLAIM, CLAIM)


# Keys below these are paths, names of the cloud, and resources; `gpu` is a name of ours.
FREE = {"file_mounts", "node_config", "limits"}
KEYS = [
    (check, content, path)
    for check, content in ((check_cluster, CLUSTER), (check_job, JOB))
    for path in paths(content)
    if not FREE & set(path[:-1]) and path != ("available_node_types", "gpu")
]


@pytest.mark.parametrize(("check", "content", "path"), KEYS, ids=[".".join(map(str, key[2])) for key in KEYS])
def test_a_misspelt_key_is_refused(check, content, path):
    changed = inner = copy.deepcopy(content)
    for key in path[:-1]:
        inner = inner[key]
    inner[f"{path[-1]}x"] = inner.pop(path[-1])
    with pytest.raises((jsonschema.ValidationError, AssertionError, ValueError, KeyError)):
        check(changed)


@pytest.mark.parametrize("node", CLUSTER["available_node_types"])
def test_the_cloud_knows_the_fields_of_a_node(node):
    botocore = pytest.importorskip("botocore.session", reason="AWS's own client is not installed")
    from botocore.validate import ParamValidator

    ec2 = botocore.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    config = CLUSTER["available_node_types"][node]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    assert ParamValidator().validate(config, shape).generate_report() == ""


def definition() -> Schema:
    """Return the schema of a RayJob's `spec` from KubeRay's own definition."""
    if not CRD:
        pytest.skip("no IKD_RAYJOB_CRD: a file with the custom resource definition rayjobs.ray.io")
    versions = yaml.safe_load(Path(CRD).read_text())["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    return schema["properties"]["spec"]


def closed(schema: Any) -> Any:
    """Return the schema with unknown fields refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False} | changed if "properties" in schema else changed


def test_the_definition_accepts_the_job():
    jsonschema.validate(JOB["spec"], closed(definition()))


def differences(mine: Schema, theirs: Schema, path: str = "spec") -> Iterator[str]:
    """Yield the differences of a schema to the definition that it is a part of."""
    for key in ("type", "enum", "required"):
        if mine.get(key) and sorted(mine[key]) != sorted(theirs.get(key, [])):
            yield f"{path}: {key} {mine[key]}, not {theirs.get(key)}"
    if theirs.get("required") and not mine.get("required"):
        yield f"{path}: {theirs['required']} are required"
    for name, schema in mine.get("properties", {}).items():
        if name in theirs["properties"]:
            yield from differences(schema, theirs["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: not there"
    for key in ("items", "additionalProperties"):
        if isinstance(mine.get(key), dict):
            yield from differences(mine[key], theirs[key], f"{path}.{key}")


def test_the_schema_agrees_with_the_definition():
    assert list(differences(RAY_JOB_SPEC, definition())) == []


def test_every_pod_mounts_the_shared_folder():
    (arguments,) = commands(JOB["spec"]["entrypoint"])
    shared = [arguments[arguments.index(flag) + 1] for flag in ("--output", "--data-dir")]
    assert VOLUME_CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = JOB["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (volume,), (container,) = pod["volumes"], pod["containers"]
        (mount,) = container["volumeMounts"]
        assert volume["persistentVolumeClaim"]["claimName"] == VOLUME_CLAIM["metadata"]["name"]
        assert mount["name"] == volume["name"]
        assert all(Path(folder).is_relative_to(mount["mountPath"]) for folder in shared)


def test_the_image_has_the_jobs_version_of_ray():
    version = JOB["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"FROM rayproject/ray:{version}-" in DOCKERFILE
    texts = (README, DOCKERFILE, (FOLDER / "cluster.yaml").read_text())
    assert [set(re.findall(r"ray\[default\]==([\d.]+)", text)) for text in texts] == [{version}] * 3


def test_the_commands_name_files_that_exist():
    files = {word for command in COMMANDS for word in command if word.startswith("sweeps/cluster/")}
    expected = {FOLDER / name for name in ("cluster.yaml", "Dockerfile", "rayjob.yaml")}
    assert {ROOT / file for file in files} == expected


def test_every_cluster_asks_for_rays_token():
    assert JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert any("RAY_AUTH_MODE=token" in line for line in CLUSTER["initialization_commands"])
    assert any(mount.endswith("/.ray/auth_token") for mount in CLUSTER["file_mounts"])
    assert any("export" in line and "RAY_AUTH_MODE=token" in line for line in SHELL_BLOCKS[0].splitlines())


@pytest.mark.parametrize("command", RAY_COMMANDS, ids=" ".join)
def test_ray_knows_the_flags(command):
    name, *arguments = command
    cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_the_sweep_knows_the_flags(arguments, command_line):
    typer.main.get_command(command_line("run")).make_context("run.py", list(arguments))


def test_the_commands_are_found():
    assert {command[0] for command in RAY_COMMANDS} >= {"start", "up", "get-auth-token", "exec"}
    assert sum(command[0] == "start" for command in RAY_COMMANDS) == 3
    assert len(SWEEPS) >= 2


@pytest.mark.parametrize("text", ["ray start --hed", "A=b ray start --port=x", "x && (ray start --nodes 2)"])
def test_an_unknown_flag_of_ray_is_refused(text):
    name, *arguments = next(command[1:] for command in commands(text) if command[0] == "ray")
    with pytest.raises(click.UsageError):
        cli.commands[name].make_context(name, arguments)
