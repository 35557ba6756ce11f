"""No input is ever unpickled, run as code, or passed to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ikd_ray.distill import teacher_files

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("ikd_ray", "sweeps") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("torch.load", "torch.hub.load", "torch.jit.load", "os.system", "os.popen", "pandas.read_pickle"),
    *(f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader")),
    *("datasets.load_from_disk", "huggingface_hub.hf_hub_download", "huggingface_hub.snapshot_download"),
}
NO_REMOTE_CODE = "NO_REMOTE_CODE"  # ikd_ray.distill.teacher_files: trust_remote_code=False


def dangers(source: str) -> Iterator[str]:
    """Yield a line for everything that a source file must not do."""
    tree = ast.parse(source)
    full = names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
            if bad := MODULES & {name.split(".")[0] for name in imported}:
                yield f"line {node.lineno}: imports {', '.join(bad)}"
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {problem}" for problem in problems(node, full))


def names(tree: ast.AST) -> dict[str, str]:
    """Return the full names behind the names that a file imports: {"np": "numpy"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    return found


def problems(call: ast.Call, full: dict[str, str]) -> Iterator[str]:
    first, dot, rest = ast.unparse(call.func).partition(".")
    name = full.get(first, first) + dot + rest
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    unpacked = {ast.unparse(word.value) for word in call.keywords if word.arg is None}
    if name in CALLS | BUILTINS:
        yield name
    if name == "numpy.load" and given.get("allow_pickle") != "False":
        yield "numpy.load without allow_pickle=False"
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        yield f"{name} with pickles or a shell"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{name} with code from outside"
    if name.endswith(".from_pretrained"):
        if NO_REMOTE_CODE not in unpacked:
            yield f"{name} without {NO_REMOTE_CODE}"
        if "Model" in name and given.get("use_safetensors") != "True":
            yield f"{name} without use_safetensors=True"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path):
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "from joblib import load",
        "eval(text)",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "AutoConfig.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True, **NO_REMOTE_CODE)",
        "AutoModel.from_pretrained(path, **NO_REMOTE_CODE)",
    ],
)
def test_the_test_sees_it(source):
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "AutoModel.from_pretrained(path, use_safetensors=True, **NO_REMOTE_CODE)",
    ],
)
def test_the_test_lets_the_rest_be(source):
    assert not list(dangers(source))


def test_the_one_switch_is_off():
    assert teacher_files.NO_REMOTE_CODE == {"trust_remote_code": False}
