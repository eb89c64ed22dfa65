"""From opinions to training pairs: normalise, measure agreement, rank, pair up, hold out.

    scores, choices --rank--> a strength per clip --make_pairs--> (winner, loser, weight), train and held out

`docs/preferences.md` has the formulas and why they are these. `rank` needs choix, `agreement` krippendorff:
both of the `train` extra.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np

from huvidpo.files import hash_file
from preferences.records import (
    Comparison,
    Opinion,
    PreferencesError,
    Rating,
    SegmentComparison,
    comparable,
)

PRIOR = 0.5  # wins, and as many losses, that every clip is given against the field of its category
LEAST_SPREAD = 0.25  # points of 10: the spread of a rater's scores below which it is the hand that wavers
TIE = 0.2  # log-odds: at a smaller gap fewer than 55 in 100 judges would prefer the better clip
EXACT = 1e-6  # log-odds: how exact the fit is; a smaller gap is none
HOLDOUT = 0.25  # share of each category's clips


@dataclass(frozen=True)
class RankedClip:
    """Where a clip stands among those of its category."""

    clip: str  # path relative to the ratings' folder
    sha256: str
    prompt: str
    category: str
    strength: float
    """Bradley-Terry log-odds, mean 0 over the category: P(a beats b) = sigmoid(strength_a - strength_b)."""
    score: float | None
    """Mean of its raters' scores as they gave them, 0..10; None if it was only ever compared."""
    count: int
    """Opinions it took part in."""


@dataclass(frozen=True)
class Pair:
    """Two clips of one category, by path. `weight` grows with the gap; its mean over a list of pairs is 1."""

    winner: str
    loser: str
    weight: float
    labels: tuple[int, ...] = ()
    """Of each segment 1 where the winner is better, -1 the loser, 0 neither; empty: judged as a whole."""


@dataclass(frozen=True)
class Pairs:
    """No clip of `train` is in `held_out`; pairs of one clip of either are in neither."""

    train: list[Pair]
    held_out: list[Pair]
    train_clips: list[str]
    held_out_clips: list[str]


Labels = Mapping[tuple[str, str], tuple[int, ...]]
"""Two clips, either way round -> which most say is better in each segment: 1 the first, -1 the second, 0
neither.
"""


@dataclass(frozen=True)
class Segments:
    """What was said of two clips stretch by stretch of their frames."""

    frames: int = 0
    """Of every clip, the first included; 0 where nobody judged so."""
    segment_frames: int = 0
    labels: Labels = field(default_factory=dict)


# Opinions


def latest(records: Iterable[Opinion]) -> tuple[list[Rating], list[Comparison]]:
    """Scored ratings and comparisons; of a rater who judged the same twice, the last opinion."""
    ratings: dict[tuple, Rating] = {}
    comparisons: dict[tuple, Comparison] = {}
    for record in records:
        if isinstance(record, Comparison):
            comparisons[record.rater, frozenset((record.clip_a, record.clip_b))] = record
        elif record.score is not None:
            ratings[record.rater, record.clip] = record
    return list(ratings.values()), list(comparisons.values())


def normalise(ratings: Iterable[Rating]) -> dict[tuple[str, str], float]:
    """(rater, clip) -> score in standard deviations from that rater's mean over the clip's category.

    Takes away how high a rater scores and how widely, down to LEAST_SPREAD: 5.00 and 5.01 are nearly the same
    opinion. A rater who gave one score only said nothing: all 0.
    """
    groups: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for rating in ratings:
        if rating.score is not None:
            groups[rating.rater, rating.category][rating.clip] = rating.score
    normal = {}
    for (rater, _), scores in groups.items():
        mean, spread = np.mean(list(scores.values())), max(LEAST_SPREAD, float(np.std(list(scores.values()))))
        for clip, score in scores.items():
            # rounded, so that equal opinions are equal numbers
            normal[rater, clip] = round(float((score - mean) / spread), 9)
    return normal


