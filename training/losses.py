"""Losses as pure functions on latents: [B, C, F, h, w] of clips, [B, C, h, w] of pictures.

Frame 0 of a clip is given to the network clean (it is the picture the clip starts from), so it is never
noised and never counted.

Preferences (HuViDPO Eq. 9; Diffusion-DPO, arXiv 2311.12908): with L the mean squared error of a noise
prediction, one number per sample, and w, l the winner and the loser of a pair,

    margin m = -1/2 [(L_w - Lref_w) - (L_l - Lref_l)]      how much more the network came to prefer w than
                                                          its frozen reference does
    loss     = -log sigmoid(beta m)                       and the variants of `preference_loss`

Where a pair was judged by segments of frames, each has its L, its winner and its margin (`dpo_loss`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from huvidpo.errors import HuViDPOError

MarginLoss = Literal["sigmoid", "ipo", "hinge"]
PairLoss = MarginLoss | Literal["sft"]
Stats = dict[str, Tensor]
"""Metrics to log: 0-d tensors without a gradient."""


def add_noise(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """`latents` noised to `timesteps` [B]: a picture whole, of a clip frames 1..; frame 0 stays clean."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if latents.ndim == 4:
        return noisy
    return torch.cat([latents[:, :, :1], noisy[:, :, 1:]], dim=2)


def prediction_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should answer, by the scheduler's `prediction_type`: the noise, or the velocity.

    Raises HuViDPOError on any other prediction type.
    """
    kind = prediction_type(scheduler)
    return noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)


def noise_prediction(scheduler: DDIMScheduler, answer: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """The noise that a network's `answer` at `noisy` means, float32: eps = sqrt(abar) v + sqrt(1 - abar) x_t.

    At zero terminal SNR (abar 0) it is x_t whatever the network says. Raises HuViDPOError on any prediction
    type but epsilon and v_prediction.
    """
    if prediction_type(scheduler) == "epsilon":
        return answer.float()
    abar = scheduler.alphas_cumprod.to(noisy.device)[timesteps].float()
    abar = abar.view(-1, *[1] * (noisy.ndim - 1))
    return abar.sqrt() * answer.float() + (1 - abar).sqrt() * noisy.float()


def motion_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over frames 1.., in fp32: a scalar (METHOD section 4)."""
    return F.mse_loss(prediction[:, :, 1:].float(), target[:, :, 1:].float())


def noise_error(prediction: Tensor, noise: Tensor) -> Tensor:
    """L: mean squared error per sample [B], fp32, over channels, pixels and, in a clip, frames 1...

    A mean, not a sum, so that beta means the same for any size; ONE number for a whole clip. Raises
    ValueError for tensors that are neither 4-D nor 5-D.
    """
    return segment_errors(prediction, noise)[:, 0]


def segment_errors(prediction: Tensor, noise: Tensor, segment_frames: int | None = None) -> Tensor:
    """L of each segment [B, segments]: `segment_frames` frames from frame 1 on, the last what is left. None,
    and a picture, are one segment. Raises ValueError as `noise_error`.
    """
    parts = _residuals(prediction, noise, segment_frames)
    return torch.stack([part.square().mean(dim=1) for part in parts], dim=1)


def _residuals(prediction: Tensor, noise: Tensor, segment_frames: int | None) -> list[Tensor]:
    """prediction - noise of what counts, fp32, [B, N] of each segment. Raises ValueError as `noise_error`."""
    if prediction.shape != noise.shape or prediction.ndim not in (4, 5):
        raise ValueError(
            f"prediction {list(prediction.shape)}, noise {list(noise.shape)}: "
            "want the same [B, C, F, H, W] or [B, C, H, W]"
        )
    if prediction.ndim == 5:
        prediction, noise = prediction[:, :, 1:], noise[:, :, 1:]
    residual = prediction.float() - noise.float()
    clip = residual.ndim == 5 and segment_frames is not None
    return [part.flatten(1) for part in (residual.split(segment_frames, dim=2) if clip else [residual])]


@dataclass(frozen=True)
class PairErrors:
    """L of both samples of each pair by the network and by its reference: [B] each, or [B, segments]."""

    winner: Tensor
    loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor

    @property
    def winner_drift(self) -> Tensor:
        """Above 0: the network became worse at the winner."""
        return self.winner - self.reference_winner

    @property
    def loser_drift(self) -> Tensor:
        return self.loser - self.reference_loser

    @property
    def margin(self) -> Tensor:
        return -0.5 * (self.winner_drift - self.loser_drift)


