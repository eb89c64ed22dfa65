"""Numbers of the documents are numbers of the results: each claim is in the files that its section names.

A claim is a number with one of UNITS after it, or one in a table. A file holds it if a number in it, in the
claim's unit, rounds to it as it is written; a factor or share may be the ratio of a held claim of its row to
another of that one's column (in a paragraph: of any two). What is no figure of a result (options, sizes,
aims) is in backquotes, or in SAID.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
UNITS: dict[str, Sequence[float]] = {  # unit: factors from what files hold to the unit
    "": (1, 100, 1e3, 1e-3),
    "%": (1, 100),
    "x": (1,),
    "ms": (1, 1e3),
    "s": (1, 1e-3),
    "min": (1 / 60,),
    "MB": (1, 1e-6),
    "GB": (1, 1e-3, 1e-9),
    "GiB": (1, 1 / 1024, 2**-30),
    "dB": (1,),
    "TFLOP/s": (1, 1e-12),
    "M": (1e-6,),
    "B": (1e-9,),
}
NUMBER = r"(?<![\w.,-])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e-?\d+)?(?<=\d)"
UNIT = r"x(?! \d)|" + "|".join(sorted((re.escape(u) for u in UNITS if u not in ("", "x")), key=len)[::-1])
CLAIM = re.compile(rf"({NUMBER})\s?({UNIT})(?![\w/])")
IN_A_CELL = re.compile(rf"({NUMBER})\s?({UNIT})?(?!\w)")

FAMILY = ("models/tiny/quality.json", "*gate_tiny_*", "*table1_tiny_*.json")
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {  # document -> heading ("": any other) -> files
    "README.md": {
        "": (*FAMILY, "*backends_*", "*service_overhead_*"),
        "At full size": ("*full_width_*", "*gpu_check_*"),
    },
    "models/tiny/README.md": {
        "": (*FAMILY, "models/tiny/judge/table.json"),
        "What it is": ("models/tiny/**/*.safetensors", "tiny/*.py"),
        "Data and training": ("tiny/*.py", "training/recipes.py", "models/tiny/video/unet/training.json"),
    },
    "docs/judge.md": {
        "": ("models/tiny/judge/*", "*gate_tiny_*"),
        "Other views": ("models/tiny/judge/views.json", "*views_tiny_*"),
        "Other words": ("*wordings_tiny_*", "tiny/wording.py"),
        "Fewer steps": ("models/tiny/judge/table.json", "*few_steps_tiny_*"),
    },
    "docs/full-size.md": {"": ("*full_width_*", "*gpu_check_*", "huvidpo/data/models.toml")},
    "docs/capacity.md": {"": ("*capacity_*", "*gpu_check_*")},
    "docs/performance.md": {
        "On a CPU": ("*backends_*",),
        "The service under load": ("*service_overhead_*",),
        "What goes first": ("*scheduling_*",),
        "Categories in memory": ("*categories_resident_*", "*soak_*"),
        "What the gateway keeps": ("*soak_*",),
        "Categories in a batch": ("*mixed_batch_*",),
        "Training": ("*dpo_memory_*", "*gpu_check_*"),
        "Export and build without a GPU": ("*export_full_size_*", "*parity_tiny_*"),
        "On a GPU": ("*gpu_check_*",),
        "Options": ("*options_*",),
    },
}
SAID = {
    "models/tiny/README.md": ("288",),  # 96 prompts, three pictures each
    "docs/performance.md": (
        "1.1x", ".9x",  # aims
        "115MB",  # 8 of the 14.3 MB that one whole network takes
        "95%",  # of an interval
        "19%",  # what 0.81x leaves of the whole
    ),
}  # fmt: skip


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading, block) of a document: a block is a table or a paragraph; code is left out."""
    heading = ""
    for block in re.split(r"\n\s*\n", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        if found := re.match(r"#+ (.*)", block):
            heading = found[1]
        elif not block.startswith("    "):
            yield heading, re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", block)


class Claim(NamedTuple):
    """A number as it is written; where in a table: (row, column). A paragraph is one row and one column."""

    number: str
    unit: str
    place: tuple[int, int] = (0, 0)


def claims(block: str) -> list[Claim]:
    """Every claim; a table's columns have units in their headings, the first one has names."""
    if not block.startswith("|"):
        return [Claim(*found) for found in CLAIM.findall(block)]
    header, _, *rows = (row.split("|")[2:] for row in block.splitlines())
    found = []
    for row, column in itertools.product(range(len(rows)), range(len(header))):
        title = header[column].strip()
        of_column = next((unit for unit in UNITS if title == unit or title.endswith(f", {unit}")), "")
        cell = rows[row][column] if column < len(rows[row]) else ""
        found += [Claim(n, unit or of_column, (row, column)) for n, unit in IN_A_CELL.findall(cell)]
    return found


@cache
def held(patterns: tuple[str, ...]) -> list[float]:
    """Every number in some files, and of networks how many parameters they have."""
    places = [f"benchmarks/results/{pattern}" if pattern[0] == "*" else pattern for pattern in patterns]
    files = [file for place in places for file in sorted(ROOT.glob(place))]
    assert files, places
    texts = [
        str(parameters(file)) if file.suffix == ".safetensors" else file.read_text(encoding="utf-8")
        for file in files
    ]
    numbers = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", "\n".join(texts).replace("_", ""))
    return sorted({float(number) for number in numbers})


def parameters(file: Path) -> int:
    with safe_open(file, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def written(number: str) -> tuple[float, float]:
    """A number and half a unit of its last digit."""
    mantissa, _, exponent = number.replace(",", "").lstrip("+-").partition("e")
    power = int(exponent or 0)
    return float(mantissa) * 10**power, 0.5000001 * 10 ** (power - len(mantissa.partition(".")[2]))


def is_held(number: str, unit: str, numbers: list[float]) -> bool:
    value, half = written(number)
    return any(abs(factor * one - value) <= half for factor in UNITS[unit] for one in numbers)


def is_ratio(claim: Claim, among: list[Claim]) -> bool:
    """Of one of its row to another of that one's column and unit, as far as their rounding says."""
    value, half = written(claim.number)
    for one, other in itertools.permutations(among, 2):
        if (one.place[0], one.unit, one.place[1]) != (claim.place[0], other.unit, other.place[1]):
            continue
        (x, dx), (y, dy) = written(one.number), written(other.number)
        if y > dy and (x - dx) / (y + dy) - half <= value <= (x + dx) / (y - dy) + half:
            return True
    return False


def unheld(document: str, text: str) -> list[str]:
    """The claims of a document's text that no file of its section holds."""
    wrong, files = [], SOURCES[document]
    for heading, block in sections(text):
        found = claims(block)
        if not found:
            continue
        numbers = held(files[heading] if heading in files else files[""])
        plain = [claim for claim in found if is_held(claim.number, claim.unit, numbers)]
        for claim in found:
            derived = claim.unit in ("x", "%") and is_ratio(claim, plain)
            if claim not in plain and not derived and claim.number + claim.unit not in SAID.get(document, ()):
                wrong.append(f"{heading}: {claim.number} {claim.unit}".rstrip())
    return wrong


@pytest.mark.parametrize("document", SOURCES)
def test_every_claim_is_held_by_a_file(document: str) -> None:
    assert unheld(document, (ROOT / document).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("| torch bfloat16 | 3.35 |", "| torch bfloat16 | 3.53 |", "On a CPU: 3.53 s"),
        ("| OpenVINO float32 | 2.54 | 0.66x |", "| OpenVINO float32 | 2.54 | 77.77x |", "On a CPU: 77.77 x"),
        ("one step as loaded", "one step in 333.33 ms", ""),  # the name of a row
        ("so it stays.", "so it stays: it would save 5.437 GiB.", "On a GPU: 5.437 GiB"),
    ],
)
def test_a_number_that_no_file_holds_is_found(old: str, new: str, found: str) -> None:
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert old in text
    wrong = unheld("docs/performance.md", text.replace(old, new))
    assert found in wrong if found else not wrong
