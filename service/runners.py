"""What the two runner processes do: a job in, messages out (hop.py). No BentoML here.

    {"event": "accepted", "position": jobs before it, "eta": seconds until done, or null}
                                                            when it has its place in the queue
    {"event": "queued", "position": ..., "eta": ...}        when that moves up
    {"event": "started"}                                    when its batch is on the device
    {"event": "step", "step": 3, "total": 20}               after every denoising step
    {"event": "done", "queued": seconds, "seconds": seconds, "encode": seconds,
     "backend": what it ran on,
     "frames_verdict": what the operator's check says, or null,
     "strength": of the preferences in the category's weights,
     "weights": SHA-256 of those, or null}                  and with it the bytes of the PNG or clip
    {"event": "error", "code": ..., "message": ..., ...}    instead of done; see errors.py

Heavy imports sit inside the functions that the compute thread calls.
"""

import asyncio
import base64
import copy
import logging
import math
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import psutil

from huvidpo import memory, video, watermark
from huvidpo.catalog import load_catalog
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.errors import CheckpointError, EngineError, InvalidRequest
from service import lineage, metrics, tracing
from service.batching import Batcher, Begun, Done, OnStep, Queued, Step
from service.errors import INTERNAL, QueueFull, Unavailable, row_of, to_dict
from service.frame_check import FrameCheck
from service.hop import pack
from service.images import from_png, to_png
from service.order import Terms
from service.pace import Work
from service.reload import Watch
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.schemas import RunnerJob
from service.settings import Settings

if TYPE_CHECKING:
    import torch

    from huvidpo.gpu_memory import Part
    from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
    from huvidpo.strength import Scaled

logger = logging.getLogger(__name__)
Encode = Callable[[RunnerJob, np.ndarray], bytes]
BACK_OFF_SECONDS = 5.0
STRENGTH_SECONDS = 3  # until one of the other strengths that are waited for should have run
STRENGTHS_A_MINUTE = 4  # made anew: whoever varies it takes no more of the machine from the others


@runtime_checkable
class Warmable(Protocol):
    """An engine that compiles for sizes it has not met."""

    def cold(self, sizes: tuple[int, ...]) -> bool: ...

    def warm(self, sizes: tuple[int, ...], lines: int) -> None: ...


@dataclass(eq=False)
class VideoItem:
    """A clip to make, ready to run. `scaled`: its network, where that is of another strength of preferences
    than the category's; held, so that it stays in memory.
    """

    clip: ClipRequest
    frame: np.ndarray
    scaled: "Scaled | None" = None


class FirstFrameModel:
    """`loaded`: SHA-256 of its network, filled in once it is hashed."""

    can_pause = False  # diffusers' pipeline holds the state of one batch; and they all take the same time

    def __init__(self, pipeline: "FirstFramePipeline", loaded: Mapping[str, str]):
        self.loaded = loaded
        self.pipeline, self._checking = pipeline, copy.copy(pipeline)
        # of its own: a tokenizer serves one thread at a time, and jobs are checked beside the computing one
        self._checking.pipe = copy.copy(pipeline.pipe)
        for name in pipeline.tokenizer_names:
            setattr(self._checking.pipe, name, copy.deepcopy(getattr(pipeline.pipe, name)))
        self.backend, self.max_batch = pipeline.backend, _max_batch([pipeline.pipe.unet])
        self.on_cpu = pipeline.pipe.unet.device.type == "cpu"
        self.can_share = pipeline.can_share_batch

    def work(self, job: RunnerJob) -> Work:
        options = SamplingOptions(**job.options)
        shape = (options.first_frame_size, options.first_frame_guidance > 1)
        return Work(shape, options.first_frame_steps)

    def prepare(self, job: RunnerJob) -> ClipRequest:
        clip = to_clip_request(job)
        # here, so that a bad request does not fail the batch it would share
        self._checking.check_inputs([clip])
        return clip

    def cold(self, item: ClipRequest) -> bool:
        return False  # all first frames have one size, which was tried when it was loaded

    def warm(self, item: ClipRequest) -> None:
        pass

    def weights(self, item: ClipRequest) -> str | None:
        return self.loaded.get("first_frame")  # one network for all categories

    def run(self, items: Sequence[ClipRequest], on_step: OnStep) -> Sequence[np.ndarray | None]:
        try:
            return self.pipeline(list(items), on_step=on_step)
        finally:
            tell_memory("first_frame", self.pipeline.pipe.unet.device)


