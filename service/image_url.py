"""A picture that a request names by its address, where HUVIDPO_IMAGE_URL_SECONDS allows that. Which addresses
are called at all says outside.py; what comes is read as uploads are, by images.py.
"""

import logging

from huvidpo.errors import InvalidRequest
from service import outside

logger = logging.getLogger(__name__)
FIELD = "image_url"
# What pictures are sent as; stores that were told nothing of a file say one of the last two.
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream", "binary/octet-stream")


async def fetch(url: str, seconds: float, most: int) -> bytes:
    """The file, of at most `most` bytes. Raises InvalidRequest for whatever goes wrong with it."""
    headers = {"Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity"}
    try:
        async with outside.call("GET", url, FIELD, seconds, headers) as answer:
            if answer.is_redirect:
                raise _refuse("the address leads to another one, which is not followed: send that one")
            if answer.status_code != 200:
                raise _refuse(f"the address answered {answer.status_code} instead of a picture")
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type not in MEDIA_TYPES:
                raise _refuse("the address answered with something else than a PNG, JPEG or WebP file")
            data = bytearray()
            async for part in answer.aiter_raw():  # as it is sent: nothing unfolds to more
                data += part
                if len(data) > most:
                    raise _refuse(f"the picture is larger than {most} bytes")
            return bytes(data)
    except TimeoutError:
        raise _refuse(f"the picture did not come within {seconds:.3g} seconds") from None
    except outside.FAILURES as error:
        logger.warning("a picture could not be fetched: %s", type(error).__name__)  # an address may be secret
        raise _refuse("the address cannot be read over https") from None


def _refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}: {reason}", FIELD)
