"""What people said about a folder of clips, as one HTML page that needs no other file."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from huvidpo import video
from preferences.pairs import Pair, RankedClip, agreement, by_segment, check_files, latest, make_pairs, rank
from preferences.records import Opinion, PreferencesError, Rating, ratings_hash, read_records
from preferences.thumbnails import strip

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em .2em 0; text-align: left; border-bottom: 1px solid #ddd; }
img { display: block; }
.note { background: #fff3cd; padding: .5em 1em; }
"""


def report(folder: Path, ratings: Path, *, tie: float, holdout: float, seed: int) -> tuple[str, str]:
    """(HTML page, summary of a few lines). Arguments as `preferences.pairs.make_pairs`.

    Ratings that make no pairs are reported as that; raises PreferencesError for malformed ratings, none at
    all, and clips that are missing or changed.
    """
    records = read_records(ratings)
    if not records:
        raise PreferencesError(f"{ratings} holds no rating: rate the clips with python -m service.rating")
    ranked = rank(records)
    check_files(ranked, folder)
    sections = [
        f"<h1>Preferences: {escape(folder.resolve().name)}</h1>",
        f"<p>{escape(str(ratings))}, sha256 {ratings_hash(ratings)[:16]}</p>",
        _simulated(records),
        _raters(records),
        _agreement(records),
    ]
    for category in sorted({clip.category for clip in ranked}):
        clips = [clip for clip in ranked if clip.category == category]
        sections.append(f"<h2>Order: {escape(category or 'no category')}</h2>{_order(clips, folder)}")
    try:
        labels = by_segment(records).labels
        pairs = make_pairs(ranked, tie=tie, holdout=holdout, seed=seed, labels=labels)
        counted = f"{len(pairs.train)} pairs to train on, {len(pairs.held_out)} held out"
        sections.append(f"<h2>Pairs</h2><p>{counted}; ties below {tie:g} log-odds dropped.</p>")
        sections += [_pairs("Training", pairs.train), _pairs("Held out", pairs.held_out)]
    except PreferencesError as error:
        counted = f"no pairs: {error}"
        sections.append(f"<h2>Pairs</h2><p class=note>{escape(str(error))}</p>")
    summary = f"{len(records)} opinions on {len(ranked)} clips\nagreement {_alpha(records)}\n{counted}"
    page = f"<!doctype html><meta charset=utf-8><title>Preferences</title><style>{STYLE}</style>"
    return page + "\n".join(sections) + "\n", summary


def _simulated(records: Iterable[Opinion]) -> str:
    if all(record.rater != "simulated" for record in records):
        return ""
    return "<p class=note>The rater “simulated” is a rule applied to the clips, not a person.</p>"


def _raters(records: Sequence[Opinion]) -> str:
    rows = []
    for rater in sorted({record.rater for record in records}):
        scored, compared = latest(record for record in records if record.rater == rater)
        scores = [rating.score for rating in scored if rating.score is not None]
        mean, spread = (f"{np.mean(scores):.2f}", f"{np.std(scores):.2f}") if scores else ("", "")
        marked = sum(isinstance(r, Rating) and r.rater == rater and r.criteria is not None for r in records)
        rows.append([rater, len(scores), mean, spread, len(compared), marked])
    header = ["rater", "clips scored", "mean", "standard deviation", "comparisons", "criteria"]
    return "<h2>Raters</h2>" + _table(header, rows)


def _agreement(records: Sequence[Opinion]) -> str:
    raw = agreement(records, normalised=False)
    given = "" if raw is None else f" (of the scores as given: {raw:.3f})"
    return (
        "<h2>Agreement</h2><p>Krippendorff's alpha of the normalised scores: "
        f"<b>{_alpha(records)}</b>{given}. "
        "1 is perfect, 0 is chance; from about 0.67 on the order can be relied on, below ask more raters.</p>"
    )


def _alpha(records: Sequence[Opinion]) -> str:
    value = agreement(records)
    return "unknown (takes two raters of a clip, and scores that differ)" if value is None else f"{value:.3f}"


def _order(clips: Sequence[RankedClip], folder: Path) -> str:
    header = ["", "clip", "strength", "mean score", "opinions", "prompt", ""]
    rows = []
    for place, clip in enumerate(clips, start=1):
        score = "" if clip.score is None else f"{clip.score:.2f}"
        rows.append([place, clip.clip, f"{clip.strength:+.2f}", score, clip.count, clip.prompt])
    pictures = [_thumbnail(folder / clip.clip) for clip in clips]
    return _table(header, rows, pictures)


def _pairs(title: str, pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    ordered = sorted(pairs, key=lambda pair: -pair.weight)
    rows = [[pair.winner, pair.loser, f"{pair.weight:.2f}"] for pair in ordered]
    table = _table(["winner", "loser", "weight"], rows)
    return f"<details><summary>{title}: {len(pairs)}</summary>{table}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], last: Sequence[str] = ()) -> str:
    """`last`: the HTML of one more column; everything else is text."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in row)
        lines.append(f"<tr>{cells}{f'<td>{last[i]}</td>' if last else ''}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _thumbnail(path: Path) -> str:
    frames, _ = video.decode(path)
    buffer = io.BytesIO()
    strip(frames, count=6, height=72).save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
