"""Text files that people wrote, with whatever editor."""

import codecs
from pathlib import Path

from huvidpo.errors import InvalidRequest

# The marks that editors put first, and what they say. Those of UTF-32 begin like those of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """A file's text, without its byte order mark: UTF-8, or what the mark says.

    Raises InvalidRequest, naming the file, the line and the remedy, for one in another encoding: nothing
    tells which.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(
            f"{path.name} line {line}: not {encoding.upper()}, by its byte {error.start}: save the file as "
            f"UTF-8, with `iconv -f WINDOWS-1252 -t UTF-8 {path.name}`, say"
        ) from error
