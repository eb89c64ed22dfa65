"""Terms in texts of people who do not want them to be found, and in those of people who meant no harm."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.spelling import _ALIKE, _INSTEAD, Term, Text

ROOT = Path(__file__).parents[2]
TERMS = [
    "ass",
    "cunt",
    "cock",
    "gun",
    "kill",
    "hell",
    "nazi",
    "penis",
    "rape",
    "sex",
    "tit",
    "cocaine",
    "machine gun",
]


def says(text: str, *terms: str) -> bool:
    read = Text(text)
    return any(True for term in terms for _ in Term(term).spans(read))


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("gun", "a GUN!"), ("gun", "'gun'"), ("gun", "gun's"), ("gun", "toy-gun"), ("arme", "l'arme"),
        ("gun", "g\u200bu\u00adn"), ("gun", "g\x00un"), ("gun", "g\U000e0067un"),
        ("gun", "g\ufe0fu\u115fn"), ("gun", "g\u200aun"), ("gun", "gün"),
        ("gun", "g\u0336u\u0336n\u0336"), ("gun", "g\u00a8un"), ("gun", "ＧＵＮ"), ("gun", "𝓰𝓾𝓷"),
        ("gun", "ⓖⓤⓝ"), ("gun", "🅖un"), ("gun", "🇬🇺🇳"), ("gun", "(g)(u)(n)"), ("gun", "ɡᴜɴ"),
        ("gun", "ցսո"), ("sex", "ѕех"), ("horse", "ΗΟRSE"), ("horse", "НORSE"), ("ass", "@ss"),
        ("ass", "a55"), ("ass", "4s5"), ("ass", "@$s"), ("kill", "k1ll"), ("kill", "k!|l"),
        ("kill", "kiII"), ("kill", "KlLL"), ("nazi", "n4z!"), ("cocaine", "c0ca1n3"), ("gun", "6un"),
        ("gun", "g.u.n"), ("gun", "g u n"), ("gun", "a g  u  n"), ("gun", "g_u_n"), ("gun", "g,u,n"),
        ("gun", "g|u|n"), ("gun", "g🔥u🔥n"), ("gun", "gu.n"), ("gun", "g....u....n"),
        ("aba", "ab a b a"), ("machine gun", "MACHINE\ngun"), ("machine gun", "machine-g.u.n"),
        ("machine gun", "m a c h i n e  g u n"), ("machine-gun", "machinegun"),
        ("machine-gun", "machine gun"), ("AK-47", "an ak47"), ("ak-47", "AK 47"), ("4chan", "4CHAN"),
        ("наркотики", "НАРКОТИКИ"), ("наркотики", "н.а.р.к.о.т.и.к.и"), ("枪", "一把枪在桌上"),
        ("1488", "14-88"),
    ],
)  # fmt: skip
def test_found(term: str, text: str) -> None:
    assert says(text, term)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("cunt", "Scunthorpe"), ("cunt", "S-c-u-n-t-h-o-r-p-e"), ("ass", "grass"), ("ass", "g.r.a.s.s"),
        ("ass", "gr\u00adass"), ("ass", "cl@$$"), ("ass", "455"), ("ass", "ass@ssin"), ("sex", "Essex"),
        ("cock", "peacock"),
        ("hell", "he'll say hello"), ("hell", "he’ll"), ("whore", "who're"), ("penis", "the pen is red"),
        ("penis", "a pen, is it"), ("penis", "a pen—is it"), ("penis", "a pen...is it"),
        ("sex", "it's e x"), ("asp", "W.A.S.P."), ("anal", "c.a.n.a.l"), ("fail", "fall"), ("ill", "lil"),
        ("god", "good"), ("machine gun", "machinegun"), ("gun", "guns"), ("sm", "S M"), ("ak", "4K"),
        ("she", "s/he"), ("1488", "488"), ("machine gun", "a gun machine"), ("sex", "0.53x"),
        ("gos", "the 90s"), ("aid", "4 1 d"),
    ],
)  # fmt: skip
def test_not_found(term: str, text: str) -> None:
    assert not says(text, term)


@pytest.mark.parametrize("text", ["", " ", "!!", "a$$", "f*ck", "g?n", "\u200b"])
def test_what_is_no_term(text: str) -> None:
    with pytest.raises(ValueError, match=r"it has no letter and no digit|cannot be part of a term"):
        Term(text)


def spellings(letter: str) -> list[str]:
    """What is read as the letter."""
    alike = [one for shown in {letter, letter.upper()} for one in _ALIKE.get(shown, "")]
    wide = [chr(ord(one) + 0xFEE0) for one in (letter, letter.upper())]
    bold = chr(ord(letter) - ord("a") + 0x1D41A)
    accents = [letter + mark for mark in "\u0301\u0308\u0336\u20d2"]
    return [letter, letter.upper(), *alike, *wide, bold, *accents]


UNSEEN = st.sampled_from(
    ["", "", "", "\u200b", "\u200d", "\u00ad", "\u2060", "\ufe0f", "\U000e0061", "\u034f"]
)
AROUND = (
    st.sampled_from(["", "a ", "the (", '"', "one, ", "- "]),
    st.sampled_from(["", " here", ")", '".', "!", ", two"]),
)


@st.composite
def disguised(draw, words: list[str], gaps: list[str], outer_signs: bool) -> tuple[str, str]:
    """A word, and a text that says it: each letter in one of its spellings, one gap between all of them.
    `outer_signs`: also its first and last; they may be none of its letters.
    """
    word = draw(st.sampled_from(words))
    gap = draw(st.sampled_from(gaps))
    kept = draw(st.integers(0, 1))  # one of the first two stays a letter: else it may be a number
    letters = []
    for i, letter in enumerate(word):
        may = i != kept and (outer_signs or 0 < i < len(word) - 1)
        signs = [one for one in _INSTEAD.get(letter, "") if one not in "|!+(ı"] if may else []
        letters.append(draw(st.sampled_from(spellings(letter) + signs)) + draw(UNSEEN))
    return word, draw(AROUND[0]) + gap.join(letters) + draw(AROUND[1])


WORDS = [term for term in TERMS if " " not in term]


@given(disguised(WORDS, ["", "", ".", "-", "_", "*", " ", "  ", ", ", "🔥"], outer_signs=True))
@example(("kill", "кꙇⅼl"))
def test_whatever_the_disguise_it_is_found(found: tuple[str, str]) -> None:
    term, text = found
    assert says(text, term), [unicodedata.name(one, "?") for one in text]


INNOCENT = [
    "assassin", "grass", "bass", "class", "scunthorpe", "peacock", "cocktail", "shuttlecock", "begun",
    "gunwale", "skill", "hello", "shell", "title", "grape", "therapist", "drape", "essex", "sextant",
    "nazareth", "happens",
]  # fmt: skip


@given(disguised(INNOCENT, ["", "", ".", "-", "_", "*"], outer_signs=False))
def test_an_innocent_word_stays_one_in_any_disguise(found: tuple[str, str]) -> None:
    assert not says(found[1], *TERMS)


def test_innocent_texts() -> None:
    for name in ("models/tiny/prompts.txt", "LICENSE"):
        assert not says((ROOT / name).read_text(encoding="utf-8"), *TERMS)


@given(st.text(max_size=100), st.sampled_from(TERMS))
def test_any_text_is_read(text: str, term: str) -> None:
    says(text, term)
    assert says(f"{text} {term} {text}", term)
