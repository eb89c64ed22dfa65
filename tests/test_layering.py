"""Imports go one way: tiny -> judging -> training -> preferences -> huvidpo; the others stand aside."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED: dict[str, set[str]] = {
    "huvidpo": set(),
    "preferences": {"huvidpo"},
    "training": {"huvidpo", "preferences"},
    "judging": {"huvidpo", "preferences", "training"},
    "tiny": {"huvidpo", "preferences", "training", "judging"},
    "export": {"huvidpo"},
    "service": {"huvidpo", "preferences"},
    "deploy": {"huvidpo", "service"},
}
PACKAGES = tuple(ALLOWED)


def imported_packages(source: str) -> set[str]:
    """Top-level names of everything a module imports, wherever in it."""
    return {name.partition(".")[0] for name in imported_modules(source)}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        foreign = (imported_packages(path.read_text()) & set(PACKAGES)) - {package} - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def imports_of_modules() -> dict[str, set[str]]:
    """module -> the project's modules that it imports, lazily or not."""
    files = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        files[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return {name: imported_modules(path.read_text()) & files.keys() - {name} for name, path in files.items()}


def imported_modules(source: str) -> set[str]:
    """Dotted names of everything a module imports; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that lie on a circle of imports."""
    left = dict(graph)
    while free := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in free:
            del left[name]
    while free := [name for name in left if not any(name in imports for imports in left.values())]:
        for name in free:  # they import a circle, and are on none
            del left[name]
    return sorted(left)


def test_no_circle_between_modules() -> None:
    assert circles(imports_of_modules()) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_rule_sees_every_kind_of_import() -> None:
    source = "import service.app\ndef f():\n    from training import loop\n"
    assert imported_packages(source) == {"service", "training"}