class VideoModel:
    """`loaded`: SHA-256 of each category's weights, filled in while hashing goes on.

    `replace` changes what the next batch runs on: one assignment, so that a batch has the pipeline and the
    hashes of before or of after. `running` are the pipelines of the batches that have begun.
    """

    can_pause = True

    def __init__(self, pipeline: "VideoPipeline", loaded: Mapping[str, str]):
        self._serving = pipeline, loaded
        self._ran_on = loaded
        self.running: list[VideoPipeline] = []
        self._checking = copy.copy(pipeline)
        self._checking.tokenizer = copy.deepcopy(pipeline.tokenizer)  # see FirstFrameModel
        self.backend, self.max_batch = pipeline.backend, _max_batch(pipeline.unets.values())
        self.room: int | None = None  # requests at once that the GPU has memory for; None: any number
        self.spare = True  # whether there is memory for one category more
        self._made = deque[float](maxlen=STRENGTHS_A_MINUTE)  # when the latest other strengths were
        self.on_cpu = pipeline.text_encoder.device.type == "cpu"

    @property
    def pipeline(self) -> "VideoPipeline":
        return self._serving[0]

    @property
    def loaded(self) -> Mapping[str, str]:
        return self._serving[1]

    def load_beside(self, category: str, file: Path) -> Any:
        """What would run the category with the weights of `file`. Raises CheckpointError, EngineError."""
        if not self.spare:
            raise CheckpointError(
                "the GPU has no memory for two of one category's weights at once: restart this runner"
            )
        assert self.pipeline.load_beside is not None
        network = self.pipeline.load_beside(category, file)
        lines = _max_batch([network])
        if lines is not None and (self.max_batch is None or lines < self.max_batch):
            raise CheckpointError(f"its engine takes {lines} requests at once, the others more")
        return network

    def replace(self, category: str, network: Any, sha256: str) -> None:
        """From the next batch on; not on the compute thread."""
        pipeline, checking = copy.copy(self.pipeline), copy.copy(self._checking)
        pipeline.unets = checking.unets = {**pipeline.unets, category: network}
        self._checking, self._serving = checking, (pipeline, {**self.loaded, category: sha256})
        if pipeline.strengths:
            pipeline.strengths.forget(category)

    @property
    def scalable(self) -> list[str]:
        """Categories whose preferences can have another strength than 1."""
        strengths = self.pipeline.strengths
        return [name for name in self.pipeline.unets if strengths and not strengths.refusal(name)]

    def work(self, job: RunnerJob) -> Work:
        options = SamplingOptions(**job.options)
        shape = (options.frames, options.height, options.width, options.guidance > 1, options.sampler)
        return Work(shape, options.steps)

    def prepare(self, job: RunnerJob) -> VideoItem:
        if job.first_frame is None:
            raise ValueError("a video job without a first frame")
        clip, frame = to_clip_request(job), from_png(job.first_frame)
        self._checking.check_inputs([clip], [frame])
        if clip.preference_strength == 1 or not self.pipeline.strengths:
            return VideoItem(clip, frame)
        return VideoItem(clip, frame, self.pipeline.strengths.find(clip.category, clip.preference_strength))

    def cold(self, item: VideoItem) -> bool:
        if item.clip.preference_strength != 1 and item.scaled is None:
            return True
        return any(run.cold(sizes) for run, sizes, _ in self._engines(item))

    def warm(self, item: VideoItem) -> None:
        if item.clip.preference_strength != 1 and item.scaled is None:
            item.scaled = self._scaled(item.clip)
        for run, sizes, lines in self._engines(item):
            run.warm(sizes, lines)

    def _scaled(self, clip: ClipRequest) -> "Scaled":
        """Its category at its strength. Raises InvalidRequest, QueueFull, Unavailable."""
        from huvidpo.strength import NoRoom

        category, strengths = clip.category, self.pipeline.strengths
        assert strengths is not None
        try:
            scaled = strengths.find(category, clip.preference_strength)
            if scaled is None:
                self._count_made()
                scaled = strengths.make(category, clip.preference_strength)
        except NoRoom as error:
            self._made.pop()
            raise QueueFull(f"{error}, try again in {STRENGTH_SECONDS} seconds", STRENGTH_SECONDS) from error
        except (CheckpointError, EngineError) as error:
            logger.error("%s at another strength: %s", category, error)
            raise InvalidRequest(
                f"preference_strength: got {clip.preference_strength:g}; the weights of {category} cannot be "
                "scaled here, the runner's log says why: leave it out, or send 1",
                "preference_strength",
            ) from error
        if scaled.sha256 != self.loaded.get(category, scaled.sha256):
            strengths.forget(category)
            raise Unavailable(f"new weights of {category} are being taken, try again in a few seconds")
        return scaled

    def _count_made(self) -> None:
        """Raises QueueFull where a minute's are made."""
        now = time.monotonic()
        if len(self._made) == STRENGTHS_A_MINUTE and (left := self._made[0] + 60 - now) > 0:
            wait = math.ceil(left)
            raise QueueFull(
                f"{STRENGTHS_A_MINUTE} other strengths of preferences were made within a minute, "
                f"try again in {wait} seconds",
                wait,
            )
        self._made.append(now)

    def _engines(self, item: VideoItem) -> list[tuple[Warmable, tuple[int, ...], int]]:
        """Those that compile for sizes, with the sizes of a line of their first input and how many lines."""
        clip, o, vae = item.clip, item.clip.options, self.pipeline.vae
        unet = item.scaled.network if item.scaled else self.pipeline.unets[clip.category]
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        size = o.height // factor, o.width // factor
        networks: list[tuple[Any, tuple[int, ...], int]] = [
            (unet, (unet.config.in_channels, o.frames, *size), 2 if o.guidance > 1 else 1),
            (vae, (vae.config.latent_channels, *size), o.frames),
        ]
        runs = [(getattr(network, "run", None), sizes, lines) for network, sizes, lines in networks]
        return [(run, sizes, lines) for run, sizes, lines in runs if isinstance(run, Warmable)]

    def can_share(self, a: VideoItem, b: VideoItem) -> bool:
        return self.pipeline.can_share_batch(a.clip, b.clip)

    def weights(self, item: VideoItem) -> str | None:
        return self._ran_on.get(item.clip.category)

    def run(self, items: Sequence[VideoItem], on_step: OnStep) -> Sequence[np.ndarray | None]:
        (pipeline, loaded), first = self._serving, items[0]
        self.running.append(pipeline)
        if first.scaled:  # whatever weights the category has got since it was made
            pipeline, loaded = copy.copy(pipeline), {first.clip.category: first.scaled.sha256}
            pipeline.at_hand = {(first.clip.category, first.clip.preference_strength): first.scaled.network}
        try:
            frames = [item.frame for item in items]
            return pipeline([item.clip for item in items], frames, on_step=on_step)
        finally:
            self.running.pop()
            self._ran_on = loaded
            tell_memory("video", self.pipeline.text_encoder.device)


