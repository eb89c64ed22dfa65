"""Finds a term in a text however it is spelt: in other cases and alphabets, with accents, with what cannot be
seen between its letters, with digits and signs in their place, with its letters apart. Never inside of
another word: `ass` is not in "grass", `hell` not in "he'll", `penis` not in "the pen is".

What looks like a letter is taken for it (after Unicode's TR 39, confusables). Where two readings are possible
both are tried: a sign may stand for a letter or between two, a capital may look like another letter than the
small one does.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache

LEAST_LETTERS = 3  # shorter terms are found as they are only: "A B" and "4K" are no disguise
_EITHER = "ı"  # stands for what may be an i or an l
_ALIKE = {
    "A": "ΑАᎪᗅꓮ", "B": "ꞴΒВᏴᗷꓐ", "C": "ⲤСᏟꓚ𐐕", "D": "Ꭰᗞᗪꓓ", "E": "ΕЕⴹᎬꓰ", "F": "𝈓Ϝᖴꓝ", "G": "ԌᏀᏳꓖ",
    "H": "ΗⲎНᎻᕼꓧ", "J": "ͿЈᎫᒍꓙ", "K": "ΚⲔКᏦᛕꓗ", "L": "𝈪ⳐᏞᒪꓡ𐐛", "M": "ΜϺⲘМᎷᗰᛖꓟ", "N": "ΝⲚꓠ",
    "O": "ΟⲞОՕⵔ𐓂ꓳ𐐄", "P": "ΡⲢРᏢᑭꓑ", "Q": "ⵕ", "R": "𝈖ƦᎡᏒ𐒴ᖇꓣ", "S": "ЅՏᏕᏚꓢ𐐠", "T": "ΤⲦТᎢꓔ", "U": "Ս𐓎ᑌꓴ",
    "V": "𝈍ѴⴸᏙᐯꓦ", "W": "ԜᎳᏔꓪ", "X": "᙭ꞳΧⲬХⵝᚷꓫ", "Y": "ΥⲨУҮᎩᎽꓬ", "Z": "ΖᏃꓜ", "a": "⍺ɑαа",
    "b": "ƄЬᏏᑲᖯвβ", "c": "ⲥсꮯ𐐽", "d": "ԁᏧᑯꓒ", "e": "ꬲеҽε", "f": "ꬵẝք", "g": "ƍց", "h": "һհᏂн",
    "i": "⍳ɩιіꙇꭵᎥ", "j": "ϳј", "k": "кκ", "m": "м", "n": "ոռη", "o": "ꬽοσⲟоჿօ𐓪𐐬", "p": "⍴ρⲣр",
    "q": "ԛգզ", "r": "ꭇꭈᴦⲅгꮁ", "s": "ƽѕꮪ𐑈", "t": "тτ", "u": "ꞟυս𐓶", "v": "νѵꮩ", "w": "ѡԝաꮃω",
    "x": "хᕁᕽχ", "y": "ɣγуүყ", "z": "ꮓ", "ı": "ƖǀΙⲒІӀⵏᛁꓲӏ", "ae": "æ", "oe": "œ",
}  # fmt: skip
_LOOKS = {one: letter for letter, alike in _ALIKE.items() for one in alike}
_NAMED = re.compile(
    r"((NEGATIVE )?(CIRCLED|SQUARED) |REGIONAL INDICATOR SYMBOL |MODIFIER )?(LATIN )?"
    r"(?P<kind>(CAPITAL|SMALL) LETTER|LETTER SMALL CAPITAL|LETTER) "
    r"(TURNED |REVERSED |SIDEWAYS |OPEN |SCRIPT )?(?P<letter>[A-Z])( WITH .*)?"
)
_FILLERS = "\u115f\u1160"  # letters of Hangul that are not seen
_THIN = "\u2005\u2006\u2008\u2009\u200a\u202f\u205f"  # spaces
_SIGNS = "!|+("  # they stand for a letter, or between two
_LETTER_SIGNS = "@$€£¢¥"  # they stand for a letter
_INSTEAD = {
    "a": "4@", "b": "8", "c": "(¢", "e": "3€", "g": "69", "i": f"1!|{_EITHER}", "l": f"1|£{_EITHER}",
    "o": "0", "s": "5$", "t": "7+", "y": "¥", "z": "2",
}  # fmt: skip
_ONE_WAY = str.maketrans(
    {sign: letter for letter, signs in _INSTEAD.items() for sign in signs}
    | dict.fromkeys(("l", *_INSTEAD["l"], *_INSTEAD["i"]), "i")
)
_LETTER = r"[^\W_]"
_GAP = rf"(?:[^\w{re.escape(_SIGNS + _LETTER_SIGNS)}]|_)"
_BEGINS = "".join(f"(?<!{_LETTER}[{_LETTER_SIGNS}]{{{signs}}})" for signs in range(4))  # not inside of one
_BREAK = re.compile(rf"[\s,;:?/\"'`–—]|{_GAP}{{2}}")  # what stands between words, not inside of one
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "HANGUL ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")


class Text:
    """What a text may say to who looks at it: `readings`, each with its letters alone."""

    def __init__(self, text: str):
        folded = [_fold(text, capitals) for capitals in (False, True)]
        apart = [one.translate(dict.fromkeys(map(ord, _SIGNS), ",")) for one in folded]
        self.readings = {one: _letters(one) for one in folded + apart}


class Term:
    """A word, or several. Where it has a space the text has to have a gap, where it has a hyphen it may.

    Raises ValueError for one that cannot be looked for.
    """

    def __init__(self, text: str):
        if signs := set(text) & set(_SIGNS + _LETTER_SIGNS + "*?"):
            raise ValueError(
                f"{text!r}: {min(signs)} cannot be part of a term, write it in letters: its other spellings "
                "are found by themselves"
            )
        self._folded = _fold(text.lower(), capitals=False).replace(_EITHER, "i")
        self._letters = _letters(self._folded)
        if not self._letters:
            raise ValueError(f"{text!r}: it has no letter and no digit")

    def spans(self, text: Text) -> Iterator[tuple[str, int, int]]:
        """Where it is: a reading, start and end in it."""
        for reading, letters in text.readings.items():
            if self._letters in letters:  # most terms of a long list end here
                at = 0
                while found := self._pattern.search(reading, at):
                    at = found.start() + 1
                    if self._is_meant(found):
                        yield reading, *found.span()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = list(re.finditer(f"{_LETTER}+", self._folded))
        letters = "".join(word[0] for word in words)
        spelt = _spelt if len(letters) >= LEAST_LETTERS else re.escape
        pattern = _BEGINS if _spaced(letters[0]) else ""
        for before, word in zip([None, *words], words, strict=False):
            if before:
                gap = self._folded[before.end() : word.start()]
                pattern += f"{_GAP}{'+' if any(map(str.isspace, gap)) else '*'}"
            pattern += f"({spelt(word[0])})"
        return re.compile(pattern + (f"(?![{_LETTER_SIGNS}]*{_LETTER})" if _spaced(letters[-1]) else ""))

    def _is_meant(self, found: re.Match[str]) -> bool:
        if _is_number(found[0]) and not _is_number(self._folded):
            return False  # "455", "0.53x"
        return all(map(_is_word, found.groups())) and not _is_of_longer(found)


def _is_number(text: str) -> bool:
    """One of two digits and more, whatever its unit; or of no letters at all."""
    letters = re.sub(f"{_GAP}+", "", text)
    return letters[:2].isdecimal() or not any(map(str.isalpha, letters))


def _letters(folded: str) -> str:
    """The letters and what may stand for one, each in one way of all that it may be."""
    return re.sub(rf"{_GAP}+", "", folded.translate(_ONE_WAY))


def _spelt(word: str) -> str:
    """A pattern of its letters, whatever stands for or between them."""
    return f"{_GAP}*".join(f"[{re.escape(one + _INSTEAD.get(one, ''))}]" for one in word)


def _is_word(found: str) -> bool:
    """Letters that all stand apart, whatever is between them; else only what may stand inside of a word."""
    return not _BREAK.search(found) or all(len(piece) == 1 for piece in re.split(f"{_GAP}+", found))


def _is_of_longer(found: re.Match[str]) -> bool:
    """Whether letters that stand apart go on beyond it: "g.r.a.s.s", "it's e x"."""
    text, (start, end) = found.string, found.span()
    if not re.search(_GAP, found[0]):
        return False
    if re.search(f"{_LETTER}'$", text[max(0, start - 2) : start]):
        return True
    if _BREAK.search(found[0]):
        return False
    one = f"(?:{_LETTER}|[{_LETTER_SIGNS}])"
    before = re.search(rf"(?<!{_LETTER}){one}{_GAP}(?<!\s)$", text[max(0, start - 3) : start])
    after = re.match(rf"{_GAP}(?<!\s){one}(?!{_LETTER})", text[end : end + 3])
    return bool((before and _is_gap(text[start + 1])) or (after and _is_gap(text[end - 2])))


def _is_gap(character: str) -> bool:
    return re.fullmatch(_GAP, character) is not None


def _spaced(letter: str) -> bool:
    """Whether words of its script have spaces between them."""
    return not unicodedata.name(letter, "").startswith(_UNSPACED)


def _fold(text: str, capitals: bool) -> str:
    """Small letters without accents, and nothing that is not seen. `capitals`: by the looks of their own."""
    seen = "".join(map(_seen, text)).replace("’", "'")
    if capitals:
        seen = "".join(map(_looks, seen))
    # an I after a small letter and an l beside capitals are there because they look alike
    seen = re.sub(rf"(?<=[a-z{_EITHER}])I+", lambda found: _EITHER * len(found[0]), seen)
    seen = re.sub(r"l+(?=[A-Z])|(?<=[A-Z])l+(?![a-z])", lambda found: _EITHER * len(found[0]), seen)
    return "".join(map(_looks, seen.casefold())).lower()  # letters without case may look like capitals


@lru_cache(maxsize=4096)
def _seen(character: str) -> str:
    """What it is made of, without what cannot be seen. A space that hardly can is a dot, as an accent that
    stands alone.
    """
    parts = unicodedata.normalize("NFKD", character)
    if character in _THIN or (parts[0] == " " and len(parts) > 1):
        return "."
    return "".join(part for part in parts if not _unseen(part))


def _unseen(character: str) -> bool:
    if character in _FILLERS or unicodedata.name(character, "").startswith(
        ("COMBINING ", "VARIATION SELECTOR")
    ):
        return True
    return unicodedata.category(character) in ("Cf", "Cc") and character not in "\t\n\r"


@lru_cache(maxsize=4096)
def _looks(character: str) -> str:
    """The ASCII letters or the digit that it looks like, if there are any."""
    if character.isascii():
        return character
    if alike := _LOOKS.get(character):
        return alike
    if found := _NAMED.fullmatch(unicodedata.name(character, "")):
        return found["letter"] if found["kind"] == "CAPITAL LETTER" else found["letter"].lower()
    digit = unicodedata.digit(character, None)
    return character if digit is None else str(digit)
