"""The invisible watermark: 96 bits in every frame of a clip, read back without the clip as it was.

Added to the picture is a tile of 128 x 128 pixels, the same over and over and in every frame, so that a part
of a picture, or one frame, may be enough. Its spectrum is signs in the middle frequencies, those that codecs
leave: one in six finds the tile's place and needs no knowledge of the id, the others are the bits. Where
the picture is restless the tile is stronger. From key and id to signs:

    id (96 bits) + 32 bits of HMAC(key, id) -> convolutional code, 3 for 1 -> places and signs by the key

Reading, the spectrum of the picture is taken at the tile's frequencies, for each scale, small rotation and
mirror image that the clip may have come to; the likeliest are decoded. What has no mark, or another key's,
passes the check with a probability of 2 CANDIDATES / 2^32, below 1e-7.
"""

import hashlib
import hmac
from functools import lru_cache

import numpy as np
from PIL import Image

from huvidpo.errors import InvalidRequest

ID_BYTES, CHECK_BYTES = 12, 4
TILE = 128  # pixels
LEAST = 256  # pixels of a side that are marked: two tiles, chosen, not measured
PSNR = 38.5  # dB of a marked clip against what it was, before it is encoded
QUIET, RESTLESS = 1.0, 6.0  # levels: between them the tile is as strong as the picture is restless
STRONGEST = 2.7  # times that
MOST_PIXELS = 640  # of a side, when a clip is read: larger ones are made smaller
SPECTRUM = 2048  # samples of a side of the spectrum
CANDIDATES = 48  # that are decoded, of the whole clip and of its first frame
BAND = (5, 20)  # periods in a tile
_USUAL = (1.0, 0.5, 0.75, 2 / 3, 1.5, 2.0)  # scales that are looked at closely in any case
_SCALES = np.exp(np.arange(np.log(0.35), np.log(2.2), 0.0075))
_TURNS = np.radians(np.arange(-2, 2.1, 0.5))
_SQUARE = 64  # of the search; the band fits
_MEMORY, _POLYNOMIALS = 8, (0o557, 0o663, 0o711)  # the code of IS-95
_BITS = 8 * (ID_BYTES + CHECK_BYTES)
_CODED = len(_POLYNOMIALS) * (_BITS + _MEMORY)

_grid = np.stack(np.meshgrid(np.arange(-BAND[1], BAND[1] + 1), np.arange(BAND[1] + 1)), -1).reshape(-1, 2)
_radius = np.hypot(*_grid.T)
BINS = _grid[
    (_radius >= BAND[0]) & (_radius <= BAND[1]) & ((_grid[:, 1] > 0) | (_grid[:, 0] > 0))
]  # [N, 2], x and y: half of the plane, the other is its conjugate
_PILOTS = len(BINS) // 6
_TRUST = np.hypot(*BINS.T) ** -0.5  # in what is found in them: codecs leave less of the higher


def fits(height: int, width: int) -> bool:
    return min(height, width) >= LEAST


def signs(key: bytes, id: bytes) -> bytes:
    """What `embed` puts into a clip: a bit for each real and imaginary part of BINS."""
    if len(id) != ID_BYTES:
        raise InvalidRequest(f"watermark: got an id of {len(id)} bytes, expected {ID_BYTES}", "watermark")
    bits = np.unpackbits(np.frombuffer(id + _check(key, id), np.uint8))
    coded = _encode(bits)
    order, flips = _places(key)
    values = np.zeros(2 * len(BINS), np.uint8)
    values[order[2 * _PILOTS :]] = np.resize(coded, 2 * (len(BINS) - _PILOTS))
    return np.packbits(values ^ flips).tobytes()


def embed(frames: np.ndarray, signs: bytes) -> np.ndarray:
    """The marked clip. `frames`: uint8 [F, H, W, 3]. Raises InvalidRequest where they are too small."""
    height, width = frames.shape[1:3]
    if not fits(height, width):
        raise InvalidRequest(
            f"watermark: {width} x {height} pixels are too few, at least {LEAST} x {LEAST} are wanted",
            "watermark",
        )
    tile = _tile(signs)
    repeated = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    added = np.stack([_strength(frame) * repeated for frame in frames])
    power = float(np.mean(added[:, ::2, ::2] ** 2))
    added *= min(STRONGEST, 255 * 10 ** (-PSNR / 20) / np.sqrt(power))
    marked = np.empty_like(frames)
    for frame, more, out in zip(frames, added, marked, strict=True):
        np.clip(frame + np.rint(more).astype(np.int16)[..., None], 0, 255, out=out, casting="unsafe")
    return marked