def agreement(records: Iterable[Opinion], *, normalised: bool = True) -> float | None:
    """Krippendorff's alpha (interval) of the scores: 1 perfect, 0 as chance, below 0 systematic dissent.

    Of each rater's normalised scores unless told otherwise. None where nothing can be said: no clip has two
    raters, or everybody gave the same score to everything.
    """
    import krippendorff

    ratings, _ = latest(records)
    values = normalise(ratings) if normalised else {(r.rater, r.clip): r.score for r in ratings}
    raters, clips = (sorted({key[i] for key in values}) for i in (0, 1))
    table = np.full((len(raters), len(clips)), np.nan)
    for (rater, clip), value in values.items():
        table[raters.index(rater), clips.index(clip)] = value
    shared = table[:, (~np.isnan(table)).sum(0) > 1]
    if np.unique(shared[~np.isnan(shared)]).size < 2:
        return None
    return float(krippendorff.alpha(reliability_data=shared, level_of_measurement="interval"))


def by_segment(records: Iterable[Opinion]) -> Segments:
    """Of every two clips that were compared by segments, what most raters say of each.

    Raises PreferencesError where they are of several lengths, of clips or segments, and where whole clips of
    the same category were judged too.
    """
    scores, choices = latest(records)
    told = [c for c in choices if isinstance(c, SegmentComparison)]
    if not told:
        return Segments()
    whole = [*scores, *(c for c in choices if not isinstance(c, SegmentComparison))]
    categories = {c.category for c in told}
    if mixed := [r for r in whole if any(comparable(r.category, one) for one in categories)]:
        raise PreferencesError(
            f"a category is judged by segments and, {len(mixed)} times, whole clips, and pairs are made of "
            "one kind: keep each in a ratings file of its own, and name one with --ratings"
        )
    shapes = sorted({(c.frames, c.segment_frames) for c in told})
    if len(shapes) > 1:
        each = " and ".join(f"{frames} frames by {length}" for frames, length in shapes)
        raise PreferencesError(
            f"segments: clips were judged in {each}, and all have to be in the same: keep the others in a "
            "ratings file of their own"
        )
    votes: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(len(told[0].segments), int))
    for c in told:
        said = np.array([{"a": 1, "b": -1, "tie": 0}[choice] for choice in c.segments])
        votes[c.clip_a, c.clip_b] += said
        votes[c.clip_b, c.clip_a] -= said
    return Segments(*shapes[0], {two: tuple(np.sign(vote).tolist()) for two, vote in votes.items()})


# Order


def rank(records: Sequence[Opinion]) -> list[RankedClip]:
    """Every judged clip with its Bradley-Terry strength: category by category, best first.

    A comparison is a win (a tie half of one for each); two scores of one rater in a category are a shared
    win, sigmoid(gap of the normalised scores) to the higher. Raises PreferencesError for a clip that is
    recorded with two hashes or categories.
    """
    ratings, comparisons = latest(records)
    facts = _facts(ratings, comparisons)
    counts: dict[str, int] = defaultdict(int)
    for judged in [[r.clip] for r in ratings] + [[c.clip_a, c.clip_b] for c in comparisons]:
        for clip in judged:
            counts[clip] += 1
    wins = [*_won_by_score(ratings), *_won_by_choice(comparisons)]
    ranked = []
    for category in sorted({fact[1] for fact in facts.values()}):
        clips = sorted(clip for clip, fact in facts.items() if fact[1] == category)
        for clip, strength in zip(clips, _strengths(clips, wins), strict=True):
            scores = [r.score for r in ratings if r.clip == clip and r.score is not None]
            score = float(np.mean(scores)) if scores else None
            sha256, _, prompt = facts[clip]
            ranked.append(RankedClip(clip, sha256, prompt, category, float(strength), score, counts[clip]))
    return sorted(ranked, key=lambda r: (r.category, -r.strength, r.clip))


def _facts(ratings: list[Rating], comparisons: list[Comparison]) -> dict[str, tuple[str, str, str]]:
    """Clip -> (sha256, category, prompt)."""
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    prompts: dict[str, str] = {}
    for c in comparisons:  # first: its prompt may be empty, a rating's overwrites it
        for clip, sha256 in ((c.clip_a, c.sha256_a), (c.clip_b, c.sha256_b)):
            seen[clip].add((sha256, c.category))
            prompts[clip] = c.prompt
    for r in ratings:
        seen[r.clip].add((r.sha256, r.category))
        prompts[r.clip] = r.prompt
    if torn := sorted(clip for clip, known in seen.items() if len(known) > 1):
        raise PreferencesError(
            f"{len(torn)} clips are recorded with more than one hash or category: {', '.join(torn)}; "
            "they were replaced after somebody had judged them: start a new ratings file"
        )
    return {clip: (*known.pop(), prompts[clip]) for clip, known in seen.items()}


