"""The rooms of the package: which may import which, and that one name means one thing."""

import ast
import importlib
import pkgutil
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

import ntk_tt

ROOT = Path(ntk_tt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each room may import besides itself: the way that data flows, and the leaves beside it.
_LEAVES = {
    "runtime",
    "jacobian",
    "models",
    "data",
    "schedules",
    "optax_chain",
    "optimizer",
    "losses",
    "targets",
}
_WAY = ("features", "kernels", "surrogate", "dynamics", "scaling", "times")
ALLOWED = {
    "runtime": set(),
    "jacobian": {"runtime"},
    "targets": {"runtime"},
    "losses": {"runtime", "targets"},
    "schedules": set(),
    "optax_chain": set(),
    "optimizer": {"runtime", "schedules", "optax_chain"},
    "data": {"runtime"},
    "times": {"runtime"},
    "models": {"runtime", "jacobian"},
    "training": {
        "runtime",
        "models",
        "data",
        "optax_chain",
        "optimizer",
        "losses",
        "targets",
    },
    "features": {"runtime", "jacobian", "losses", "targets"},
    "kernels": {"runtime", "jacobian", "features", "losses", "targets"},
    "surrogate": (_LEAVES - {"data"}) | {"features", "kernels"},
    "dynamics": (_LEAVES - {"data"}) | {"features", "kernels", "surrogate"},
    "scaling": (_LEAVES - {"data"}) | {"features", "kernels", "surrogate", "dynamics"},
    "prediction": _LEAVES | {*_WAY, "training"},
    "report": _LEAVES | {*_WAY, "training", "prediction"},
    "cli": _LEAVES | {*_WAY, "training", "prediction", "report"},
    "__main__": {"cli"},
    "": _LEAVES | {*_WAY, "training", "prediction", "report"},  # the front door
}


def module_of(file: Path) -> str:
    parts = ("ntk_tt", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports_of(file: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports from the package, at any depth; the name is
    empty where the module itself is meant.
    """
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import, which this test cannot follow"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner in MODULES
                found.append((inner, "") if is_module else (str(node.module), alias.name))
    return [(module, name) for module, name in found if module.split(".")[0] == "ntk_tt"]


MODULES = {module_of(file): file for file in FILES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    room = room_of(module)
    for imported, _ in imports_of(MODULES[module]):
        other = room_of(imported)
        # the root says what version this is
        assert other in {room, ""} | ALLOWED[room], (
            f"{module} imports {imported}, but {room or 'the root'} comes before {other}"
        )


@pytest.mark.parametrize("module", MODULES)
def test_what_is_private_to_a_room_stays_in_it(module):
    for imported, name in imports_of(MODULES[module]):
        private = [part for part in (*imported.split("."), name) if part.startswith("_")]
        private = [part for part in private if part != "__version__"]
        assert not private or room_of(imported) == room_of(module), (
            f"{module} imports {imported}.{name}"
        )


def test_no_two_modules_have_one_name():
    by_name = defaultdict(list)
    for module in MODULES:
        by_name[module.rpartition(".")[2]].append(module)
    by_name.pop("__main__", None)
    assert not {name: found for name, found in by_name.items() if len(found) > 1}


# Still to be renamed, each by the room that has it.
SAME_CLASSES = {
    "Source": "a parameter's source in the jaxpr, and a source of images",
    "Convolution": "an equation of a jaxpr, and the layer of a network",
    "BasicBlock": "of the ImageNet ResNets, and of the small one",
}


def test_no_two_classes_have_one_name():
    by_name = defaultdict(list)
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                by_name[node.name].append(module)
    twice = {name: found for name, found in by_name.items() if len(found) > 1}
    assert set(twice) == set(SAME_CLASSES), twice


@pytest.mark.parametrize("module", [each for each in MODULES if "." in each])
def test_no_module_is_shadowed_by_what_its_room_exports(module):
    if module.endswith("__main__"):
        return
    found = importlib.import_module(module)
    above, _, name = module.rpartition(".")
    assert getattr(importlib.import_module(above), name) is found
    assert isinstance(found, ModuleType)


def test_every_module_is_seen():
    walked = {each.name for each in pkgutil.walk_packages(ntk_tt.__path__, "ntk_tt.")}
    assert walked | {"ntk_tt"} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module):
    lines = MODULES[module].read_text().splitlines()
    assert len(lines) <= 400
    # what a checker is told cannot be wrapped
    wide = [line for line in lines if len(re.sub(r"  # (pyright|noqa|ruff).*", "", line)) > 100]
    assert not wide
