"""Every command of trainers, judging, exporter and pages in README and docs is one that its parser takes."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NO_PARSER = {"service.keys"}  # it takes words alone
COMMAND = re.compile(
    r"^(?:\w+=\S* +)*(?:\S+/)?python -m (?P<module>(?:training|judging|export|service)\.\w+)(?P<rest>.*)$"
)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of a page's commands, unless something is left out of them (`...`)."""
    for block in re.findall(
        r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.match(line.strip())
            if found and found["module"] not in NO_PARSER and "..." not in line:
                yield found["module"], shlex.split(found["rest"], comments=True)


WRITTEN = [(page.name, *command) for page in PAGES for command in commands(page)]


def test_the_pages_are_read() -> None:
    names = [module for page, module, _ in WRITTEN if page == "new-category.md"]
    assert {"training.check", "training.motion", "training.dpo", "training.merge", "judging.promote"} <= set(
        names
    )
    assert len(WRITTEN) > 12


@pytest.mark.parametrize(("page", "module", "arguments"), WRITTEN)
def test_a_command_is_one_that_its_parser_takes(page: str, module: str, arguments: list[str]) -> None:
    parser = importlib.import_module(module)._parser()
    try:
        parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page} says python -m {module} {shlex.join(arguments)}")
