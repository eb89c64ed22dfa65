"""The video UNet: Stable Diffusion 1.x's UNet2DConditionModel, inflated as LAMP and HuViDPO do.

Three additions: a gated causal convolution along frames after every convolution, sparse-causal
self-attention, and temporal self-attention at the end of each transformer block. All start at zero effect:
with one frame, or with identical frames, a freshly inflated UNet equals the image UNet.

Shapes: B batch, F frames, C channels, H W latent height and width, N = H*W. Inside, frames fold into the
batch as [(b f), C, H, W], channels last, so that frames, tokens and pixels are all views of the same memory.
Tensor names are diffusers', with each convolution wrapped: `conv1.conv2d`, `conv1.conv1d`,
`conv1.conv_gate`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from huvidpo import hardware
from huvidpo.attention import (
    KeysValues,
    SparseCausalAttention,
    TemporalAttention,
    TextAttention,
    check_mode,
)
from huvidpo.checkpoint import inflated_name, load_lamp, load_strict
from huvidpo.config import ATTENTION_MODES
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_facts, hash_tensors

INFLATION_SEED = 0
HAS_ATTENTION = {"CrossAttnDownBlock": True, "DownBlock": False, "CrossAttnUpBlock": True, "UpBlock": False}


class GroupNorm(nn.GroupNorm):
    """GroupNorm over each frame."""

    def forward(self, x: Tensor) -> Tensor:
        return hardware.group_norm(x, self)


class JointGroupNorm(GroupNorm):
    """GroupNorm whose statistics run over all frames of a clip together."""

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [b, c, f, h, w], a view
        # CUDA's kernel answers channels first; the rest is a view where the answer is channels last.
        clip = super().forward(clip).contiguous(memory_format=torch.channels_last_3d)
        return clip.transpose(1, 2).flatten(0, 1)


class GatedTemporalConv(nn.Module):
    """A convolution per frame, plus a gated causal convolution of its output along the frames of each pixel.

    y = conv2d(x); z[t] = w0 y[t-2] + w1 y[t-1] + w2 y[t] + b with zeros before frame 0;
    out = y + sigmoid(gate(y)) z.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.conv1d = nn.Conv1d(out_channels, out_channels, 3)
        self.conv_gate = nn.Conv2d(out_channels, 1, 3, padding=1)
        for parameter in (*self.conv1d.parameters(), *self.conv_gate.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = self.conv2d(x)
        return y + torch.sigmoid(self.conv_gate(y)) * self.along_frames(y, frames)

    def along_frames(self, y: Tensor, frames: int) -> Tensor:
        """conv1d over the frames of [(b f), c, h, w], written as a (3, 1) kernel over [b, c, f, h*w].

        Channels last this moves no memory but the two frames of padding: 3x faster than conv1d in training.
        """
        height = y.shape[2]
        clip = y.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, frames))  # [b, f, h*w, c]
        clip = F.pad(clip, (0, 0, 0, 0, 2, 0)).permute(0, 3, 1, 2)
        z = F.conv2d(clip, self.conv1d.weight[..., None], self.conv1d.bias)
        return z.permute(0, 2, 3, 1).flatten(0, 1).unflatten(1, (height, -1)).permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = JointGroupNorm(groups, in_channels, eps)
        self.conv1 = GatedTemporalConv(in_channels, out_channels)
        self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = JointGroupNorm(groups, out_channels, eps)
        self.conv2 = GatedTemporalConv(out_channels, out_channels)
        self.conv_shortcut = (
            GatedTemporalConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        """`x` [(b f), in, h, w], `time` [b, time_dim] -> [(b f), out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x, frames)), frames)
        shift = self.time_emb_proj(F.silu(time))[:, None].expand(-1, frames, -1).flatten(0, 1)
        h = self.conv2(F.silu(self.norm2(h + shift[:, :, None, None], frames)), frames)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x, frames))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, text_dim: int, mode: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = SparseCausalAttention(dim, heads, mode)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = TextAttention(dim, heads, text_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")
        self.norm_temp = nn.LayerNorm(dim)
        self.attn_temp = TemporalAttention(dim, heads)

    def forward(self, x: Tensor, text_kv: KeysValues, frames: int) -> Tensor:
        """`x` [(b f), N, C] -> same shape."""
        x = x + self.attn1(self.norm1(x), frames)
        x = x + self.attn2(self.norm2(x), text_kv, frames)
        x = x + self.ff(self.norm3(x))
        return x + self.attn_temp(self.norm_temp(x), frames)


class Transformer(nn.Module):
    """Per-frame GroupNorm (eps 1e-6 whatever norm_eps says), projection in, blocks, projection out."""

    def __init__(self, level: "Level") -> None:
        super().__init__()
        dim = level.channels
        self.norm = GroupNorm(level.groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim) if level.linear_projection else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, level.heads, level.text_dim, level.attention_mode)
            for _ in range(level.depth)
        )
        self.proj_out = nn.Linear(dim, dim) if level.linear_projection else nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, text_kv: Sequence[KeysValues], frames: int) -> Tensor:
        """`x` [(b f), c, h, w], `text_kv` one pair per block -> same shape as `x`."""
        height = x.shape[2]
        h = project(self.proj_in, self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block, keys_values in zip(self.transformer_blocks, text_kv, strict=True):
            h = block(h, keys_values, frames)
        return x + project(self.proj_out, h).unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a linear layer, or the 1x1 convolution that SD 1.x stores in its place, to tokens [..., C]."""
    if isinstance(layer, nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    return layer(tokens)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = GatedTemporalConv(channels, channels, stride=2)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.conv(x, frames)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = GatedTemporalConv(channels, channels)

    def forward(self, x: Tensor, size: Sequence[int], frames: int) -> Tensor:
        """Nearest-neighbour to `size` (height, width): that of the next skip, so odd sizes work too."""
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"), frames)


@dataclass(frozen=True)
class Level:
    """One resolution of the UNet."""

    channels: int
    layers: int
    heads: int
    depth: int
    """transformer blocks per transformer"""
    text_dim: int
    time_dim: int
    groups: int
    eps: float
    linear_projection: bool
    attention_mode: str

    def resnet(self, in_channels: int) -> ResnetBlock:
        return ResnetBlock(in_channels, self.channels, self.time_dim, self.groups, self.eps)

    def transformers(self, number: int) -> nn.ModuleList:
        return nn.ModuleList(Transformer(self) for _ in range(number))


class Block(nn.Module):
    """What down, middle and up blocks share: running their layers, checkpointed if that is enabled."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None  # set by diffusers' enable_gradient_checkpointing

    def run(self, layer: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)


def take(text_kv: Iterator[KeysValues], transformer: nn.Module) -> list[KeysValues]:
    """The next keys and values, one pair per block of `transformer`."""
    return [next(text_kv) for _ in transformer.transformer_blocks]  # type: ignore[union-attr]


class DownBlock(Block):
    def __init__(self, level: Level, in_channels: int, attention: bool, downsample: bool) -> None:
        super().__init__()
        inputs = [in_channels] + [level.channels] * (level.layers - 1)
        self.resnets = nn.ModuleList(level.resnet(channels) for channels in inputs)
        self.attentions = level.transformers(level.layers if attention else 0)
        self.downsamplers = nn.ModuleList([Downsample(level.channels)] if downsample else [])

    def forward(self, x: Tensor, time: Tensor, text_kv: Iterator[KeysValues], frames: int) -> list[Tensor]:
        """The output after each layer and the downsampler: the skips. The last one goes on downwards."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, x, time, frames)
            if self.attentions:
                x = self.run(self.attentions[i], x, take(text_kv, self.attentions[i]), frames)
            skips.append(x)
        for downsampler in self.downsamplers:
            skips.append(self.run(downsampler, x, frames))
        return skips


class MidBlock(Block):
    def __init__(self, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(2))
        self.attentions = level.transformers(1)

    def forward(self, x: Tensor, time: Tensor, text_kv: Iterator[KeysValues], frames: int) -> Tensor:
        x = self.run(self.resnets[0], x, time, frames)
        x = self.run(self.attentions[0], x, take(text_kv, self.attentions[0]), frames)
        return self.run(self.resnets[1], x, time, frames)


class UpBlock(Block):
    def __init__(self, level: Level, inputs: Sequence[int], attention: bool, upsample: bool) -> None:
        """`inputs`: channels entering each layer, its skip included."""
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(channels) for channels in inputs)
        self.attentions = level.transformers(len(inputs) if attention else 0)
        self.upsamplers = nn.ModuleList([Upsample(level.channels)] if upsample else [])

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, text_kv: Iterator[KeysValues], frames: int
    ) -> Tensor:
        """Takes its skips off the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, torch.cat([x, skips.pop()], dim=1), time, frames)
            if self.attentions:
                x = self.run(self.attentions[i], x, take(text_kv, self.attentions[i]), frames)
        for upsampler in self.upsamplers:
            x = self.run(upsampler, x, skips[-1].shape[-2:], frames)
        return x


class VideoUNet(ModelMixin, ConfigMixin):
    """Predicts the noise (or v) of a clip of latents, given the timestep and the prompt.

    The configuration is that of SD 1.x and 2.x in diffusers, plus `attention_mode` (see `visible_frames`).
    `attention_head_dim` is the NUMBER of heads, as in those configurations: an int, or one per level.
    `upcast_attention` is accepted and needs nothing: scaled_dot_product_attention keeps its scores in
    float32. Raises ValueError for a setting it cannot honour.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock", "ResnetBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type: str = "UNetMidBlock2DCrossAttn",
        up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        only_cross_attention: bool = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 768,
        transformer_layers_per_block: int | Sequence[int] = 1,
        attention_head_dim: int | Sequence[int] = 8,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        attention_mode: str = "first_prev",
    ) -> None:
        super().__init__()
        check_config(self.config)
        channels = list(block_out_channels)
        levels = [
            Level(
                channels=channels[i],
                layers=per_level(layers_per_block, i),
                heads=per_level(attention_head_dim, i),
                depth=per_level(transformer_layers_per_block, i),
                text_dim=cross_attention_dim,
                time_dim=4 * channels[0],
                groups=norm_num_groups,
                eps=norm_eps,
                linear_projection=use_linear_projection,
                attention_mode=check_mode(attention_mode),
            )
            for i in range(len(channels))
        ]
        last = len(levels) - 1

        self.conv_in = GatedTemporalConv(in_channels, channels[0])
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(level, channels[max(i - 1, 0)], has_attention(down_block_types[i]), i != last)
            for i, level in enumerate(levels)
        )
        self.mid_block = MidBlock(levels[-1])
        self.up_blocks = nn.ModuleList()
        below = channels[-1]
        for i in reversed(range(len(levels))):
            level = levels[i]
            skips = [level.channels] * level.layers + [channels[max(i - 1, 0)]]
            inputs = [skip + (level.channels if j else below) for j, skip in enumerate(skips)]
            self.up_blocks.append(UpBlock(level, inputs, has_attention(up_block_types[last - i]), i != 0))
            below = level.channels
        self.conv_norm_out = JointGroupNorm(norm_num_groups, channels[0], norm_eps)
        self.conv_out = GatedTemporalConv(channels[0], out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        text_kv: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        """Noise (or v) of `sample` [B, C, F, H, W], same shape with out_channels.

        `timestep`: a number, or a tensor [] or [B]. `encoder_hidden_states` [B, L, D]: the prompt; or
        `text_kv`, what `project_text` made of it once for all steps. Raises ValueError for a sample that is
        not 5-D or no text at all.
        """
        if sample.ndim != 5:
            raise ValueError(
                f"sample must be [batch, channels, frames, height, width], not {tuple(sample.shape)}"
            )
        batch, _, frames, _, _ = sample.shape
        if text_kv is None:
            if encoder_hidden_states is None:
                raise ValueError("give encoder_hidden_states [B, L, D], or text_kv from project_text")
            text_kv = self.project_text(encoder_hidden_states)
        text = iter(text_kv)
        time = self.embed_time(timestep, batch, sample)

        x = sample.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x, frames)
        skips = [x]
        for down in self.down_blocks:
            skips += down(skips[-1], time, text, frames)
        x = self.mid_block(skips[-1], time, text, frames)
        for up in self.up_blocks:
            x = up(x, skips, time, text, frames)
        x = self.conv_out(F.silu(self.conv_norm_out(x, frames)), frames)
        return x.unflatten(0, (batch, frames)).transpose(1, 2)

    def embed_time(self, timestep: Tensor | float, batch: int, sample: Tensor) -> Tensor:
        """-> [B, 4 * first level's channels], in the dtype and on the device of `sample`."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        return self.time_embedding(self.time_proj(timesteps).to(sample.dtype))

    def project_text(self, encoder_hidden_states: Tensor) -> list[KeysValues]:
        """Keys and values [B, heads, L, D] of every attn2, in the order forward uses them.

        The prompt is the same for all frames and steps: compute this once per prompt and pass it as
        `text_kv`.
        """
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [
            block.attn2.keys_values(encoder_hidden_states)
            for part in blocks
            for transformer in part.attentions
            for block in transformer.transformer_blocks
        ]

    @classmethod
    def from_2d(cls, unet2d: UNet2DConditionModel, attention: str = "first_prev") -> "VideoUNet":
        """Inflate an SD 1.x or 2.x image UNet; keeps its dtype and device, shares no memory with it.

        What it adds at random (temporal attention, without effect at first) is drawn from a seed of its own:
        one image UNet gives one video UNet, in every process and on every device.
        """
        image: Any = unet2d  # mypy cannot see the base classes of diffusers' models
        config = video_config(image.config)
        with (
            torch.device("meta" if image.device.type == "meta" else "cpu"),
            torch.random.fork_rng(devices=[]),
        ):
            torch.default_generator.manual_seed(INFLATION_SEED)
            unet = cls.from_config(config, attention_mode=attention)
        nn.Module.to(unet, image.device, image.dtype)  # diffusers' own .to warns at every cast
        tensors = {inflated_name(name): tensor for name, tensor in image.state_dict().items()}
        unet.load_state_dict(unet.state_dict() | tensors)
        return unet

    @classmethod
    def from_lamp(cls, folder: str | Path, attention: str | None = None) -> "VideoUNet":
        """Load a checkpoint in LAMP's / HuViDPO's layout, strictly, from the folder of its config.json.

        `attention`: its mode where config.json has no `attention_mode`, which the papers' files have not.
        Raises CheckpointError for a configuration that makes no video UNet, and if files, tensor names or
        shapes are not those of the configuration.
        """
        config, tensors = load_lamp(folder)
        try:
            mode = attention_mode(config, attention, folder)
            unet = cls.from_config(video_config(config), attention_mode=mode)
        except CheckpointError:
            raise
        except Exception as error:  # diffusers' own layers raise what they like at numbers that do not fit
            raise CheckpointError(f"{folder}: its config.json makes no video UNet: {error!r}") from error
        return load_strict(unet, tensors)


def has_attention(block_type: str) -> bool:
    """Whether blocks of this type hold transformers. LAMP's "3D" names mean the same as "2D" ones here."""
    kind = block_type.removesuffix("2D").removesuffix("3D")
    if kind not in HAS_ATTENTION:
        allowed = ", ".join(f"{name}2D" for name in HAS_ATTENTION)
        raise ValueError(f"block type {block_type!r} is not supported; use {allowed}")
    return HAS_ATTENTION[kind]