def preference_loss(
    margin: Tensor, *, beta: float, kind: MarginLoss = "sigmoid", smoothing: float = 0.0
) -> Tensor:
    """Loss [B] of margins [B].

    * sigmoid: -log sigmoid(beta m). With `smoothing` e, the chance that a preference is the wrong way round:
      -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)  (cDPO, Mitchell 2023)
    * ipo: (m - 1 / (2 beta))^2  (arXiv 2310.12036): margins are pulled to a value, not to infinity
    * hinge: max(0, 1 - beta m)  (SLiC, arXiv 2305.10425)

    Raises ValueError for another kind.
    """
    u = beta * margin
    if kind == "sigmoid":
        return -(1 - smoothing) * F.logsigmoid(u) - smoothing * F.logsigmoid(-u)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if kind == "hinge":
        return F.relu(1 - u)
    raise ValueError(f"loss {kind!r} is unknown; use one of {', '.join(get_args(MarginLoss))}")


def dpo_loss(
    policy: Tensor,
    reference: Tensor,
    noise: Tensor,
    *,
    beta: float,
    kind: PairLoss = "sigmoid",
    smoothing: float = 0.0,
    anchor: float = 0.0,
    winner_weight: float = 0.0,
    safeguard: float | None = None,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    segment_frames: int | None = None,
) -> tuple[Tensor, Stats]:
    """HuViDPO Eq. 9: (mean of `preference_loss` over B pairs, weighted by `weights` [B] if given; metrics).

    `policy`, `reference`: noise predictions of the network in training and of the frozen one, of clips
    [2B, C, F, H, W] or pictures [2B, C, H, W]: the B winners, then their losers. `noise` [B, ...] is the one
    that both samples of a pair were given. `anchor` > 0 takes anchor * max(0, L_w - Lref_w) off each margin
    in the loss: a pair is not won by making both samples worse, the loser more (DPO-Positive, arXiv
    2402.13228). `winner_weight` r adds r L_w to each pair's loss (Reg-DPO, arXiv 2511.01450). `safeguard` mu,
    0..1, scales the loser's gradient by `loser_scale`. Kind "sft" learns the winners alone, L_w, and is what
    any preference has to be better than.

    `labels` [B, segments], of segments as of `segment_errors`: 1 where the pair's winner is better, -1 where
    its loser is, 0 where neither (DenseDPO, arXiv 2506.03517). Each segment is then judged as a pair of its
    own, with winner and loser turned where the label is -1, and a pair's loss is the mean of those that have
    a winner. One segment labelled 1 is what no labels are.

    The metrics show the plain margin: `margin`, `accuracy` (share of pairs with a margin above 0, a tie
    counting one half), `winner_drift`, `loser_drift`, and the `rewards`; of segments, of those with a winner.
    Raises ValueError for shapes that differ.
    """
    both = torch.cat([noise, noise])
    ours, theirs = (segment_errors(x, both, segment_frames).chunk(2) for x in (policy, reference))
    whole = labels is None
    labels = torch.ones_like(ours[0]) if labels is None else labels
    if labels.shape != ours[0].shape:
        raise ValueError(f"labels {list(labels.shape)}: want one a segment, {list(ours[0].shape)}")
    turned, judged = labels < 0, labels != 0
    errors = PairErrors(*_turn(ours, turned), *_turn(theirs, turned))
    if kind == "sft":
        losses = errors.winner
    else:
        guarded = errors
        if safeguard is not None:
            parts = _residuals(policy.detach(), both, segment_frames)
            sides = [_turn(part.chunk(2), turned[:, [k]]) for k, part in enumerate(parts)]
            scale = torch.stack([loser_scale(*side, safeguard) for side in sides], dim=1)
            held = errors.loser.detach()
            guarded = replace(errors, loser=held + scale * (errors.loser - held))
        margin = guarded.margin - anchor * F.relu(errors.winner_drift)
        losses = preference_loss(margin, beta=beta, kind=kind, smoothing=smoothing)
        losses = losses + winner_weight * errors.winner
    losses = (losses * judged).sum(dim=1) / judged.sum(dim=1)
    loss = losses.mean() if weights is None else (weights * losses).mean()
    plain, winner_drift, loser_drift = (
        x.detach().flatten() if whole else x.detach()[judged]  # a mask would wait for the device
        for x in (errors.margin, errors.winner_drift, errors.loser_drift)
    )
    return loss, {
        "margin": plain.mean(),
        "accuracy": accuracy(plain),
        "winner_drift": winner_drift.mean(),
        "loser_drift": loser_drift.mean(),
        **rewards(winner_drift, loser_drift, beta),
    }


