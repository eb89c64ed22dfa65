"""Every word of the captions that the family was trained on, for the catalog: `python -m tiny.words`.

From the captions, not from the tokenizer: that has words which no caption ever had, such as "orange".
"""

from collections.abc import Iterator

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.files import write_text
from huvidpo.words import words_of
from tiny import world
from tiny.second import words
from tiny.second.world import STILL

FILE = PROJECT_ROOT / "models" / "tiny" / "words.txt"


def parts() -> Iterator[str]:
    """All that `world.caption` puts together."""
    for sentences in world.SENTENCES.values():
        yield from (sentence.format(c="", p="") for sentence in sentences)
    for place in world.PLACES.values():
        yield from place.phrases
    yield from world.COLOURS
    yield from (f"{world.style_words(style)} style" for style in world.STYLES)


def other_words() -> Iterator[str]:
    """All that `tiny.wording` teaches beside them: of `tiny.second.words` what names things of this world."""
    yield from (text for c in world.CATEGORIES for text in (*words.SENTENCES[c], *words.NOUNS[c]))
    for table, names in (
        (words.COLOUR_WORDS, world.COLOURS),
        (words.PLACE_WORDS, world.PLACES),
        (words.PLACE_TAGS, world.PLACES),
        (words.STYLE_WORDS, world.STYLES),
    ):
        yield from (text for name in names for text in table[name])
    yield from (
        *words.OPENINGS,
        *words.ENDINGS,
        *words.FILLERS,
        *words.LATE_COLOURS,
        *words.CAMERA_WORDS[STILL],
    )
    for language in words.LANGUAGES.values():
        yield from (text for c in world.CATEGORIES for text in language.sentences[c])
        yield from (language.colours[name] for name in world.COLOURS)
        yield from (*language.places.values(), *language.styles.values())


def text() -> str:
    """The whole file: a word a line, in order of the alphabet."""
    said = (part.format("", c="", p="") for part in (*parts(), *other_words()))
    return "".join(f"{word}\n" for word in sorted(words_of("\n".join(said))))


if __name__ == "__main__":
    write_text(FILE, text())