Win = tuple[str, str, float]  # one judgement: `first` won this share of it against `second`, 0..1


def _won_by_score(ratings: list[Rating]) -> Iterator[Win]:
    normal = normalise(ratings)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rating in ratings:
        groups[rating.rater, rating.category].append(rating.clip)
    for (rater, _), clips in groups.items():
        for first, second in combinations(clips, 2):
            gap = normal[rater, first] - normal[rater, second]
            yield first, second, float(1 / (1 + np.exp(-gap)))


def _won_by_choice(comparisons: list[Comparison]) -> Iterator[Win]:
    for c in comparisons:
        yield c.clip_a, c.clip_b, {"a": 1.0, "b": 0.0, "tie": 0.5}[c.answer]


def _strengths(clips: list[str], wins: Iterable[Win]) -> np.ndarray:
    """Maximum-likelihood Bradley-Terry strengths [clips], mean 0, with PRIOR wins and losses for each."""
    import choix

    if len(clips) < 2:
        return np.zeros(len(clips))
    place = {clip: i for i, clip in enumerate(clips)}
    won = np.full((len(clips), len(clips)), PRIOR / (len(clips) - 1))  # keeps strengths finite and connected
    np.fill_diagonal(won, 0)
    for first, second, share in wins:
        if first in place and second in place:
            won[place[first], place[second]] += share
            won[place[second], place[first]] += 1 - share
    return choix.ilsr_pairwise_dense(won, max_iter=10_000)


# Pairs


def check_files(ranked: Iterable[RankedClip], folder: Path) -> None:
    """Raises PreferencesError naming every clip that is not in `folder` as it was when it was judged."""
    problems = []
    for clip in ranked:
        path = folder / clip.clip
        if not path.is_file():
            problems.append(f"{clip.clip} is missing")
        elif hash_file(path) != clip.sha256:
            problems.append(f"{clip.clip} has changed since it was judged")
    if problems:
        raise PreferencesError(f"{folder}: {len(problems)} judged clips:\n  " + "\n  ".join(problems))


def make_pairs(
    ranked: Sequence[RankedClip],
    *,
    tie: float = TIE,
    holdout: float = HOLDOUT,
    seed: int = 0,
    same_prompt: bool = False,
    labels: Labels = MappingProxyType({}),
) -> Pairs:
    """All pairs within a category (with `same_prompt`: and a prompt) whose strengths differ by over `tie`.

    Of a category with `labels`, of segments, the pairs are those clips instead that have any but ties; each
    weighs 1, and clips that were compared are held out together.

    `tie`: log-odds, 0 or more. `holdout`: share of each category's clips, 0..0.5, that are in held-out pairs
    alone; at least two, spread over the order, or with `same_prompt` and several prompts all clips of some
    whose clips are not tied. Raises PreferencesError when a category has too few clips or pairs for that, and
    when nothing is left to train on.
    """
    if not tie >= 0 or not 0 <= holdout <= 0.5:
        raise PreferencesError(f"got tie {tie} and holdout {holdout}, expected tie >= 0 and holdout 0..0.5")
    groups: dict[str, list[RankedClip]] = defaultdict(list)
    for clip in ranked:
        groups[clip.category].append(clip)
    train: list[tuple[RankedClip, RankedClip]] = []
    held: list[tuple[RankedClip, RankedClip]] = []
    held_clips: set[str] = set()
    for category in sorted(groups):
        rng = np.random.default_rng((seed, *category.encode()))  # not changed by other categories
        names = {clip.clip for clip in groups[category]}
        own = {two: label for two, label in labels.items() if names.issuperset(two)}
        sets = _sets(groups[category], same_prompt, own)
        pairs = list(_distinct(groups[category], sets, tie, own))
        paired = {sets[better.clip] for better, _ in pairs}
        chosen = _held_out_sets(groups[category], sets, paired, holdout, rng)
        held_clips |= chosen
        train += [pair for pair in pairs if not any(clip.clip in chosen for clip in pair)]
        held += [pair for pair in pairs if all(clip.clip in chosen for clip in pair)]
    if not train:
        raise PreferencesError(
            f"{len(ranked)} judged clips make no pair to train on: rate more clips, lower the tie threshold "
            f"({tie:g}) or hold out fewer"
        )
    train_clips = [clip.clip for clip in ranked if clip.clip not in held_clips]
    return Pairs(_weighted(train, labels), _weighted(held, labels), train_clips, sorted(held_clips))