def _turn(sides: Sequence[Tensor], turned: Tensor) -> tuple[Tensor, Tensor]:
    """Winner and loser, with their places changed where `turned`."""
    winner, loser = sides
    return torch.where(turned, loser, winner), torch.where(turned, winner, loser)


def loser_scale(winner: Tensor, loser: Tensor, mu: float) -> Tensor:
    """How much of the losers' gradients, 0..1 [B], leaves the winners' errors alone (Diffusion-SDPO, arXiv
    2511.03317): min(1, (1 - mu) |g_w|^2 / <g_l, g_w>) where the gradients g of the errors point the same way,
    else 1. To first order a step on the outputs then cannot raise L_w. The gradients are residuals [B, N],
    prediction less noise, times a number that cancels. mu 0 holds L_w where it is, 1 forbids all of the loser
    that goes against the winner; the paper has 0.9 for Stable Diffusion 1.5, 0.6 for SDXL.
    """
    along = (loser * winner).sum(dim=1)
    room = (1 - mu) * winner.square().sum(dim=1)
    return torch.where(along > room, room / along.clamp(min=torch.finfo(along.dtype).tiny), 1.0)


def rewards(winner_drift: Tensor, loser_drift: Tensor, beta: float) -> Stats:
    """DPO in TRL's words, from the drifts L - Lref of winners and losers, [pairs] each.

    A sample's reward is beta times what stands for the log-ratio of network and reference, -1/2 (L - Lref):

        rewards/chosen      mean reward of the winners, -beta/2 (L_w - Lref_w)
        rewards/rejected    mean reward of the losers, -beta/2 (L_l - Lref_l)
        rewards/margins     their difference, beta m
        rewards/accuracies  share of pairs with a margin above 0 (a tie counts as lost, as in TRL)
    """
    chosen, rejected = -0.5 * beta * winner_drift, -0.5 * beta * loser_drift
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }


def kto_loss(
    error: Tensor, reference_error: Tensor, desirable: Tensor, *, beta: float, weights: Tensor | None = None
) -> tuple[Tensor, Stats]:
    """For single samples that are simply good or bad (KTO, arXiv 2402.01306; Diffusion-KTO, 2404.04465).

    `error`, `reference_error` [B]: `noise_error` of the network and of its reference; `desirable` bool [B].
    With the gain r = -1/2 (L - Lref) and the reference point z = max(0, mean r of the batch), held fixed:
    loss = mean of 1 - sigmoid(beta (r - z)) for good samples, 1 - sigmoid(beta (z - r)) for bad ones.
    """
    gain = -0.5 * (error - reference_error)
    origin = gain.detach().mean().clamp(min=0)
    sign = torch.where(desirable, 1.0, -1.0)
    losses = 1 - torch.sigmoid(beta * sign * (gain - origin))
    loss = losses.mean() if weights is None else (weights * losses).mean()
    drift, margin = (error - reference_error).detach(), sign * gain.detach()
    winner_drift, loser_drift = _mean_where(drift, desirable), _mean_where(drift, ~desirable)
    return loss, {
        "margin": margin.mean(),
        "accuracy": accuracy(margin),
        "winner_drift": winner_drift,
        "loser_drift": loser_drift,
        "rewards/chosen": -0.5 * beta * winner_drift,
        "rewards/rejected": -0.5 * beta * loser_drift,
        "rewards/margins": -0.5 * beta * (winner_drift - loser_drift),
    }


def accuracy(margins: Tensor) -> Tensor:
    """Share of margins above 0, a tie counting one half."""
    return ((margins.sign() + 1) / 2).mean()


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 where there are none."""
    return values[chosen].sum() / chosen.sum().clamp(min=1)


def prediction_type(scheduler: DDIMScheduler) -> str:
    """epsilon or v_prediction. Raises HuViDPOError for a scheduler that predicts anything else."""
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise HuViDPOError(f"scheduler predicts {kind!r}; training knows epsilon and v_prediction")
    return kind
