"""What is fetched from the model hub, and what is said, by the hub's own client from a small hub."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import COMMIT, FakeHub, fake_hub
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file

from huvidpo import fetch as fetch_model
from huvidpo import hub
from huvidpo.catalog import Component, load_catalog
from huvidpo.errors import CheckpointError
from huvidpo.hub import NETWORK, TOKENIZER, Part, needed, weights
from huvidpo.loading import fetch, load_vae
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from judging.judge import load_judge

UNET = "diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def repos(family: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The random family as two repositories, with a first-frame UNet and text encoders in both precisions."""
    folder = tmp_path_factory.mktemp("repos")
    shutil.copytree(family / "first_frame", folder / "first")
    shutil.copytree(family / "video", folder / "video")
    for name in (f"first/unet/{UNET}", "first/text_encoder/model.safetensors", f"video/unet/{UNET}"):
        tensors = {key: tensor.half() for key, tensor in load_file(folder / name).items()}
        half = (folder / name).with_suffix("").as_posix() + ".fp16.safetensors"
        save_file(tensors, half, metadata={"format": "pt"})
    return {"we/first": folder / "first", "we/video": folder / "video"}


@pytest.fixture
def the_hub(
    repos: dict[str, Path], family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub with the family, an empty cache, and a catalog whose model `far` lies on the hub."""
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    text = (family / "catalog" / "random.toml").read_text()
    for name in ("first_frame", "video"):
        path = f'path = "{family.resolve().as_posix()}/{name}"'
        text = text.replace(path, f'repo = "we/{name.removesuffix("_frame")}"')
    (catalog / "far.toml").write_text(text.replace("models.tiny", "models.far"))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(catalog))
    with fake_hub(dict(repos)) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub, "WORTH_SAYING", 0)
        yield running


def test_only_what_is_needed_is_fetched_its_size_said_first(
    the_hub: FakeHub,
    repos: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = load_catalog().model("far")
    disable_progress_bars()  # as transformers does when it is told to be quiet
    monkeypatch.setenv("TQDM_POSITION", "-1")  # shown without a terminal
    fetch(model, torch.float16)
    assert are_progress_bars_disabled()
    enable_progress_bars()
    said = caplog.messages[-1]
    names = {name for name in the_hub.fetched if name.endswith(".safetensors")}
    assert names == {
        f"we/first/unet/{HALF}",
        "we/first/text_encoder/model.fp16.safetensors",
        "we/first/text_encoder_2/model.safetensors",  # there is no other
        f"we/first/vae/{UNET}",
        f"we/video/unet/{UNET}",  # in full: categories are of its hash
    }
    assert "from we/first, we/video into" in said
    assert "safetensors" in capfd.readouterr().err  # the bars
    count = len(the_hub.asked)
    first = FirstFramePipeline.from_catalog("far", dtype=torch.float16, device="cpu")
    video = VideoPipeline.from_catalog("far", dtype=torch.float16, device="cpu", categories=["smile"])
    assert first.pipe.unet.dtype == torch.float16
    assert the_hub.asked[count:] == []  # nothing is asked twice
    own = load_file(repos["we/video"] / "unet" / UNET)
    assert all(
        torch.equal(own[name].half(), tensor) for name, tensor in video.unets["smile"].state_dict().items()
    )
    fetch(model, torch.float32)  # a trainer wants the rest
    assert set(the_hub.fetched[count:]) == {
        f"we/first/unet/{UNET}",
        "we/first/text_encoder/model.safetensors",
    }


def test_a_cache_that_is_not_whole_is_named_in_one_sentence(
    the_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = Component("we/first", "vae")
    load_vae(vae, torch.device("cpu"), torch.float32)
    the_hub.shutdown()
    the_hub.server_close()
    load_vae(vae, torch.device("cpu"), torch.float32)  # from the cache, hub or none
    next((tmp_path / "cache").rglob(f"vae/{UNET}")).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_vae(vae, torch.device("cpu"), torch.float32)
    text = str(caught.value)
    assert text.startswith(
        f"we/first/vae is not whole in the hub's cache {tmp_path / 'cache'}, and cannot be"
    )
    assert text.endswith("go online, or copy the repository to $HUVIDPO_WEIGHTS/we/first")
    assert "\n" not in text


def test_what_the_hub_has_not_and_the_disk_cannot_hold(
    the_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"we/none is not whole .* cannot be fetched \(.*404"):
        hub.local(Component("we/none"), "model_index.json")
    with pytest.raises(CheckpointError, match="we/video on the hub has no files of a tokenizer"):
        hub.local(Component("we/video"), TOKENIZER)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"0\.0 GB are to be fetched .* set HF_HOME"):
        hub.local(Component("we/video", "unet"), NETWORK)


def test_a_pinned_repository_gives_that_commit_or_nothing(the_hub: FakeHub) -> None:
    here = hub.local(Component("we/video", "unet", COMMIT), NETWORK)
    assert Path(here.location).name == COMMIT
    asked = len(the_hub.asked)
    assert hub.local(Component("we/video", "unet", COMMIT), NETWORK) == here
    assert len(the_hub.asked) == asked
    with pytest.raises(CheckpointError, match="we/video/unet is not whole"):
        hub.local(Component("we/video", "unet", "2" * 40), NETWORK)


def test_what_is_damaged_in_the_cache_is_found_and_fetched_anew(
    the_hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "far", "--dtype", "float32", "--stage", "video", "--check"]
    assert fetch_model.main(arguments) == 0
    said = capfd.readouterr().out
    assert f'we/video: newest commit taken; to keep it, write revision = "{COMMIT}"' in said
    assert re.search(r"far: \d+ files of weights are as the hub has them", said)
    unet = next((tmp_path / "cache").rglob(f"unet/{UNET}"))
    whole = unet.read_bytes()
    unet.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    assert fetch_model.main(arguments) == 2
    assert "is not what the hub holds: it was damaged, and is removed now" in capfd.readouterr().err
    assert fetch_model.main(arguments) == 0
    assert next((tmp_path / "cache").rglob(f"unet/{UNET}")).read_bytes() == whole


def test_what_comes_damaged_is_not_kept(
    the_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hash_file", lambda path: "0" * 64)
    with pytest.raises(CheckpointError, match="is not what the hub holds"):
        hub.local(Component("we/video", "unet"), NETWORK)
    assert not list((tmp_path / "cache").rglob(UNET))


@pytest.mark.parametrize(
    ("names", "plain", "half"),
    [
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors", "model.fp16.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], "model.fp16.safetensors", "model.fp16.safetensors"),
        (["pytorch_model.bin", "flax_model.msgpack"], "pytorch_model.bin", "pytorch_model.bin"),
        (["model.ckpt"], None, None),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], None, None),
        (["model.safetensors.index.json"], None, None),
    ],
)
def test_weights_among_the_files_of_a_folder(names: list[str], plain: str | None, half: str | None) -> None:
    for wants_half, first in ((False, plain), (True, half)):
        found = weights(names, wants_half)
        assert (found and found[1]) == ([first] if first else None)


def test_shards_come_with_their_index() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for variant, index in (
        ("", "model.safetensors.index.json"),
        ("fp16", "model.safetensors.index.fp16.json"),
    ):
        names = [name.replace("model-", "model.fp16-") if variant else name for name in shards]
        part = Part(Component("we/first", "text_encoder"), NETWORK, half=True)
        whole = [f"text_encoder/{name}" for name in ("config.json", index, *names)]
        assert weights([index, *names]) == (variant, [index, *names])
        assert needed(part, [*whole, "config.json", "unet/model.safetensors"]) == whole
        assert needed(part, whole[1:]) == []  # without its config it is nothing


def test_fetched_ahead_of_time_it_loads_without_the_hub(
    the_hub: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch_model.main(["--model", "far", "--dtype", "float32", "--stage", "video"]) == 0
    assert "far: everything is here" in capfd.readouterr().out
    asked = len(the_hub.asked)
    assert fetch_model.main(["--model", "far", "--dtype", "float32", "--stage", "video"]) == 0
    assert len(the_hub.asked) == asked
    VideoPipeline.from_catalog("far", dtype=torch.float32, categories=["horse"])
    assert len(the_hub.asked) == asked
    the_hub.repos.clear()
    assert fetch_model.main(["--model", "far", "--stage", "first_frame"]) == 2
    assert capfd.readouterr().err.startswith("error: we/first")


def test_the_clip_of_the_gate_is_fetched_whole(the_hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    the_hub.repos["we/clip"] = Path(__file__).resolve().parents[2] / "models/tiny/clip"
    arguments = ["--model", "far", "--dtype", "float32", "--stage", "video", "--check", "--clip"]
    assert fetch_model.main([*arguments, f"we/clip@{COMMIT}"]) == 0
    said = capfd.readouterr().out
    folder = Path(re.search(r"^we/clip@1+: in (.*)$", said, re.M)[1])
    assert (folder.name, folder.parent.parent.name) == (COMMIT, "models--we--clip")
    assert load_judge(folder).model.config.projection_dim
    assert fetch_model.main([*arguments, "we/clip@main"]) == 2
    assert "main" in capfd.readouterr().err
