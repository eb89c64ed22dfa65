"""Words of a prompt that its model was never trained on: what it draws for them means nothing.

A model whose catalog entry has a file of `words` was trained on those and no others. Models of the world's
captions have none: nobody could list theirs.
"""

import unicodedata
from collections.abc import Iterable

from huvidpo.catalog import Category, Model
from huvidpo.errors import CatalogError

MOST = 20  # words that one warning names
LONGEST = 40  # characters of each
# Words that stand for nothing a picture could show. "no", "not" and "without" are none of them: a model that
# does not know them shows what they deny.
_EMPTY = """
    a an the this that these those it its he him his she her they them their i my me we our you your there
    here is am are was were be been being has have having had do does did doing will would can could shall
    should may might must and or but so as than then while when where which who whose of to from for into onto
    with at by on in very really just quite some any please
"""


def known_words(model: Model) -> frozenset[str] | None:
    """The words it was trained on; None: any. Raises CatalogError for a file that cannot be read."""
    if model.words is None:
        return None
    try:
        return frozenset(words_of(model.words.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"[models.{model.name}]: words: {model.words} cannot be read: {error}") from error


def words_of(text: str) -> list[str]:
    """Each word once, in order and in lower case, without punctuation and the 's of owners."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    letters = "".join(one if one == "'" or unicodedata.category(one)[0] in "LMN" else " " for one in text)
    words = (word.strip("'").removesuffix("'s") for word in letters.split())
    return list(dict.fromkeys(filter(None, words)))


def warnings_of(prompt: str, category: Category, known: frozenset[str] | None) -> tuple[str, ...]:
    """What a caller should know of the prompt: a sentence that names the words which were never trained on.
    Those of the category's motion were, whoever added it.
    """
    if known is None:
        return ()
    known = known.union(words_of(_EMPTY), words_of(category.motion_prompt))
    strange = [word for word in words_of(prompt) if word not in known]
    return (_sentence(strange),) if strange else ()


def _sentence(words: Iterable[str]) -> str:
    named = [word if len(word) <= LONGEST else f"{word[:LONGEST]}..." for word in words]
    more = f" and {len(named) - MOST} more" if len(named) > MOST else ""
    listed = ", ".join(named[:MOST]) + more
    return f"the model was never trained on these words and does not know what they mean: {listed}"