def tell_memory(stage: str, device: "torch.device") -> None:
    """Sets the metrics of memory after a batch: of a GPU the most that its tensors took, and what the process
    may take; else what the process holds, and what the container or the machine has.
    """
    import torch

    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        total = torch.cuda.get_device_properties(device).total_memory
        limit = total * torch.cuda.get_per_process_memory_fraction(device)
    else:
        used, limit = psutil.Process().memory_info().rss, memory.limit()
    metrics.MEMORY_USED.labels(stage).set(used)
    metrics.MEMORY_LIMIT.labels(stage).set(limit)


def _max_batch(networks: Iterable[Any]) -> int | None:
    """Requests with guidance, two lines each, that the narrowest of the networks takes; None: any number."""
    from huvidpo.engines.base import most_lines

    lines = [most for network in networks if (most := most_lines(network)) is not None]
    return min(lines) // 2 if lines else None


def to_clip_request(job: RunnerJob) -> ClipRequest:
    return ClipRequest(
        prompt=job.prompt,
        category=job.category,
        style=job.style,
        seed=job.seed,
        negative_prompt=job.negative_prompt,
        preference_strength=job.preference_strength,
        options=SamplingOptions(**job.options),
    )


def load_first_frame(settings: Settings) -> FirstFrameModel:
    from huvidpo.pipeline import FirstFramePipeline

    place = _placement(settings, "first_frame")
    _take_part(settings, "first_frame", place)
    pipeline = FirstFramePipeline.from_catalog(settings.model, **place)
    return FirstFrameModel(pipeline, _hashed(lambda found: _hash_first_frame(settings.model, found)))


def load_video(settings: Settings) -> VideoModel:
    from huvidpo.pipeline import VideoPipeline

    place = _placement(settings, "video")
    part = _take_part(settings, "video", place)
    watch = Watch(load_catalog(), settings.model)  # before they are loaded: what changes since is seen
    model = VideoModel(VideoPipeline.from_catalog(settings.model, **place), watch.loaded)
    if part:
        model.room, model.spare = part.requests, part.spare
        if model.pipeline.strengths:
            model.pipeline.strengths.allow(int(part.spare))
    watch.start(model, settings.reload_seconds)
    metrics.RESIDENT.labels("video").set(len(model.pipeline.unets))
    return model


def _hashed(fill: Callable[[dict[str, str]], None]) -> Mapping[str, str]:
    """What `fill` writes into it: hashing gigabytes takes a while, and nobody waits for it."""
    found: dict[str, str] = {}
    Thread(target=fill, args=(found,), daemon=True).start()
    return found


