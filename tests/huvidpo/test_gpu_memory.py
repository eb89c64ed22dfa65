"""Two stages on one card, by what the catalog states; no GPU is needed to count."""

import pytest
import torch

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.errors import CheckpointError
from huvidpo.gpu_memory import CONTEXT, Part, part_of, take_part

HALF, FULL = torch.float16, torch.float32


@pytest.mark.parametrize("name", ["sd14", "sd14-sdxl", "sd15"])
def test_both_stages_with_every_category_share_a_card_of_24_gib(name: str) -> None:
    model = load_catalog().model(name)
    card = {"total": 23.99, "free": 23.0, "shared": True}
    first = part_of(model, "first_frame", HALF, **card)
    video = part_of(model, "video", HALF, **card, categories=8)
    assert first is not None
    assert video is not None
    assert first == Part(11.6, 1)
    assert first.gib + video.gib + 2 * CONTEXT <= 23.99
    assert (
        video.requests == 3
    )  # 11.4 GiB: 4 of the network, 8 x .5 of categories, 2 x 1.2 of further requests


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    model = load_catalog().model("sd14")
    with pytest.raises(
        CheckpointError, match=r"needs 8\.0 GiB .* for its video in float16; there are 16\.0"
    ) as no:
        part_of(model, "video", HALF, total=16.0, free=15.0, categories=8, shared=True)
    assert "11.6 of them for its first frame" in str(no.value)
    assert part_of(model, "video", HALF, total=8.0, free=7.5) is not None  # alone, one category
    with pytest.raises(CheckpointError, match=r"23\.2 GiB .* float32"):
        part_of(model, "first_frame", FULL, total=23.99, free=23.0)
    with pytest.raises(CheckpointError, match=r"6\.0 are free"):
        part_of(model, "first_frame", HALF, total=23.99, free=6.0)


def test_a_model_of_unknown_needs_and_a_cpu_are_not_limited() -> None:
    catalog = load_catalog()
    assert part_of(catalog.model(DEFAULT_MODEL), "video", HALF, total=1.0, free=0.5) is None
    assert take_part(catalog.model("sd14"), "video", HALF, torch.device("cpu")) is None


def test_a_process_keeps_to_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (23 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, _: kept.append(part))
    model, card = load_catalog().model("sd14"), torch.device("cuda")
    take_part(model, "first_frame", HALF, card, shared=True)
    take_part(model, "video", HALF, card, categories=8, shared=True)
    assert kept == [pytest.approx(11.6 / 24), pytest.approx((24 - 12.1 - 0.5) / 24)]
    assert sum(kept) + 2 * CONTEXT / 24 <= 1