def read(frames: np.ndarray, key: bytes) -> bytes | None:
    """The id in a clip, or in a part of one. `frames`: uint8 [F, H, W, 3]; a dozen tell as much as all."""
    if min(frames.shape[1:3]) < 48:
        return None
    shrunk = min(1.0, MOST_PIXELS / max(frames.shape[1:3]))
    order, flips = _places(key)
    pilots = _complex(order[: 2 * _PILOTS], flips)
    pictures = [_flattened(_luma(frame), shrunk) for frame in frames]
    # a codec moves the mark of later frames along with what moves in them: the first has it in its place
    for picture in (np.mean(pictures, axis=0), pictures[0])[: len(pictures)]:
        spectrum = _spectrum(picture)
        found = _search(spectrum, pilots, shrunk)
        for bits in _decode(np.stack([_soft(spectrum, one, order, flips) for one in found])):
            data = np.packbits(bits).tobytes()
            if hmac.compare_digest(data[ID_BYTES:], _check(key, data[:ID_BYTES])):
                return data[:ID_BYTES]
    return None


def _check(key: bytes, id: bytes) -> bytes:
    return hmac.digest(key, b"watermark" + id, "sha256")[:CHECK_BYTES]


@lru_cache(maxsize=8)
def _places(key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Which parts of BINS carry what, the pilots' first (both parts of a bin); what all are flipped by."""
    stream = hashlib.shake_256(b"watermark" + key).digest(10 * len(BINS) * 2)
    words = np.frombuffer(stream, ">u8", len(BINS) * 2 // 2)
    pilots = 2 * np.argsort(words, kind="stable")[:_PILOTS]
    pilots = np.stack([pilots, pilots + 1], 1).ravel()
    rest = np.setdiff1d(np.arange(2 * len(BINS)), pilots)
    rest = rest[np.argsort(np.frombuffer(stream, ">u4", len(rest), 8 * len(BINS)), kind="stable")]
    flips = np.frombuffer(stream, np.uint8, 2 * len(BINS), 18 * len(BINS)) & 1
    return np.concatenate([pilots, rest]), flips


def _complex(parts: np.ndarray, flips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the pilots' bins and what stands there."""
    values = 1.0 - 2.0 * flips[parts]
    return parts[::2] // 2, values[::2] + 1j * values[1::2]


@lru_cache(maxsize=16)
def _tile(signs: bytes) -> np.ndarray:
    """float32 [TILE, TILE] of variance 1."""
    values = 1.0 - 2.0 * np.unpackbits(np.frombuffer(signs, np.uint8))[: 2 * len(BINS)]
    plane = np.zeros((TILE, TILE), complex)
    plane[BINS[:, 1], BINS[:, 0]] = values[::2] + 1j * values[1::2]
    tile = np.fft.ifft2(plane).real
    return (tile / tile.std()).astype(np.float32)


def _luma(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).convert("L"), np.float32)


def _strength(frame: np.ndarray) -> np.ndarray:
    """How restless the picture is around each pixel, in levels. Measured in squares of 8 pixels."""
    height, width = frame.shape[:2]
    whole = _luma(frame)[: height // 8 * 8, : width // 8 * 8]
    squares = whole.reshape(height // 8, 8, width // 8, 8)
    deviation = np.sqrt(np.maximum((squares**2).mean((1, 3)) - squares.mean((1, 3)) ** 2, 0))
    strength = Image.fromarray(np.clip(deviation, QUIET, RESTLESS).astype(np.float32))
    return np.asarray(strength.resize((width, height), Image.Resampling.BILINEAR))


def _flattened(luma: np.ndarray, scale: float) -> np.ndarray:
    """The picture without what is large in it, and as restless everywhere."""
    size = tuple(round(side * scale) for side in luma.shape[::-1])
    image = Image.fromarray(luma)
    small = np.asarray(image if scale == 1 else image.resize(size, Image.Resampling.BOX), np.float32)

    def blur(values: np.ndarray) -> np.ndarray:
        coarse = Image.fromarray(values).resize((-(-size[0] // 8), -(-size[1] // 8)), Image.Resampling.BOX)
        return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))

    fine = small - blur(blur(small))
    return fine / (np.sqrt(np.maximum(blur(fine**2), 0)) + 1.0)


def _spectrum(picture: np.ndarray) -> np.ndarray:
    """complex64 [SPECTRUM, SPECTRUM], as strong everywhere; the phase counts from the picture's middle."""
    height, width = picture.shape
    padded = np.zeros((SPECTRUM, SPECTRUM), np.float32)
    padded[:height, :width] = picture
    padded = np.roll(padded, (-(height // 2), -(width // 2)), (0, 1))
    spectrum = np.fft.fft2(padded)
    side = SPECTRUM // 32
    power = (np.abs(spectrum) ** 2).reshape(side, 32, side, 32).mean((1, 3)) + 1e-9
    around = np.pad(power, 1, mode="wrap")
    power = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] + 2 * power) / 6
    return (spectrum / np.sqrt(np.kron(power, np.ones((32, 32), np.float32)))).astype(np.complex64)


def _at(spectrum: np.ndarray, place: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """The spectrum at the frequencies of `bins` when the tile was scaled and turned by `place` [2, 2]."""
    where = bins @ np.linalg.inv(place) * (SPECTRUM / TILE)
    low = np.floor(where).astype(int)
    x, y = (where - low).T
    i, j = low.T % SPECTRUM
    i1, j1 = (i + 1) % SPECTRUM, (j + 1) % SPECTRUM
    upper = spectrum[j, i] * (1 - x) + spectrum[j, i1] * x
    lower = spectrum[j1, i] * (1 - x) + spectrum[j1, i1] * x
    return upper * (1 - y) + lower * y


def _place(scale: float, turn: float, mirror: int) -> np.ndarray:
    cos, sin = np.cos(turn), np.sin(turn)
    return scale * np.diag([mirror, 1.0]) @ np.array([[cos, sin], [-sin, cos]])


def _peak(values: np.ndarray, pilots: tuple[np.ndarray, np.ndarray], side: int) -> tuple[float, np.ndarray]:
    """How well the pilots fit at their best shift, and that shift in pixels of the tile."""
    x, y = BINS[pilots[0]].T
    plane = np.zeros((side, side), np.complex64)
    plane[y, x] = values * pilots[1].conj() * _TRUST[pilots[0]]
    match = np.fft.ifft2(plane).real
    best = np.unravel_index(match.argmax(), match.shape)
    return float(match[best]) * side**2, np.array(best[::-1]) * (TILE / side)


def _search(
    spectrum: np.ndarray, pilots: tuple[np.ndarray, np.ndarray], shrunk: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The likeliest (place, shift): CANDIDATES of them."""
    bins = BINS[pilots[0]]
    coarse = []
    for mirror in (1, -1):
        for scale in _SCALES:
            for turn in _TURNS:
                values = _at(spectrum, _place(scale, turn, mirror), bins)
                coarse.append((_peak(values, pilots, _SQUARE)[0], scale, turn, mirror))
    usual = [(0.0, scale * shrunk, 0.0, 1) for scale in _USUAL]
    found: list[tuple[float, np.ndarray, np.ndarray]] = []
    for _, scale, turn, mirror in usual + sorted(coarse, reverse=True)[: CANDIDATES // 2 - len(usual)]:
        tries = []
        for finer in scale * (1 + np.arange(-2, 3) * 0.002):
            for turned in turn + np.radians(np.arange(-2, 3) * 0.125):
                place = _place(finer, turned, mirror)
                tries.append((*_peak(_at(spectrum, place, bins), pilots, 2 * TILE), place))
        found += sorted(tries, key=lambda one: -one[0])[:2]
    return [(place, shift) for _, shift, place in found]


def _soft(
    spectrum: np.ndarray, found: tuple[np.ndarray, np.ndarray], order: np.ndarray, flips: np.ndarray
) -> np.ndarray:
    """float [_CODED]: below 0 is a bit of 1."""
    place, shift = found
    values = _at(spectrum, place, BINS) * np.exp(2j * np.pi / TILE * (BINS @ shift))
    values *= _TRUST
    parts = np.stack([values.real, values.imag], 1).ravel() * (1.0 - 2.0 * flips)
    data = parts[order[2 * _PILOTS :]]
    return np.bincount(np.arange(len(data)) % _CODED, data, _CODED)


def _outputs() -> np.ndarray:
    """uint8 [2 ** (_MEMORY + 1), 3]: what the code says for a register, the newest bit highest."""
    registers = np.arange(2 ** (_MEMORY + 1))[:, None] & np.array(_POLYNOMIALS)
    return np.array([[int(one).bit_count() & 1 for one in row] for row in registers], np.uint8)


def _encode(bits: np.ndarray) -> np.ndarray:
    register, said, outputs = 0, [], _outputs()
    for bit in (*bits.tolist(), *[0] * _MEMORY):
        register = register >> 1 | bit << _MEMORY
        said.append(outputs[register])
    return np.concatenate(said)


def _decode(soft: np.ndarray) -> np.ndarray:
    """uint8 [N, _BITS]: the likeliest bits (Viterbi) for each of float [N, _CODED]."""
    states = 2**_MEMORY
    gains = 1.0 - 2.0 * _outputs().astype(float)
    # register r = newest bit and the state before; the state after is r >> 1, come to from r's two low ends
    score = np.full((len(soft), states), -np.inf)
    score[:, 0] = 0
    choices = []
    for step in soft.reshape(len(soft), -1, len(_POLYNOMIALS)).swapaxes(0, 1):
        reached = np.tile(score, 2) + step @ gains.T
        pairs = reached.reshape(len(soft), states, 2)
        choices.append(pairs.argmax(-1))
        score = pairs.max(-1)
    rows, state = np.arange(len(soft)), np.zeros(len(soft), int)
    bits = []
    for choice in reversed(choices):
        bits.append(state >> (_MEMORY - 1))
        state = (state << 1 | choice[rows, state]) & (states - 1)
    return np.array(bits[::-1], np.uint8).T[:, :_BITS]
