"""Where a clip comes from, said in its file by a C2PA manifest, signed with the operator's certificate, and
in its pictures by an invisible watermark (huvidpo/watermark.py), the first 96 bits of the clip's id.

The manifest calls the clip made by a trained model and has an assertion "org.huvidpo.lineage": model,
category, style, seed, sampling, the SHA-256 of the category's weights and the strength of their preferences.
What was asked for in words is not in it. With a certificate every clip is signed; one that cannot be is not
given out. Package: c2pa-python.
"""

import base64
import io
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from huvidpo import watermark
from huvidpo.catalog import Catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import InvalidRequest
from huvidpo.video import decode, read_image
from service.errors import NotFound
from service.lineage import weights_of
from service.settings import Settings

LINEAGE = "org.huvidpo.lineage"
LOOKED_AT = 12  # frames of a clip that are read for a mark
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Marks:
    """Raises ValueError, naming the variable, for a certificate that cannot sign."""

    def __init__(self, settings: Settings, catalog: Catalog):
        self._model, self._catalog = settings.model, catalog
        self._info = _signer_info(settings)
        try:
            self.sign(_SMALLEST, "image/gif", {})  # now, not at the first clip
        except Exception as error:  # c2pa's own, of several kinds
            raise ValueError(f"HUVIDPO_C2PA_CERTIFICATE and HUVIDPO_C2PA_KEY cannot sign: {error}") from error

    def mark(self, data: bytes, media_type: str, clip: ClipRequest, ran_on: str | None = None) -> bytes:
        """The clip's file with its manifest. `ran_on`: SHA-256 of its weights; None: those of the catalog.
        Raises C2paError.
        """
        weights = ran_on or (weights_of(self._catalog, self._model, clip.category) or {}).get("sha256")
        options = {name: value for name, value in asdict(clip.options).items() if value is not None}
        facts = {"model": self._model, "category": clip.category, "style": clip.style, "seed": clip.seed}
        of_weights = {"weights": weights, "preference_strength": clip.preference_strength}
        return self.sign(data, media_type, facts | of_weights | {"sampling": options})

    def sign(self, data: bytes, media_type: str, facts: dict[str, Any]) -> bytes:
        import c2pa

        manifest = {
            "claim_generator_info": [{"name": "HuViDPO"}],
            "assertions": [
                {
                    "label": "c2pa.actions",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": MADE}]},
                },
                {"label": LINEAGE, "data": facts},
            ],
        }
        signed = io.BytesIO()
        with c2pa.Signer.from_info(self._info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
            builder.sign(signer, media_type, io.BytesIO(data), signed)
        return signed.getvalue()


def marks_of(settings: Settings, catalog: Catalog) -> Marks | None:
    """None without a certificate. Raises ValueError as `Marks`."""
    return Marks(settings, catalog) if settings.c2pa_certificate or settings.c2pa_key else None


def watermark_of(settings: Settings) -> Callable[[str], str] | None:
    """Id of a clip -> base64 of the signs its frames are marked with; None where marks are off. A runner
    needs no key. Raises ValueError, naming the variable, for a key that cannot be read or made.
    """
    if settings.watermark == "off":
        return None
    key = watermark_key(settings)

    def signs(id: str) -> str:
        hidden = bytes.fromhex(id.removeprefix("video_")[: 2 * watermark.ID_BYTES])
        return base64.b64encode(watermark.signs(key, hidden)).decode("ascii")

    return signs


def watermark_key(settings: Settings) -> bytes:
    """Of HUVIDPO_WATERMARK_KEY, or of a file in the data folder, made when missing. Raises ValueError."""
    if settings.watermark_key:
        key = _read("watermark_key", settings.watermark_key)
    else:
        file = Path(settings.data).expanduser() / "watermark.key"
        try:
            if not file.exists():
                _make_key(file)
            key = file.read_bytes()
        except OSError as error:
            raise ValueError(f"HUVIDPO_DATA: {file} cannot be read or made: {error.strerror}") from error
    if len(key) < 16:
        raise ValueError(
            f"HUVIDPO_WATERMARK_KEY: got {len(key)} bytes, expected 16 or more: head -c 32 /dev/urandom > F"
        )
    return key


def _make_key(file: Path) -> None:
    """Whole or not at all; of several that make one at once, the first's stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        target.write(secrets.token_bytes(32))
    try:
        os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def read_watermark(data: bytes, settings: Settings) -> str | None:
    """Our mark in a video or picture: the first 24 digits of the clip's id. Raises InvalidRequest."""
    if _kind(data) in ("image/png", "image/jpeg"):
        frames = read_image(data)[None]
    else:
        frames = decode(data, pick=_some)[0]
    found = watermark.read(frames, watermark_key(settings))
    return None if found is None else found.hex()


def _some(count: int, fps: float) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(int))


