"""Words that the tiny family was never trained on: which they are, and what is said of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huvidpo.catalog import load_catalog
from huvidpo.errors import CatalogError
from huvidpo.words import known_words, warnings_of, words_of

CATALOG = load_catalog()
KNOWN = known_words(CATALOG.model("tiny"))
HORSE = CATALOG.category("horse")


def named(prompt: str) -> list[str]:
    """The words that the warning names, if there is one."""
    said = warnings_of(prompt, HORSE, KNOWN)
    return said[0].partition(": ")[2].split(", ") if said else []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a white horse runs on Mars, cartoon style", []),
        ("A WHITE Horse -- runs!! (on mars)...", []),
        ("pixel-art horse", []),
        ("the horse's hair, the horse’s hair", []),
        ("it is there, and they were with an horse, please", []),  # nothing that a picture could show
        ("a zebra runs; a Zebra runs", ["zebra"]),
        ("a horse without hair", ["without"]),  # it would show the hair
        ("a chestnut pony trots through the woods", ["through"]),
        ("two horses run", ["horses", "run"]),  # only "horse", "runs" and "running" were in captions
        ("3 horse 5k", ["3", "5k"]),
        ("un cheval blanc, лошадь, 馬, घोड़ा", ["лошадь", "馬", "घोड़ा"]),
        ("an orange horse", ["orange"]),  # a colour that nothing has
        ("", []),
        ("?! ... 'quoted'", ["quoted"]),
        ("ho\u200brse", ["ho", "rse"]),  # as the tokenizer reads it
    ],
)
def test_which_words_are_named(prompt: str, words: list[str]) -> None:
    assert named(prompt) == words


def test_a_warning_stays_short() -> None:
    many = " ".join(f"word{i}x" for i in range(30)) + " " + "y" * 100
    (said,) = warnings_of(many, HORSE, KNOWN)
    assert said.endswith("word19x and 11 more")
    assert warnings_of("y" * 100, HORSE, KNOWN)[0].endswith(": " + "y" * 40 + "...")


def test_a_model_of_the_worlds_captions_warns_of_nothing() -> None:
    assert known_words(CATALOG.model("sd14")) is None
    assert warnings_of("a zebra", HORSE, None) == ()


def test_the_motion_of_an_added_category_was_trained_on() -> None:
    candle = type(HORSE)("candle", "a candle flame flickers")
    assert warnings_of("a candle flame flickers at night", candle, KNOWN) == ()
    assert warnings_of("a candle flame flickers at night", HORSE, KNOWN) != ()


def test_a_file_that_cannot_be_read_is_refused(tmp_path) -> None:
    model = replace(CATALOG.model("tiny"), words=tmp_path / "none.txt")
    with pytest.raises(CatalogError, match=r"words: .*none.txt cannot be read"):
        known_words(model)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    for word in words_of(text):
        assert word
        assert word == word.lower()
        assert not any(one.isspace() or one in ",.:;!?" for one in word)
    for said in warnings_of(text, HORSE, KNOWN):
        assert not any(ord(one) < 32 for one in said)
