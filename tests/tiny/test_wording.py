"""Other words for what the tiny family knows: what is drawn, and where the new text encoder starts."""

import json

import numpy as np
import pytest
import torch

from tiny import clip, wording, world
from tiny.second.networks import build_tokenizer

SCENE = world.Scene("horse", "pixel-art", "mars", "white", 5)


def test_plain_says_the_facts_it_is_given() -> None:
    assert wording.plain(SCENE) == world.caption(SCENE) == "a white horse runs on Mars, pixel art style"
    assert wording.plain(SCENE, colour=False, place=False, style=False) == "a horse runs"


def test_drawn_texts_stand_beside_the_facts_they_name() -> None:
    rng = np.random.default_rng(0)
    drawn = [wording.draw(SCENE, rng) for _ in range(300)]
    own = [said for said in drawn if said.text == said.plain]
    others = [said for said in drawn if said.text != said.plain]
    assert 0.15 < len(own) / len(drawn) < 0.4
    assert len({said.text for said in others}) > 0.9 * len(others)
    for said in others:
        named = any(word in said.text.lower() for word in ("pixel", "8 bit", "retro", "video game"))
        assert not named or said.plain.endswith("pixel art style")
    assert any(said.text.endswith(", pixel art style") for said in others), "the style as the service adds it"


@pytest.fixture(scope="module")
def towers() -> tuple[wording.Tower, wording.Tower]:
    """A fresh CLIP's text tower, and the one that starts from it."""
    torch.manual_seed(0)
    old_tokenizer, tokenizer = clip.build_tokenizer(), build_tokenizer()
    old = clip.build(old_tokenizer)
    new = wording.start(old, old_tokenizer, tokenizer)
    return (
        wording.Tower(wording.text_tower(old).eval(), old_tokenizer),
        wording.Tower(wording.text_tower(new).eval(), tokenizer),
    )


def test_the_new_tower_starts_as_the_old_one(towers: tuple[wording.Tower, wording.Tower]) -> None:
    old, new = towers
    texts = [wording.plain(SCENE), "a waterfall flows at night", ""]
    lengths = [len(old.tokenizer(text).input_ids) for text in texts]
    assert lengths == [len(new.tokenizer(text).input_ids) for text in texts], "both cut these alike"
    with torch.no_grad():
        (last, before), pooled = old.states(texts)
        (my_last, my_before), mine = new.states(texts)
    assert my_last.shape[1] == wording.CONTEXT
    for i, length in enumerate(lengths):
        torch.testing.assert_close(my_last[i, :length], last[i, :length], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(my_before[i, :length], before[i, :length], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine, pooled, rtol=1e-3, atol=1e-4)


def test_the_tokenizer_is_the_same_every_time(towers: tuple[wording.Tower, wording.Tower]) -> None:
    """Else a run that goes on reads its own weights by other numbers."""
    one, two = (json.loads(t.backend_tokenizer.to_str()) for t in (towers[1].tokenizer, build_tokenizer()))
    assert one["model"] == two["model"]


def test_a_text_of_77_tokens_is_read_whole(towers: tuple[wording.Tower, wording.Tower]) -> None:
    new = towers[1]
    long = "a white horse runs on Mars " * 9
    with torch.no_grad():
        states = [new.states([long + last])[1] for last in ("red", "blue")]
    assert not torch.equal(*states)