def verify(data: bytes, settings: Settings) -> dict[str, Any]:
    """What the manifest and the watermark of an mp4, gif, webp or picture say; nothing is fetched.

    state: "trusted" (signed under an authority of HUVIDPO_C2PA_ANCHORS), "valid" (as its signer made it,
    whoever that is), "invalid" (changed since, or badly signed: then nothing else is told), "none"; "unread"
    where C2PA is not installed. watermark: null without one of our key, with marks off, or where no picture
    can be read. Raises InvalidRequest.
    """
    kind = _kind(data)
    if settings.watermark == "off":
        return _manifest(data, kind, settings) | {"watermark": None}
    try:
        marked = read_watermark(data, settings)
    except InvalidRequest:  # no pictures to read; the manifest may still say why
        marked = None
    try:
        found = _manifest(data, kind, settings)
    except NotFound:
        found = _verdict("unread")
    return found | {"watermark": marked and {"id": marked}}


def _manifest(data: bytes, kind: str, settings: Settings) -> dict[str, Any]:
    try:
        import c2pa
    except ImportError:
        raise NotFound("C2PA is not installed here: pip install c2pa-python") from None
    rules: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if settings.c2pa_anchors:
        rules["verify"]["verify_trust"] = True
        rules["trust"] = {"user_anchors": _read("c2pa_anchors", settings.c2pa_anchors).decode()}
    try:
        with c2pa.Reader(kind, io.BytesIO(data), context=c2pa.Context.from_dict(rules)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return _verdict("none")
    except c2pa.C2paError:
        return _verdict("invalid")
    state = found["validation_state"].lower()
    return _verdict(state, found["manifests"][found["active_manifest"]] if state != "invalid" else {})


def _verdict(state: str, manifest: dict[str, Any] | None = None) -> dict[str, Any]:
    assertions = {one["label"]: one["data"] for one in (manifest or {}).get("assertions", ())}
    actions = [one for name, data in assertions.items() if "c2pa.actions" in name for one in data["actions"]]
    signed = (manifest or {}).get("signature_info", {})
    return {
        "object": "provenance",
        "state": state,
        "signer": {"organisation": signed["issuer"], "name": signed.get("common_name")} if signed else None,
        "made_by_model": any(action.get("digitalSourceType") == MADE for action in actions),
        "lineage": assertions.get(LINEAGE),
    }


def _kind(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "video/mp4"
    if data[:4] == b"GIF8":
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:4] == b"\x89PNG" and len(data) > 8:
        return "image/png"
    if data[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise InvalidRequest("file: expected an mp4, gif, webp, or a picture of one as png or jpeg", "file")


def _signer_info(settings: Settings) -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise ValueError("HUVIDPO_C2PA_CERTIFICATE: needs the package c2pa-python, install it") from error
    chain, key = (_read(name, getattr(settings, name)) for name in ("c2pa_certificate", "c2pa_key"))
    return c2pa.C2paSignerInfo(settings.c2pa_algorithm.encode(), chain, key, None)  # no time stamps: offline


def _read(name: str, file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"HUVIDPO_{name.upper()}: {file!r} cannot be read: {error.strerror}") from error


# one pixel, to try a certificate on
_SMALLEST = bytes.fromhex("47494638376101000100800000000000000000" + "2c000000000100010000080400010404003b")
