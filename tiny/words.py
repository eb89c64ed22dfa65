"""Every word of the captions that the family was trained on, for the catalog: `python -m tiny.words`.

From the captions, not from the tokenizer: that has words which no caption ever had, such as "photo".
"""

from collections.abc import Iterator

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.files import write_text
from huvidpo.words import words_of
from tiny import world

FILE = PROJECT_ROOT / "models" / "tiny" / "words.txt"


def parts() -> Iterator[str]:
    """All that `world.caption` puts together."""
    for sentences in world.SENTENCES.values():
        yield from (sentence.format(c="", p="") for sentence in sentences)
    for place in world.PLACES.values():
        yield from place.phrases
    yield from world.COLOURS
    yield from (f"{world.style_words(style)} style" for style in world.STYLES)


def text() -> str:
    """The whole file: a word a line, in order of the alphabet."""
    return "".join(f"{word}\n" for word in sorted(words_of("\n".join(parts()))))


if __name__ == "__main__":
    write_text(FILE, text())