def _sets(clips: list[RankedClip], same_prompt: bool, labels: Labels) -> dict[str, str]:
    """Clip -> the name of the set within which it makes pairs."""
    if not labels:
        return {clip.clip: clip.prompt if same_prompt else "" for clip in clips}
    sets = {clip.clip: clip.clip for clip in clips}
    for a, b in labels:
        sets = {clip: sets[a] if name == sets[b] else name for clip, name in sets.items()}
    return sets


def _held_out(clips: list[RankedClip], holdout: float, rng: np.random.Generator) -> set[str]:
    """One clip at random of each of N equal stretches of the order: a held-out pair should not be a tie."""
    if holdout == 0:
        return set()
    count = max(2, round(holdout * len(clips)))
    if len(clips) - count < 2:
        raise PreferencesError(
            f"category {clips[0].category!r}: {len(clips)} judged clips are too few to hold out {count} "
            "and train on pairs of the rest; judge more, or set the hold-out to 0"
        )
    order = sorted(clips, key=lambda clip: (clip.strength, clip.clip))
    stretches = np.array_split(np.arange(len(order)), count)
    return {order[rng.choice(stretch)].clip for stretch in stretches}


def _held_out_sets(
    clips: list[RankedClip],
    sets: Mapping[str, str],
    paired: set[str],
    holdout: float,
    rng: np.random.Generator,
) -> set[str]:
    """All clips of as many of the `paired` sets, drawn at random, as hold `holdout` of the clips in these:
    pairs are of one set, and one whose clips are tied has none to hold out.
    """
    if holdout == 0 or len(set(sets.values())) == 1:  # any two clips make a pair
        return _held_out(clips, holdout, rng)
    if len(paired) == 1:
        raise PreferencesError(
            f"category {clips[0].category!r}: of all prompts but one the clips are tied or were not "
            "compared, which leaves none to hold out: rate more clips, or set the hold-out to 0"
        )
    count = sum(sets[clip.clip] in paired for clip in clips)
    chosen: set[str] = set()
    for name in rng.permutation(sorted(paired))[:-1]:
        chosen |= {clip.clip for clip in clips if sets[clip.clip] == name}
        if len(chosen) >= max(2, round(holdout * count)):
            break
    return chosen


def _distinct(
    clips: list[RankedClip], sets: Mapping[str, str], tie: float, labels: Labels
) -> Iterator[tuple[RankedClip, RankedClip]]:
    """(better, worse) of every two clips of a set that are not tied; by `labels` better in more segments."""
    if labels:
        there = {clip.clip: clip for clip in clips}
        for (a, b), label in labels.items():
            if a in there and b in there and any(label) and (sum(label), b) > (0, a):
                yield there[a], there[b]
        return
    for better, worse in combinations(sorted(clips, key=lambda clip: -clip.strength), 2):
        apart = better.strength - worse.strength > max(tie, EXACT)
        if apart and sets[better.clip] == sets[worse.clip]:
            yield better, worse


def _weighted(pairs: list[tuple[RankedClip, RankedClip]], labels: Labels) -> list[Pair]:
    gaps = {(better.clip, worse.clip): better.strength - worse.strength for better, worse in pairs}
    by_gap = [gap for two, gap in gaps.items() if two not in labels]
    mean = np.mean(by_gap) if by_gap else 1.0
    return [
        Pair(*two, 1.0, labels[two]) if two in labels else Pair(*two, float(gap / mean))
        for two, gap in gaps.items()
    ]


def scores_by_clip(records: Iterable[Opinion], rater: str | None = None) -> Mapping[str, float]:
    """Clip -> mean score 0..10 as given, of all raters or of one, best first: what HuViDPO's JSON holds."""
    scores: dict[str, list[float]] = defaultdict(list)
    for rating in latest(records)[0]:
        if rating.score is not None and rater in (None, rating.rater):
            scores[rating.clip].append(rating.score)
    means = {clip: float(np.mean(scores[clip])) for clip in sorted(scores)}
    return dict(sorted(means.items(), key=lambda item: -item[1]))