def _hash_first_frame(model: str, found: dict[str, str]) -> None:
    from huvidpo import hub
    from huvidpo.loading import folder_of

    entry = load_catalog().model(model)
    network = entry.first_frame_unet or entry.first_frame.within("unet")
    found["first_frame"] = lineage.sha256_of_files(folder_of(hub.local(network, hub.NETWORK)))


def _take_part(settings: Settings, stage: str, place: dict[str, Any]) -> "Part | None":
    """This runner's part of its GPU, which both stages share unless each has its own. Raises CheckpointError
    where it does not fit.
    """
    from huvidpo.gpu_memory import take_part
    from huvidpo.loading import device_and_dtype

    catalog = load_catalog()
    device, dtype = device_and_dtype(place["device"], place["dtype"])
    entry, categories = catalog.model(settings.model), len(catalog.categories)
    cards = {_card(settings.device_of(one)) for one in ("first_frame", "video")}
    shared = len(cards) == 1
    return take_part(entry, stage, dtype, device, categories=categories, shared=shared)


def _card(device: str) -> str:
    """A name for what a setting names: the first card has several."""
    return "cuda:0" if device in ("", "cuda") else device


def _placement(settings: Settings, stage: str) -> dict[str, Any]:
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    return {
        "device": settings.device_of(stage) or None,
        "dtype": _dtype(settings, settings.device_of(stage)),
        "backend": settings.backend,
        "on_load": metrics.LOAD_SECONDS.labels(stage).observe,
    }


def _dtype(settings: Settings, device: str) -> "torch.dtype | None":
    """The setting, else bfloat16 on a CPU that has instructions for it, and may use them; None: the
    pipeline's choice.
    """
    import torch

    from huvidpo.hardware import cpu_has_bfloat16

    if settings.dtype:
        return getattr(torch, settings.dtype)
    on_cpu = device == "cpu" or not (device or torch.cuda.is_available())
    return torch.bfloat16 if on_cpu and cpu_has_bfloat16() else None


def encode_frame(job: RunnerJob, frame: np.ndarray) -> bytes:
    return to_png(frame)


def encode_clip(job: RunnerJob, frames: np.ndarray) -> bytes:
    if job.watermark:
        frames = watermark.embed(frames, base64.b64decode(job.watermark))
    return video.encode(frames, job.options["fps"], job.format)


async def stream(
    batcher: Batcher[RunnerJob, np.ndarray], job: RunnerJob, encode: Encode, check: FrameCheck | None = None
) -> AsyncGenerator[bytes, None]:
    """The messages of one job. To check what was made, where that is asked for, and to encode it is another
    thread's work, so the device goes on with the next batch.
    """
    name = "accepted"
    span = tracing.start(f"wait for {batcher.stage}")
    try:
        until = math.inf if job.seconds is None else time.monotonic() + job.seconds
        terms = Terms((job.caller, job.category), job.priority, until)
        async with aclosing(batcher.submit(job, terms)) as events:
            async for event in events:
                if isinstance(event, Queued):
                    yield pack({"event": name, "position": event.position, "eta": event.eta})
                    name = "queued"
                elif isinstance(event, Begun):
                    span.end()
                    span = tracing.start(batcher.stage)
                    yield pack({"event": "started"})
                elif isinstance(event, Step):
                    span.add_event("step", {"step": event.step, "total": event.total})
                    yield pack({"event": "step", "step": event.step, "total": event.total})
                else:
                    span.end()
                    span = tracing.start(f"encode {batcher.stage}")
                    yield await _done(event, job, encode, check, batcher.backend)
    except Exception as error:
        tracing.failed(span, error)
        if row_of(error) is INTERNAL:
            names = REQUEST_ID.get(), TRACE_PARENT.get() or "-"
            logger.exception("request %s (trace %s) failed in the %s runner", *names, batcher.stage)
        yield pack({"event": "error"} | to_dict(error))
    finally:
        if span.is_recording():
            span.end()


async def _done(
    event: Done[np.ndarray], job: RunnerJob, encode: Encode, check: FrameCheck | None, backend: str
) -> bytes:
    started = time.monotonic()
    verdict = await check.verdict(event.result) if check else None
    data = await asyncio.to_thread(encode, job, event.result)
    seconds = time.monotonic() - started
    times = {"queued": event.queued, "seconds": event.seconds, "encode": seconds}
    told = {"backend": backend, "weights": event.weights, "strength": job.preference_strength}
    looked = {"marked": job.watermark is not None, "frames_verdict": verdict}
    return pack({"event": "done"} | told | looked | times, data)


def end_process(reason: str) -> None:
    """Of a runner that is broken: whatever looks after it starts a new one. Until then jobs are refused, for
    a while, so that a runner that breaks while it loads does not take the machine for itself.
    """
    logger.critical("this process ends: %s", reason)
    time.sleep(BACK_OFF_SECONDS)
    os._exit(1)
