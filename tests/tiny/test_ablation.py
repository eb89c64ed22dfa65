"""What the ablation of preference arms calls help."""

import dataclasses

import pytest

from judging.promote import Pair
from tiny.ablation import ARMS, COMMON, summary, table
from tiny.promote import TRUTH
from training.recipes import override, tiny_dpo


def run_of(wins: int, psnr: float = 0.1, motion: float = 1.0, drift: float = -0.01) -> dict:
    """20 pairs of 20 prompts, `wins` of them by the judge."""
    pairs = [
        Pair(f"prompt {i}", "", i, 1.0 if i < wins else -1.0, motion, 1.0, {TRUTH: psnr}) for i in range(20)
    ]
    return {"drift": drift, "pairs": [dataclasses.asdict(pair) for pair in pairs]}


@pytest.mark.parametrize(
    ("run", "helps"),
    [
        (run_of(18), True),
        (run_of(11), False),  # 55 %, and chance
        (run_of(18, psnr=-0.1), False),  # what fools the judge is further from the truth
        (run_of(18, motion=0.94), False),  # nearly still
        (run_of(18, drift=0.01), False),  # won by making the loser worse
    ],
)
def test_an_arm_helps_by_every_rule_or_not(run, helps):
    found = summary([run])
    assert found["helps"] is helps
    assert table({"arm": found}).splitlines()[1].endswith("yes" if helps else "no")


def test_more_trainings_of_one_scene_are_no_more_scenes():
    """Three seeds that agree are not three times the evidence."""
    one, three = summary([run_of(13)]), summary([run_of(13)] * 3)
    assert three["pairs"] == 60
    assert three["judge"]["low"] == pytest.approx(one["judge"]["low"], abs=0.05)


def test_every_arm_is_a_recipe():
    recipes = [override(tiny_dpo(), [*COMMON, *settings]) for settings in ARMS.values()]
    assert len({dataclasses.astuple(recipe) for recipe in recipes}) == len(ARMS)
