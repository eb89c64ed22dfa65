"""Imports go one way: tiny -> judging -> training -> preferences -> huvidpo; export and service beside."""

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
}
PACKAGES = tuple(ALLOWED)


def imported_packages(source: str) -> set[str]:
    """Top-level names of everything a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        foreign = (imported_packages(path.read_text()) & set(PACKAGES)) - {package} - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def test_the_rule_sees_every_kind_of_import() -> None:
    source = "import service.app\ndef f():\n    from training import loop\n"
    assert imported_packages(source) == {"service", "training"}