def per_level(value: int | Sequence[int], level: int) -> int:
    """A setting that configurations give once for all levels, or as one number per level."""
    return value if isinstance(value, int) else value[level]


# Settings of SD configurations that change the network and that no SD 1.x or 2.x model uses: what we can
# honour.
ONLY_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock3DCrossAttn"),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "use_temp": (True,),  # LAMP: temporal attention present
}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that this network cannot honour."""
    for name, allowed in ONLY_SUPPORTED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(
                f"{name} = {config[name]!r} is not supported; only {' or '.join(map(repr, allowed))} is"
            )
    levels = len(config["block_out_channels"])
    for name in ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim"):
        value = config[name]
        if not isinstance(value, int) and len(value) != levels:
            raise ValueError(f"{name} = {value!r} must have one entry for each of the {levels} levels")


def video_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """VideoUNet's settings from those of a UNet2DConditionModel or of LAMP's UNet.

    Settings that VideoUNet does not have must stand at diffusers' default; any other value raises ValueError.
    """
    ours = inspect.signature(VideoUNet.__init__).parameters
    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    check_config(config)
    for name in theirs.keys() & config.keys() - ours.keys():
        if config[name] != theirs[name].default:
            raise ValueError(
                f"{name} = {config[name]!r} is not supported; only image UNets like SD 1.x and 2.x, "
                f"with {name} = {theirs[name].default!r}, can be inflated"
            )
    return {name: value for name, value in config.items() if name in ours}


def attention_mode(config: Mapping[str, Any], given: str | None, folder: str | Path) -> str:
    """Which frames a checkpoint's self-attention sees: its config's own word, else `given`.

    Raises CheckpointError when neither says it: both papers publish one layout, and attend differently.
    """
    mode = config.get("attention_mode", given)
    if mode not in ATTENTION_MODES:
        raise CheckpointError(
            f"{folder}: its attention mode is {'not said' if mode is None else repr(mode)}; write "
            '"attention_mode": "first" (as LAMP trains) or "first_prev" (as HuViDPO does) into its '
            "config.json, or attention_mode into the model's entry of the catalog"
        )
    return mode


def network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the network besides its tensors: VideoUNet's settings in one form, however a config of
    diffusers' or LAMP's classes writes them. Two networks of equal settings and tensors are the same.
    """
    parameters = inspect.signature(VideoUNet.__init__).parameters
    ours = {name: p.default for name, p in parameters.items() if name != "self"} | video_config(config)
    for name in (*ONLY_SUPPORTED, "sample_size", "upcast_attention"):  # one value, or none that is felt
        ours.pop(name, None)
    levels = range(len(ours["block_out_channels"]))
    for name in ("layers_per_block", "attention_head_dim", "transformer_layers_per_block"):
        ours[name] = [per_level(ours[name], level) for level in levels]
    for name in ("down_block_types", "up_block_types"):
        ours[name] = [has_attention(kind) for kind in ours[name]]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()}


def fingerprint(unet: VideoUNet) -> str:
    """sha256 of a network: its tensors (float32, as training and merging have them) and its settings."""
    return fingerprints(unet)[0]


def fingerprints(unet: VideoUNet) -> tuple[str, str]:
    """(`fingerprint`, the hash of the tensors alone)."""
    tensors = hash_tensors(unet.state_dict())
    return hash_facts([tensors, network_settings(unet.config)]), tensors
