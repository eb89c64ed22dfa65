"""What the training tests share: a random family, and a task on made-up latents."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler
from family import build_random_family
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo.catalog import Catalog
from huvidpo.config import SamplingOptions
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import VideoUNet
from training.data import Clips, embed_texts
from training.loop import select_trainable
from training.motion import MotionTask
from training.recipes import MotionRecipe

# Files that take longest, the longest first: begun last, one of them would run while the other core idles.
LONGEST_FIRST = (
    "export/test_to_onnx.py", "training/test_dpo.py", "service/test_jobs.py", "benchmarks/test_benchmarks.py",
    "e2e/test_new_category.py", "deploy/test_rehearsal.py", "e2e/test_serve.py", "e2e/test_shipped_family.py",
)  # fmt: skip
CAPTIONS = ["a horse runs", "white horse runs on mars", "a red horse runs at night"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: what is not named stays in its order."""
    root = Path(__file__).parent
    ranks = {root / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings in process-wide state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """Within it no file can grow beyond so many bytes: writing fails as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def tiny_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random family under the catalog's name `tiny`."""
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
    return family


@pytest.fixture
def recipe() -> MotionRecipe:
    return MotionRecipe(
        steps=4, batch_size=2, lr=1e-2, precision="fp32", frames=4, height=32, width=32, flip=False,
        text_drop=0.2, save_every=2, sample_every=0, log_every=1, warmup_steps=1,
    )  # fmt: skip


@pytest.fixture
def make_task(family: Path) -> Callable[[MotionRecipe], tuple[VideoUNet, MotionTask]]:
    """A freshly loaded base whose trainable parts are set, and a task on three random clips of latents."""

    def make(recipe: MotionRecipe, **changes: Any) -> tuple[VideoUNet, MotionTask]:
        unet = VideoUNet.from_pretrained(family / "video" / "unet")
        select_trainable(unet, recipe.trainable)
        unet.train()
        parts = family / "first_frame"
        vae = AutoencoderKL.from_pretrained(parts / "vae")
        text_encoder = CLIPTextModel.from_pretrained(parts / "text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(parts / "tokenizer")
        scheduler = DDIMScheduler.from_pretrained(family / "video" / "scheduler")
        pipeline = VideoPipeline(
            {"": unet}, vae, text_encoder, tokenizer, dict(scheduler.config), Catalog({}, {}, {})
        )
        latents = np.random.default_rng(0).standard_normal((3, 8, recipe.frames, 8, 8)).astype(np.float16)
        rows = np.arange(3)
        clips = Clips(latents, CAPTIONS, rows, rows[:2], "made up")
        texts = embed_texts(CAPTIONS, tokenizer, text_encoder)
        sampling = SamplingOptions(
            steps=2, guidance=2.0, frames=recipe.frames, height=32, width=32, corrections="none"
        )
        fields = {"scheduler": scheduler} | changes
        return unet, MotionTask(
            clips,
            texts,
            pipeline=pipeline,
            recipe=recipe,
            sampling=sampling,
            device=torch.device("cpu"),
            **fields,
        )

    return make
