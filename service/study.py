"""The paper's user study: clips of several methods, blind and shuffled, marked from 1 to 5 by three criteria.

    python -m service.study serve --methods runs/study                  then open http://127.0.0.1:3100/
    python -m service.study table --methods runs/study --out table.md

`--methods` is a folder with a sub-folder per method. All hold clips of the same prompts: files of the same
names, or a captions.jsonl in which the same captions occur. A sub-folder without captions.jsonl takes the
captions of another one by file name. Marks are appended to ratings.jsonl beside the sub-folders; the table
(also a download of the page) is the mean mark in per cent of 5, as in HuViDPO's table 2. See docs/rating.md.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from huvidpo import command
from huvidpo.files import write_text
from preferences.clips import CAPTIONS_FILE, ClipEntry, ClipFolderError, read_clips
from preferences.records import CRITERIA, RATINGS_FILE, Opinion, PreferencesError, Rating, read_records
from service.http import App
from service.judging import Clip, Judging, to_clip
from service.rating import add_address, jsonl, serve, standalone

SUFFIXES = (".mp4", ".webm", ".mov", ".m4v", ".gif", ".webp")  # what browsers play
RESAMPLES = 2000  # of the bootstrap


def read_study(folder: Path) -> list[Clip]:
    """The clips of all methods, named "method/file". Raises ClipFolderError if they cannot be compared."""
    methods = sorted(path for path in folder.glob("*/") if not path.name.startswith("."))
    if len(methods) < 2:
        raise ClipFolderError(f"{folder}: expected a sub-folder of clips per method, at least two methods")
    entries = {path.name: _read_method(path) for path in methods}
    captions = {e.video: e for listed in entries.values() for e in listed if e.caption}
    for method, listed in entries.items():
        entries[method] = [e if e.caption else _captioned(e, captions, folder / method) for e in listed]
    _check_complete(entries, folder)
    return [
        to_clip(folder, f"{method}/{entry.video}", entry)
        for method, listed in entries.items()
        for entry in listed
    ]


def _read_method(folder: Path) -> list[ClipEntry]:
    """Without captions where the folder has none."""
    if (folder / CAPTIONS_FILE).exists():
        return read_clips(folder)
    videos = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not videos:
        raise ClipFolderError(f"{folder}: no clips; expected {CAPTIONS_FILE} or files {' '.join(SUFFIXES)}")
    return [ClipEntry(video=name, caption="") for name in videos]


def _captioned(entry: ClipEntry, captions: dict[str, ClipEntry], folder: Path) -> ClipEntry:
    if entry.video not in captions:
        raise ClipFolderError(
            f"{folder}: {entry.video} has no caption: no {CAPTIONS_FILE} of any method names such a file"
        )
    other = captions[entry.video]
    return dataclasses.replace(
        entry, caption=other.caption, prompt=other.prompt, style=other.style, category=other.category
    )


def _check_complete(entries: dict[str, list[ClipEntry]], folder: Path) -> None:
    """Raises ClipFolderError unless every method has as many clips of each caption as the others."""
    counts = {method: sorted(entry.caption for entry in listed) for method, listed in entries.items()}
    first, *others = counts
    for method in others:
        if counts[method] != counts[first]:
            odd = sorted(set(counts[method]) ^ set(counts[first]))[:3] or ["the number of clips per caption"]
            raise ClipFolderError(
                f"{folder}: {first} and {method} must show the same captions equally often; they differ in: "
                + "; ".join(odd)
            )


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean mark in per cent of 5, its 95 % confidence interval, and what it was made from."""

    percent: float
    low: float
    high: float
    marks: int
    raters: int


def summarise(records: Sequence[Opinion]) -> dict[str, dict[str, Mean]]:
    """Method -> criterion -> mean. The interval resamples raters (marks of one rater hang together); with a
    single rater it resamples the clips and says nothing of other people.
    """
    marks: dict[str, list[tuple[str, dict[str, int]]]] = {}
    for record in records:
        if isinstance(record, Rating) and record.criteria is not None:
            method = PurePosixPath(record.clip).parts[0]
            marks.setdefault(method, []).append((record.rater, record.criteria))
    return {
        method: {name: _mean([(rater, marks[name]) for rater, marks in given]) for name in CRITERIA}
        for method, given in sorted(marks.items())
    }


def _mean(marks: list[tuple[str, int]]) -> Mean:
    raters = sorted({rater for rater, _ in marks})
    groups = [[mark for r, mark in marks if r == rater] for rater in raters]
    if len(groups) == 1:
        groups = [[mark] for _, mark in marks]
    sums, counts = np.array([(sum(group), len(group)) for group in groups], float).T
    draws = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(
        percent=sums.sum() / counts.sum() * 20,
        low=low * 20,
        high=high * 20,
        marks=len(marks),
        raters=len(raters),
    )


def table(records: Sequence[Opinion]) -> str:
    """The result as a Markdown table."""
    head = ["method", *(f"{name} %" for name in CRITERIA), "clips marked", "raters"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method, means in summarise(records).items():
        cells = [f"{mean.percent:.1f} ({mean.low:.1f} to {mean.high:.1f})" for mean in means.values()]
        one = means[CRITERIA[0]]
        rows.append([method, *cells, str(one.marks), str(one.raters)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    note = "Mean mark (1 to 5) divided by 5; in brackets the 95 % confidence interval, bootstrap over raters "
    note += "(over clips where one person marked them all)."
    return "\n".join([*lines, "", note]) + "\n"


def study(folder: Path) -> App:
    """The page for a study of `folder`. Raises ClipFolderError."""
    exports = {"table.md": lambda judging: table(read_records(judging.file)), "ratings.jsonl": jsonl}
    return standalone(Judging(folder, modes=("study",), read=read_study), exports)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("service.study", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    if args.command == "serve":
        serve(study(args.methods), args.host, args.port)
    else:
        write_text(args.out, table(_records(args.methods)))
        print(args.out)
    return 0


def _records(folder: Path) -> list[Opinion]:
    """Raises PreferencesError when nobody has marked a clip yet."""
    records = read_records(folder / RATINGS_FILE)
    if not summarise(records):
        raise PreferencesError(f"{folder / RATINGS_FILE} holds no marks; collect some with: serve --methods")
    return records


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve_command = commands.add_parser("serve", help="show the page")
    add_address(serve_command)
    table_command = commands.add_parser("table", help="write the result")
    table_command.add_argument("--out", required=True, type=Path, help="Markdown file to write")
    for one in (serve_command, table_command):
        one.add_argument("--methods", required=True, type=Path, help="folder with a sub-folder per method")
    return parser


if __name__ == "__main__":
    sys.exit(main())
