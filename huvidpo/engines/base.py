"""What stands in for a network: engines with the network's own signature, their limits and their check.

A `Run` is a function of tensors: a network's inputs, in the order of its row in networks.py, to its output.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from huvidpo.attention import KeysValues
from huvidpo.engines.manifest import Port
from huvidpo.errors import EngineError, InvalidRequest

logger = logging.getLogger(__name__)

Run = Callable[..., Tensor]
Prove = Callable[[Run], Run]
OnLoad = Callable[[float], None]
"""told the seconds that an engine took to load, or to compile for a new shape, while a batch waited"""


@dataclass(frozen=True)
class EngineSpec:
    """What engines are made for."""

    model: str  # of the catalog
    device: torch.device
    lines: int  # of a batch: requests, twice as many with guidance
    frames: int
    height: int  # latent pixels
    width: int  # latent pixels
    tokens: int  # of the text encoder's context
    on_load: OnLoad = lambda seconds: None


class Engine:
    """Holds what the pipelines ask of a network beside calling it."""

    def __init__(self, module: Any, run: Run, prove: Prove | None = None):
        """`prove`: called once, before the first answer, with `run`; gives what is to run from then on. None:
        it was proved already.
        """
        self.config, self.dtype, self.device = module.config, module.dtype, module.device
        self.run = run
        self._prove = prove

    def compute(self, *inputs: Tensor) -> Tensor:
        """The network's answer. Raises EngineError for a refused engine that nothing stands in for."""
        if self._prove:
            self.run = self._prove(self.run)
            self._prove = None  # and with it goes the module it was compared to
        return self.run(*inputs)


class VideoEngine(Engine):
    """VideoUNet. Projects the text itself, each step: less than 0.1 % of the work."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        text_kv: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        text = text_kv[0][0] if text_kv is not None else encoder_hidden_states
        if text is None:
            raise ValueError("give encoder_hidden_states [B, L, D], or text_kv from project_text")
        return self.compute(sample, per_line(timestep, sample), text)

    def project_text(self, encoder_hidden_states: Tensor) -> list[KeysValues]:
        """In the form of VideoUNet's, so that callers can pick rows; it is the text as it came."""
        return [(encoder_hidden_states, encoder_hidden_states)]


class FirstFrameEngine(Engine):
    """The UNet of diffusers' SDXL pipeline."""

    def __init__(self, module: Any, run: Run, prove: Prove | None = None):
        super().__init__(module, run, prove)
        self.add_embedding = module.add_embedding  # the pipeline checks its width

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        added_cond_kwargs: Mapping[str, Tensor],
        timestep_cond: None = None,
        cross_attention_kwargs: None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        added = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"].to(sample.dtype)
        out = self.compute(sample, per_line(timestep, sample), encoder_hidden_states, *added)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class PlainFirstFrameEngine(Engine):
    """The UNet of diffusers' Stable Diffusion 1.x pipeline."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: None = None,
        cross_attention_kwargs: None = None,
        added_cond_kwargs: None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        out = self.compute(sample, per_line(timestep, sample), encoder_hidden_states)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class DecoderEngine(Engine):
    """A VAE whose decoder runs elsewhere; the encoder sees one image per clip and stays."""

    def __init__(self, module: Any, run: Run, prove: Prove | None = None):
        super().__init__(module, run, prove)
        self.encode = module.encode

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        out = self.compute(z)
        return DecoderOutput(sample=out) if return_dict else (out,)


LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""largest |engine - torch| / |torch|, Euclidean norms. Two honest bfloat16 runs of a network with random
weights differ by 0.05; a wrong graph by about 1.
"""


def per_line(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """A timestep, or one per line of the batch, as float32 [B]."""
    return torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))


def most_lines(network: Any) -> int | None:
    """Lines of a batch that a network takes at most; None for a module, or an engine of any shape."""
    manifest = getattr(getattr(network, "run", None), "manifest", None)
    return manifest.inputs[0].max[0] if manifest else None


def check_inputs(ports: Sequence[Port], inputs: Sequence[Tensor]) -> None:
    """Raises InvalidRequest for a shape outside the profile, EngineError for another dtype."""
    for port, x in zip(ports, inputs, strict=True):
        if not port.allows(x.shape):
            low, high = (" x ".join(map(str, shape)) for shape in (port.min, port.max))
            came = " x ".join(map(str, x.shape))
            raise InvalidRequest(
                f"{port.name}: got {came}, this engine takes {low} to {high}: ask for another size, fewer "
                "frames or a smaller batch, or serve with HUVIDPO_BACKEND=torch"
            )
        if x.dtype != getattr(torch, port.dtype):
            raise EngineError(
                f"{port.name}: got {x.dtype}, this engine takes {port.dtype}: set HUVIDPO_DTYPE to the "
                "precision the engine was built in"
            )


def check_parity(name: str, run: Run, reference: Run, inputs: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Run once by both, which also warms the engine up. `dtype`: of the network; it sets the limit.

    Raises EngineError if they differ by more, or the engine's answer is not finite.
    """
    started = time.monotonic()
    expected, got = reference(*inputs).float(), run(*inputs).float()
    error = ((got - expected).norm() / expected.norm()).item()
    logger.info("%s: differs from torch by %.1e, %.1f s", name, error, time.monotonic() - started)
    limit = LIMITS[dtype]
    if not error <= limit:  # nan is no less than it
        raise EngineError(
            f"the engine of {name} differs from torch by {error:.1e}, allowed are {limit:.0e}: "
            "serve with HUVIDPO_BACKEND=torch, or in another HUVIDPO_DTYPE"
        )
