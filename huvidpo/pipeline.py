"""Prompt -> first frame -> clip, step by step.

Both pipelines take a batch of requests of different prompts and seeds. A clip depends on its request alone,
not on the batch: noise comes from one generator per request, on the CPU. A call changes no shared component.

Shapes: B requests, C latent channels, F frames, H W pixels, h w latent height and width, L text tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo.attention import KeysValues
from huvidpo.catalog import Catalog, load_catalog
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.engines.base import EngineSpec, OnLoad
from huvidpo.engines.networks import first_frame_row
from huvidpo.engines.select import BUILT, place_modules
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.files import hash_file
from huvidpo.latents import from_latents, to_latents
from huvidpo.loading import (
    check_present,
    device_and_dtype,
    fetch,
    load_beside,
    load_categories,
    load_first_frame_pipe,
    load_part,
    load_scheduler_config,
    load_tokenizer,
    load_vae,
    load_video_unet,
)
from huvidpo.schedule import (
    SETTLE_FRACTION,
    Denoiser,
    StepCallback,
    drop_history,
    first_frame_schedule,
    guide,
    keep_detail,
    kept_indices,
    make_scheduler,
    match_histogram,
    mix_noise,
    noise_to_start,
    sample,
)
from huvidpo.strength import Scaled, Strengths
from huvidpo.unet import VideoUNet
from huvidpo.video import crop_to_aspect

VIDEO_SEED_OFFSET = 0x9E3779B9  # so that the video's noise is not the first frame's
KEPT_NEGATIVES = 16  # negative prompts of which a first-frame pipeline keeps what they encode to


class FirstFramePipeline:
    """Prompt and style -> one image, by SDXL, whose UNet may be a DPO-aligned one, or by SD 1.x."""

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline | StableDiffusionPipeline,
        catalog: Catalog,
        backend: str = "torch",
    ):
        """`backend`: what the UNet runs on, see engines/select.py."""
        self.pipe = pipe
        self.sdxl = isinstance(pipe, StableDiffusionXLPipeline)
        self.catalog = catalog
        self.backend = backend
        self._negatives: OrderedDict[str, dict[str, Tensor]] = OrderedDict()  # of `_encode_negative`

    @classmethod
    def from_catalog(
        cls,
        model: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "torch",
        on_load: OnLoad = lambda seconds: None,
    ) -> "FirstFramePipeline":
        """Load a model of the catalog: on CUDA in float16 if present, else on the CPU in float32.

        `backend`: one of config.BACKENDS; `on_load`: see engines/base.py. Raises InvalidRequest for an
        unknown name, CheckpointError for a local part that is not there, EngineError for a backend that
        cannot be had.
        """
        catalog = load_catalog()
        entry = catalog.model(model)
        check_present(entry)
        device, dtype = device_and_dtype(device, dtype)
        fetch(entry, dtype, ["first_frame"])
        pipe: Any = load_first_frame_pipe(entry, device, dtype)
        options, factor = entry.defaults, pipe.vae_scale_factor
        height, width = (side // factor for side in options.first_frame_size)
        spec = EngineSpec(
            model=model,
            device=device,
            lines=2 if options.first_frame_guidance > 1 else 1,
            frames=1,
            height=height,
            width=width,
            tokens=pipe.tokenizer.model_max_length,
            on_load=on_load,
        )
        unet = first_frame_row(pipe.unet.config)
        modules = {unet: {"": pipe.unet}, "first_frame_vae_decoder": {"": pipe.vae}}
        used, parts = place_modules(backend, modules, spec)
        pipe.unet, pipe.vae = parts[unet][""], parts["first_frame_vae_decoder"][""]
        return cls(pipe, catalog, used)

    @staticmethod
    def can_share_batch(a: ClipRequest, b: ClipRequest) -> bool:
        """Whether two requests can be denoised together."""
        return _first_frame_key(a) == _first_frame_key(b)

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[ClipRequest], on_step: StepCallback | None = None
    ) -> list[np.ndarray | None]:
        """One uint8 [H, W, 3] image per request of `first_frame_size`, None for those dropped by `on_step`.

        `on_step` gets latents [B, C, h, w]. Raises InvalidRequest (see `check_inputs`), and Cancelled when
        all are dropped.
        """
        self.check_inputs(requests)
        embeddings = self.encode_prompt(requests)
        latents = self.prepare_latents(requests)
        return self.decode(self.denoise(requests, latents, embeddings, on_step))

    def check_inputs(self, requests: Sequence[ClipRequest]) -> None:
        """Raises InvalidRequest for an unknown category or style, and for text beyond the encoders' context.

        Requests that cannot share a batch are a ValueError.
        """
        _check_batch(requests, self.can_share_batch)
        for request in requests:
            self.catalog.category(request.category)
            for name in self.tokenizer_names:
                _check_length(getattr(self.pipe, name), request, self.catalog)

    @property
    def tokenizer_names(self) -> tuple[str, ...]:
        """Attributes of `pipe`."""
        return ("tokenizer", "tokenizer_2") if self.sdxl else ("tokenizer",)

    def encode_prompt(self, requests: Sequence[ClipRequest]) -> dict[str, Tensor]:
        """The pipeline's embeddings, by its argument names; no negative ones without guidance."""
        guided = requests[0].options.first_frame_guidance > 1
        names = [
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ][: 4 if self.sdxl else 2]
        encoded = [
            self.pipe.encode_prompt(
                full_prompt(request, self.catalog),
                do_classifier_free_guidance=guided,
                num_images_per_prompt=1,
                device=self.pipe.unet.device,
                **(self._encode_negative(_negative_prompt(request, self.catalog)) if guided else {}),
            )
            for request in requests
        ]
        return {
            name: torch.cat(part)
            for name, part in zip(names, zip(*encoded, strict=True), strict=True)
            if part[0] is not None
        }

    @torch.no_grad()
    def _encode_negative(self, text: str) -> dict[str, Tensor]:
        """The embeddings of a negative prompt, by the pipeline's argument names; none where SDXL takes zeros
        for an empty one. The latest are kept: most requests have that of their style.
        """
        if not text and self.sdxl and self.pipe.config.force_zeros_for_empty_prompt:
            return {}
        if text not in self._negatives:
            found = self.pipe.encode_prompt(
                text,
                do_classifier_free_guidance=False,
                num_images_per_prompt=1,
                device=self.pipe.unet.device,
            )
            names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
            self._negatives[text] = dict(zip(names, found[::2], strict=False))  # between: none are made
            if len(self._negatives) > KEPT_NEGATIVES:
                self._negatives.popitem(last=False)
        self._negatives.move_to_end(text)
        return self._negatives[text]

    def prepare_latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        """Unit Gaussian noise [B, C, h, w], one generator per request."""
        height, width = requests[0].options.first_frame_size
        factor = self.pipe.vae_scale_factor
        shape = (self.pipe.unet.config.in_channels, height // factor, width // factor)
        return torch.stack([_noise(request.seed, shape) for request in requests])

    def denoise(
        self,
        requests: Sequence[ClipRequest],
        latents: Tensor,
        embeddings: dict[str, Tensor],
        on_step: StepCallback | None = None,
    ) -> list[Tensor | None]:
        """Clean latents [C, h, w] per request, None for those dropped. Cancelled when all are dropped."""
        options = requests[0].options
        rows = list(range(len(requests)))

        def after_step(
            pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            keep = on_step(index + 1, pipe.num_timesteps, tensors["latents"]) if on_step else None
            if keep is None or all(keep):
                return {}
            kept = kept_indices(keep)
            count = len(rows)
            rows[:] = [rows[i] for i in kept]
            drop_history(pipe.scheduler, kept)
            # text tensors hold [negative, positive] of every request under guidance
            return {name: x[[i for i in range(len(x)) if i % count in kept]] for name, x in tensors.items()}

        pipe, schedule = self._private_pipe(options.first_frame_steps)
        height, width = options.first_frame_size
        out = pipe(
            **embeddings,
            latents=latents.to(pipe.unet.dtype),
            height=height,
            width=width,
            **schedule,
            guidance_scale=options.first_frame_guidance,
            output_type="latent",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[
                "latents",
                "prompt_embeds",
                *(("add_text_embeds", "add_time_ids") if self.sdxl else ()),
            ],
        ).images
        return _by_request(out, rows, len(requests))

    def decode(self, latents: Sequence[Tensor | None]) -> list[np.ndarray | None]:
        """Latents [C, h, w] -> uint8 [H, W, 3]."""
        return [None if x is None else from_latents(self.pipe.vae, x[None])[0] for x in latents]

    def _private_pipe(self, steps: int) -> tuple[Any, dict[str, Any]]:
        """A pipeline of the same modules with a scheduler of its own, as both keep state between steps; and
        how to ask it for `steps`.
        """
        scheduler, schedule = first_frame_schedule(self.pipe.scheduler, steps)
        parts = self.pipe.components | {"scheduler": scheduler}
        if self.sdxl:
            zeros = self.pipe.config.force_zeros_for_empty_prompt
            own = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
        else:
            own = {"requires_safety_checker": False}
        pipe = type(self.pipe)(**parts, **own)
        pipe.set_progress_bar_config(disable=True)
        return pipe, schedule


class VideoPipeline:
    """First frame and prompt -> clip: the VAE latent of the image stays, the frames after it are denoised."""

    def __init__(
        self,
        unets: Mapping[str, VideoUNet],
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler_config: dict[str, Any],
        catalog: Catalog,
        backend: str = "torch",
        load_beside: Callable[[str, Path], Any] | None = None,
        strengths: Strengths | None = None,
    ):
        """`unets`: one per category, by name. `backend`: what they run on, see engines/select.py.
        `load_beside`: makes one more, of a category and its weights, as those of `unets` were
        made, while they serve. `strengths`: what makes and keeps the networks at others than the shipped.
        """
        self.load_beside = load_beside
        self.strengths = strengths
        self.at_hand: Mapping[tuple[str, float], Any] = {}  # networks by category and strength, before those
        self.unets = unets
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = scheduler_config
        self.catalog = catalog
        self.backend = backend

    @classmethod
    def from_catalog(
        cls,
        model: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        categories: Sequence[str] | None = None,
        weights: Mapping[str, Path] | None = None,
        backend: str = "torch",
        on_load: OnLoad = lambda seconds: None,
    ) -> "VideoPipeline":
        """Load a model of the catalog: on CUDA in float16 if present, else on the CPU in float32.

        `categories` (default: all) share the tensors they do not change; one without weights uses the base
        model, with a warning. `weights`: of a category, in place of the catalog's. `backend`: one of
        config.BACKENDS; `on_load`: see engines/base.py. Raises InvalidRequest for an unknown name,
        CheckpointError for a missing part, EngineError for a backend that cannot be had.
        """
        catalog = load_catalog()
        entry = catalog.model(model)
        check_present(entry)
        device, dtype = device_and_dtype(device, dtype)
        fetch(entry, dtype, ["video"])
        base = load_video_unet(entry.video_unet, torch.float32, entry.attention_mode).eval()
        chosen = [catalog.category(name) for name in categories or catalog.categories]
        files = {category.name: entry.categories / category.weights for category in chosen}
        files |= weights or {}
        unets = load_categories(base, files, entry.attention_mode, device, dtype)
        vae = load_vae(entry.video_vae, device, dtype)
        text_encoder = load_part(CLIPTextModel, entry.video_text_encoder, dtype).to(device)
        tokenizer, options = load_tokenizer(entry.video_tokenizer, text_encoder), entry.defaults
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        spec = EngineSpec(
            model=model,
            device=device,
            lines=2 if options.guidance > 1 else 1,
            frames=options.frames,
            height=options.height // factor,
            width=options.width // factor,
            tokens=tokenizer.model_max_length,
            on_load=on_load,
        )
        used, parts = place_modules(backend, {"video_unet": unets, "video_vae_decoder": {"": vae}}, spec)

        def one_more(category: str, file: Path, strength: float = 1.0) -> Any:
            unet = load_beside(base, entry.video_unet, file, entry.attention_mode, strength)
            return place_modules(backend, {"video_unet": {category: unet}}, spec)[1]["video_unet"][category]

        def scaled(category: str, strength: float) -> Scaled:
            file = files[category]
            sha256, network = hash_file(file), one_more(category, file, strength)
            if hash_file(file) != sha256:
                raise CheckpointError(f"{file} changed while it was read")
            return Scaled(network, sha256)

        never = f"the backend {backend} runs weights as they were built" if backend in BUILT else ""

        return cls(
            unets=parts["video_unet"],
            vae=parts["video_vae_decoder"][""],
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler_config=load_scheduler_config(entry.video_scheduler),
            catalog=catalog,
            backend=used,
            load_beside=one_more,
            strengths=Strengths(scaled, files, never),
        )

    @staticmethod
    def can_share_batch(a: ClipRequest, b: ClipRequest) -> bool:
        """Whether two requests can be denoised together: guidance strength and noise mixing may differ."""
        return _video_key(a) == _video_key(b)

    @torch.no_grad()
    def __call__(
        self,
        requests: Sequence[ClipRequest],
        first_frames: Sequence[np.ndarray],
        on_step: StepCallback | None = None,
    ) -> list[np.ndarray | None]:
        """One uint8 [F, H, W, 3] clip per request, None for those dropped by `on_step`.

        `first_frames`: uint8 [any height, any width, 3], cropped to the clip's aspect and resized.
        `on_step` gets latents [B, C, F, h, w]. Raises InvalidRequest (see `check_inputs`), and Cancelled when
        all are dropped.
        """
        self.check_inputs(requests, first_frames)
        images = _fitted(requests, first_frames)
        text_kv = self.encode_prompt(requests)
        first = self.encode_first_frame(requests, images)
        latents = self.prepare_latents(requests, first)
        return self.decode(requests, self.denoise(requests, latents, text_kv, on_step), images)

    @torch.no_grad()
    def again(
        self, requests: Sequence[ClipRequest], clips: Sequence[np.ndarray], share: float
    ) -> list[np.ndarray | None]:
        """As a call with the first frames of `clips`, but frames 1.. start from those of `clips`, noised to
        `share` of the schedule: the smaller it is, the more of their motion is kept. 1 is the call itself.

        `clips`: uint8 [F, H, W, 3], as many frames as are asked for. Raises InvalidRequest as a call does,
        and for a share that is not above 0 and at most 1.
        """
        first_frames = [clip[0] for clip in clips]
        if share == 1:
            return self(requests, first_frames)
        self.check_inputs(requests, first_frames)
        options = requests[0].options
        if wrong := {len(clip) for clip in clips} - {options.frames}:
            raise InvalidRequest(f"clips: got one of {min(wrong)} frames, expected {options.frames}", "clips")
        scheduler = make_scheduler(self.scheduler_config, options.sampler, options.steps, share)
        clean = torch.stack([self.encode_first_frame(requests, list(clip)) for clip in clips]).transpose(1, 2)
        noise = self.prepare_latents(requests, clean[:, :, 0])
        latents = noise_to_start(scheduler, clean, noise)
        text_kv = self.encode_prompt(requests)
        images = _fitted(requests, first_frames)
        return self.decode(requests, self.denoise(requests, latents, text_kv, share=share), images)

    def check_inputs(self, requests: Sequence[ClipRequest], first_frames: Sequence[np.ndarray]) -> None:
        """Raises InvalidRequest for an unknown category or style, text beyond the text encoder's context and
        a first frame that is not uint8 [H, W, 3], a size too small for LAMP's corrections, and a
        preference_strength that the category cannot have. Requests that cannot share a batch are a
        ValueError.
        """
        _check_batch(requests, self.can_share_batch)
        if len(requests) != len(first_frames):
            raise ValueError(f"{len(requests)} requests came with {len(first_frames)} first frames")
        _check_size(requests[0].options, 2 ** (len(self.vae.config.block_out_channels) - 1))
        for request, image in zip(requests, first_frames, strict=True):
            self.catalog.category(request.category)
            if request.category not in self.unets:
                loaded = ", ".join(self.unets)
                raise InvalidRequest(f"category: got {request.category!r}, loaded here: {loaded}", "category")
            self._check_strength(request)
            _check_length(self.tokenizer, request, self.catalog)
            _check_image(image)

    def _check_strength(self, request: ClipRequest) -> None:
        if request.preference_strength == 1 or _weights_key(request) in self.at_hand:
            return
        why = self.strengths.refusal(request.category) if self.strengths else "this pipeline has no other"
        if why:
            came = f"preference_strength: got {request.preference_strength:g}"
            raise InvalidRequest(f"{came}, and {why}: leave it out, or send 1", "preference_strength")

    def unet_of(self, request: ClipRequest) -> Any:
        """The network of its category at its strength of preferences, loaded now if it is not in memory."""
        if request.preference_strength == 1:
            return self.unets[request.category]
        if (key := _weights_key(request)) in self.at_hand:
            return self.at_hand[key]
        assert self.strengths is not None, "check_inputs refuses it"
        return self.strengths.make(*key).network

    def encode_prompt(self, requests: Sequence[ClipRequest]) -> list[KeysValues]:
        """Keys and values of every text attention: [2B, ...], negative prompts first; [B, ...] unguided."""
        unet = self.unet_of(requests[0])
        prompts = [full_prompt(request, self.catalog) for request in requests]
        if requests[0].options.guidance > 1:
            prompts = [_negative_prompt(request, self.catalog) for request in requests] + prompts
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokenizer.model_max_length, return_tensors="pt"
        )
        embeddings = self.text_encoder(tokens.input_ids.to(self.text_encoder.device)).last_hidden_state
        return unet.project_text(embeddings.to(unet.dtype))

    def encode_first_frame(
        self, requests: Sequence[ClipRequest], first_frames: Sequence[np.ndarray]
    ) -> Tensor:
        """Latents [B, C, h, w] of the images, cropped to the clip's aspect and resized; never squashed."""
        return to_latents(self.vae, np.stack(_fitted(requests, first_frames)))

    def prepare_latents(self, requests: Sequence[ClipRequest], first: Tensor) -> Tensor:
        """Frame 0 from `first` [B, C, h, w] and mixed noise for the others: [B, C, F, h, w] float32."""
        channels, height, width = first.shape[1:]
        shape = (channels, requests[0].options.frames, height, width)
        noise = torch.stack(
            [
                mix_noise(_noise(_video_seed(request.seed), shape)[None], request.options.noise_mix)[0]
                for request in requests
            ]
        )
        return torch.cat([first[:, :, None], noise[:, :, 1:].to(first.device)], dim=2)

    def denoise(
        self,
        requests: Sequence[ClipRequest],
        latents: Tensor,
        text_kv: Sequence[KeysValues],
        on_step: StepCallback | None = None,
        share: float = 1.0,
    ) -> list[Tensor | None]:
        """Clean latents [C, F, h, w] per request, None for those dropped. Cancelled when all are dropped.

        `share` of the schedule is how noisy frames 1.. are: see `make_scheduler`.
        """
        options = requests[0].options
        scheduler = make_scheduler(self.scheduler_config, options.sampler, options.steps, share)
        skipped = options.steps - len(scheduler.timesteps)
        out, rows = sample(
            self._denoiser(requests, text_kv),
            latents,
            scheduler,
            corrections=options.corrections,
            settle_after=SETTLE_FRACTION * options.steps - skipped,
            on_step=on_step,
        )
        return _by_request(out, rows, len(requests))

    def decode(
        self,
        requests: Sequence[ClipRequest],
        latents: Sequence[Tensor | None],
        first_frames: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray | None]:
        """Latents [C, F, h, w] -> uint8 [F, H, W, 3]; `lamp` corrections match the colours to frame 0,
        `detail` ones keep the detail of `first_frames`, which are of the clip's size; without them they do
        nothing.
        """
        clips = [None if x is None else from_latents(self.vae, x.transpose(0, 1)) for x in latents]
        corrections = requests[0].options.corrections
        if corrections == "lamp":
            return [None if clip is None else match_histogram(clip) for clip in clips]
        if corrections == "detail" and first_frames is not None:
            pairs = zip(clips, first_frames, strict=True)
            return [None if clip is None else keep_detail(clip, first) for clip, first in pairs]
        return clips

    def _denoiser(self, requests: Sequence[ClipRequest], text_kv: Sequence[KeysValues]) -> Denoiser:
        """The UNet of the batch's category, with guidance."""
        unet = self.unet_of(requests[0])
        count = len(requests)
        guided = requests[0].options.guidance > 1
        scales = torch.tensor([request.options.guidance for request in requests], device=unet.device)

        def predict(latents: Tensor, timestep: Tensor, rows: list[int]) -> Tensor:
            lines = rows + [count + row for row in rows] if guided else rows
            whole = len(rows) == count
            kv = text_kv if whole else [(keys[lines], values[lines]) for keys, values in text_kv]
            x = torch.cat([latents, latents]) if guided else latents
            prediction = unet(x.to(unet.dtype), timestep, None, text_kv=kv).float()
            if not guided:
                return prediction
            unconditional, conditional = prediction.chunk(2)
            return guide(unconditional, conditional, scales if whole else scales[rows])

        return predict


def _first_frame_key(request: ClipRequest) -> tuple:
    options = request.options
    return (options.first_frame_size, options.first_frame_steps, options.first_frame_guidance)


def _weights_key(request: ClipRequest) -> tuple[str, float]:
    return request.category, float(request.preference_strength)


def _video_key(request: ClipRequest) -> tuple:
    o = request.options
    return (
        *_weights_key(request),
        o.steps,
        o.guidance > 1,
        o.frames,
        o.height,
        o.width,
        o.sampler,
        o.corrections,
    )


def _check_batch(requests: Sequence[ClipRequest], can_share: Any) -> None:
    if not requests:
        raise ValueError("no requests came, at least one is needed")
    if not all(can_share(requests[0], request) for request in requests):
        raise ValueError("these requests cannot share a batch: group them by can_share_batch")


def full_prompt(request: ClipRequest, catalog: Catalog) -> str:
    """What the text encoder is given: the prompt with its style applied."""
    return catalog.style(request.style).apply(request.prompt)


def _negative_prompt(request: ClipRequest, catalog: Catalog) -> str:
    given = request.negative_prompt
    return catalog.style(request.style).negative if given is None else given


def _check_length(tokenizer: CLIPTokenizer, request: ClipRequest, catalog: Catalog) -> None:
    """CLIP reads a fixed number of tokens; the rest would be cut off silently."""
    room = tokenizer.model_max_length - 2  # start and end of text
    texts = {"prompt": full_prompt(request, catalog), "negative_prompt": _negative_prompt(request, catalog)}
    for field, text in texts.items():
        count = len(tokenizer(text, add_special_tokens=False).input_ids)
        if count > room:
            raise InvalidRequest(
                f"{field}: {count} tokens (style included), the text encoder reads {room}: shorten it", field
            )


def _check_size(options: SamplingOptions, factor: int) -> None:
    """LAMP's corrections divide by the spread of a frame's latent pixels, of which there must be two."""
    if options.corrections == "lamp" and options.height <= factor and options.width <= factor:
        raise InvalidRequest(
            f"height: got {options.height} x {options.width}, of which one latent pixel is left: ask for "
            'more, or for corrections "none"',
            "height",
        )


def _fitted(requests: Sequence[ClipRequest], first_frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first frames, cropped to the clip's aspect and resized to uint8 [H, W, 3]."""
    options = requests[0].options
    return [crop_to_aspect(image, options.height, options.width) for image in first_frames]


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        came = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidRequest(f"first_frame: got {came}, expected uint8 [height, width, 3]", "first_frame")


def _by_request(out: Tensor, rows: list[int], count: int) -> list[Tensor | None]:
    """Row i of `out` belongs to request rows[i] of `count`; None for the others."""
    done = dict(zip(rows, out, strict=True))
    return [done.get(i) for i in range(count)]


def _noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Drawn on the CPU, so that a seed means the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _video_seed(seed: int) -> int:
    return (seed + VIDEO_SEED_OFFSET) % 2**32
