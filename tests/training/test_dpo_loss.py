import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses import (
    add_noise,
    dpo_loss,
    kto_loss,
    loser_scale,
    noise_error,
    noise_prediction,
    prediction_target,
)

SD14 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPES = [(2, 3, 4, 5, 6), (2, 3, 5, 6)]
SEEDS = st.integers(0, 2**31)


def random_parts(seed, shape, dtype=torch.float32):
    """Predictions of policy and reference for winner and loser, and the noise."""
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(winner, loser, reference_winner, reference_loser, noise, **options):
    """`dpo_loss` from the four predictions, each [B, ...]."""
    policy, reference = torch.cat([winner, loser]), torch.cat([reference_winner, reference_loser])
    return dpo_loss(policy, reference, noise, **options)


def loss_of_errors(*pairs, **options):
    """`dpo_loss` of pairs (L_w, L_l, Lref_w, Lref_l): pictures of one pixel, whose noise is 0."""
    pixels = torch.tensor(pairs).sqrt().T.reshape(4, len(pairs), 1, 1, 1)
    return loss_of(*pixels, torch.zeros(len(pairs), 1, 1, 1), **options)


# Equation 9


def test_equation_9_by_hand():
    """Two frames of one pixel; only frame 1 counts. L_w = 1, L_l = 9, Lref_w = 4, Lref_l = 1."""

    def clip(value: float) -> torch.Tensor:
        return torch.tensor([100.0, value]).reshape(1, 1, 2, 1, 1)

    loss, stats = loss_of(clip(1), clip(3), clip(2), clip(1), torch.zeros(1, 1, 2, 1, 1), beta=0.2)
    margin = -0.5 * ((1 - 9) - (4 - 1))
    assert stats["margin"].item() == pytest.approx(margin) == 5.5
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2 * margin)))
    assert stats["accuracy"] == 1
    assert (stats["winner_drift"].item(), stats["loser_drift"].item()) == (-3, 8)


def test_rewards_in_trls_words_by_hand():
    """Three pairs: won, lost, and a tie, which TRL counts as lost and `accuracy` as one half."""
    pairs = [(1.0, 9.0, 4.0, 1.0), (4.0, 1.0, 1.0, 1.0), (4.0, 4.0, 1.0, 1.0)]  # drifts -3 8, 3 0, 3 3
    _, stats = loss_of_errors(*pairs, beta=0.2)
    assert stats["rewards/chosen"].item() == pytest.approx(-0.1 * (-3 + 3 + 3) / 3)
    assert stats["rewards/rejected"].item() == pytest.approx(-0.1 * (8 + 0 + 3) / 3)
    assert stats["rewards/margins"].item() == pytest.approx((1.1 - 0.3 + 0) / 3)
    assert stats["rewards/margins"].item() == pytest.approx(0.2 * stats["margin"].item())
    assert stats["rewards/accuracies"].item() == pytest.approx(1 / 3)
    assert stats["accuracy"].item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_one_mean_per_sample(shape):
    prediction, noise = random_parts(0, shape)[:2]
    counted = (prediction - noise)[:, :, 1:] if len(shape) == 5 else prediction - noise
    expected = torch.stack([sample.square().mean() for sample in counted])
    torch.testing.assert_close(noise_error(prediction, noise), expected)
    assert noise_error(prediction.bfloat16(), noise.bfloat16()).dtype == torch.float32


def test_loss_does_not_depend_on_the_number_of_frames_or_pixels():
    """A constant error is the same error at any size, so beta means the same."""
    losses = []
    for frames, side in ((2, 1), (9, 4)):
        policy_w, policy_l, ref = (torch.full((1, 4, frames, side, side), v) for v in (0.1, 0.5, 0.3))
        losses.append(loss_of(policy_w, policy_l, ref, ref, torch.zeros_like(ref), beta=50)[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_shapes_that_differ_are_refused():
    parts = random_parts(0, SHAPES[0])
    with pytest.raises(ValueError, match="want the same"):
        loss_of(*parts[:4], parts[4][:, :, :3], beta=1)
    with pytest.raises(ValueError, match="want the same"):
        noise_error(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


# Invariants


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shape=st.sampled_from(SHAPES), beta=st.floats(0.01, 5000))
def test_policy_that_equals_its_reference_has_loss_ln_2(seed, shape, beta):
    winner, loser, _, _, noise = random_parts(seed, shape)
    loss, stats = loss_of(winner, loser, winner, loser, noise, beta=beta)
    assert loss.item() == pytest.approx(math.log(2))
    assert (stats["accuracy"], stats["margin"]) == (0.5, 0)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shape=st.sampled_from(SHAPES))
def test_swapping_winner_and_loser_flips_the_sign(seed, shape):
    winner, loser, ref_w, ref_l, noise = random_parts(seed, shape)
    _, stats = loss_of(winner, loser, ref_w, ref_l, noise, beta=50)
    _, swapped = loss_of(loser, winner, ref_l, ref_w, noise, beta=50)
    assert stats["margin"].item() == -swapped["margin"].item() != 0
    assert stats["accuracy"].item() == 1 - swapped["accuracy"].item()
    assert stats["rewards/chosen"].item() == swapped["rewards/rejected"].item()


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, shape=st.sampled_from(SHAPES))
def test_identical_pair_has_no_gradient(seed, shape):
    """Winner and loser are the same sample, so whatever the network predicts, it predicts for both."""
    _, _, ref, _, noise = random_parts(seed, shape)
    weight = torch.tensor(0.7, requires_grad=True)
    policy = weight * ref
    loss_of(policy, policy, ref, ref, noise, beta=5000)[0].backward()
    assert weight.grad == 0


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_first_frame_gets_no_gradient(seed):
    parts = random_parts(seed, SHAPES[0]).requires_grad_()
    loss_of(*parts, beta=50)[0].backward()
    assert (parts.grad[:, :, :, 0] == 0).all()
    assert (parts.grad[:4, :, :, 1:] != 0).any()


@settings(max_examples=20, deadline=None)
@given(
    seed=SEEDS,
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(["sigmoid", "ipo", "hinge"]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_finite_at_beta_5000_in_bf16(seed, shape, kind, scale):
    parts = (scale * random_parts(seed, shape, torch.bfloat16)).requires_grad_()
    loss, stats = loss_of(*parts, beta=5000, kind=kind, anchor=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert parts.grad.isfinite().all()
    assert all(figure.isfinite() for figure in stats.values())


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["sigmoid", "ipo", "hinge"]))
def test_gradient_favours_the_winner_and_disfavours_the_loser(seed, kind):
    """The winner's error is to fall and the loser's to rise, by the same: d L = 2 prediction d prediction."""
    values = torch.rand(4, 1, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) / 10
    winner, loser = values[0].requires_grad_(), values[1].requires_grad_()
    loss, _ = loss_of(winner, loser, values[2], values[3], torch.zeros(1, 1, 1, 1), beta=50, kind=kind)
    winner_grad, loser_grad = torch.autograd.grad(loss, (winner, loser))
    assert winner_grad > 0 > loser_grad
    torch.testing.assert_close(winner_grad / winner, -loser_grad / loser)


# Variants, each against a value worked out by hand: m = 0.25 from these errors, u = beta m = 0.5

ERRORS = (0.5, 1.5, 0.75, 1.25)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.474077),  # log(1 + e^-0.5)
        ({"smoothing": 0.1}, 0.9 * 0.474077 + 0.1 * 0.974077),
        ({"kind": "ipo"}, 0.0),  # m = 1 / (2 beta)
        ({"kind": "ipo", "beta": 1.0}, 0.0625),
        ({"kind": "hinge"}, 0.5),
        ({"kind": "hinge", "beta": 8.0}, 0.0),
        ({"kind": "sft"}, 0.5),
        ({"winner_weight": 3.0}, 0.474077 + 3 * 0.5),
        ({"safeguard": 0.9}, 0.474077),  # of the gradient alone
    ],
)
def test_variant_equals_its_hand_computed_value(options, expected):
    loss, stats = loss_of_errors(ERRORS, **{"beta": 2.0, **options})
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert stats["margin"].item() == pytest.approx(0.25)


def test_anchor_takes_the_winners_rise_off_the_margin():
    """Both became worse, the loser more: m = 0.25, but the winner rose by 0.5."""
    rising = (1.0, 2.0, 0.5, 1.0)
    assert loss_of_errors(rising, beta=2.0)[0].item() == pytest.approx(0.474077, abs=1e-6)
    loss, stats = loss_of_errors(rising, beta=2.0, anchor=1.0)
    assert loss.item() == pytest.approx(0.974077, abs=1e-6)  # log(1 + e^0.5): m - 0.5 = -0.25
    assert stats["margin"].item() == pytest.approx(0.25)
    assert loss_of_errors(ERRORS, beta=2.0, anchor=1.0)[0].item() == pytest.approx(0.474077, abs=1e-6)


def test_sft_learns_the_winners_alone():
    parts = random_parts(0, SHAPES[0]).requires_grad_()
    loss_of(*parts, beta=50, kind="sft")[0].backward()
    assert (parts.grad[0][:, :, 1:] != 0).all()
    assert (parts.grad[1:4] == 0).all()


def test_the_safeguard_is_the_papers_formula():
    """Residuals along one another by 4, of the winner 1: (1 - mu) 1 / 4; and no hold where they part."""
    winner, loser = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[4.0, 3], [-4, 3], [0.1, 3]]),
    )
    torch.testing.assert_close(loser_scale(winner, loser, 0.6), torch.tensor([0.1, 1.0, 1.0]))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shape=st.sampled_from(SHAPES), mu=st.floats(0, 1), beta=st.floats(1, 5000))
def test_with_the_safeguard_no_step_raises_the_winners_error(seed, shape, mu, beta):
    """One parameter moves both predictions, and the loser, far off the same way, pulls harder."""
    winner, _, ref_w, ref_l, noise = random_parts(seed, shape)

    def rise(safeguard: float | None) -> float:
        shift = torch.zeros_like(winner, requires_grad=True)
        losing = noise + 5 * (winner - noise)
        loss, _ = loss_of(
            winner + shift, losing + shift, ref_w, ref_l, noise, beta=beta / 5000, safeguard=safeguard
        )
        (gradient,) = torch.autograd.grad(loss, shift)
        error = noise_error(winner + shift, noise).mean()
        return -(gradient * torch.autograd.grad(error, shift)[0]).sum().item()

    assert rise(None) > 0
    assert rise(mu) < 1e-4 * rise(None)


def test_weights_scale_each_pair():
    loss, _ = loss_of_errors(ERRORS, (1.0, 1.0, 1.0, 1.0), beta=2.0, weights=torch.tensor([1.5, 0.5]))
    assert loss.item() == pytest.approx((1.5 * 0.474077 + 0.5 * math.log(2)) / 2, abs=1e-6)


# Segments

VARIANTS = [
    {},
    {"kind": "ipo"},
    {"kind": "hinge", "anchor": 2.0},
    {"kind": "sft"},
    {"smoothing": 0.1, "winner_weight": 3.0},
    {"safeguard": 0.5},
]


def gradients(seed: int, shape: tuple[int, ...], swap: bool = False, **options):
    """Loss, its gradients of winner and loser, and the metrics."""
    winner, loser, ref_w, ref_l, noise = random_parts(seed, shape)
    sides = [winner.requires_grad_(), loser.requires_grad_()]
    if swap:
        loss, stats = loss_of(loser, winner, ref_l, ref_w, noise, **options)
    else:
        loss, stats = loss_of(winner, loser, ref_w, ref_l, noise, **options)
    return loss, torch.autograd.grad(loss, sides), stats


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "frames"), [(SHAPES[0], 3), (SHAPES[0], 99), (SHAPES[1], None), (SHAPES[1], 5)]
)
def test_one_segment_is_the_whole_clip_to_the_bit(shape, frames, options):
    pairs = torch.tensor([1.5, 0.5])
    plain = gradients(0, shape, beta=50, weights=pairs, **options)
    labels = torch.ones(2, 1, dtype=torch.int8)
    by = gradients(0, shape, beta=50, weights=pairs, labels=labels, segment_frames=frames, **options)
    assert torch.equal(plain[0], by[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], by[1], strict=True))
    assert plain[2] == by[2]


def test_plain_loss_is_to_the_bit_what_it_was_before_segments():
    winner, loser, ref_w, ref_l, noise = random_parts(0, SHAPES[0])

    def error(prediction: torch.Tensor) -> torch.Tensor:
        return (prediction[:, :, 1:] - noise[:, :, 1:]).flatten(1).square().mean(dim=1)

    margin = -0.5 * ((error(winner) - error(ref_w)) - (error(loser) - error(ref_l)))
    loss, stats = loss_of(winner, loser, ref_w, ref_l, noise, beta=50)
    assert torch.equal(loss, -torch.nn.functional.logsigmoid(50 * margin).mean())
    assert torch.equal(stats["margin"], margin.mean())


def test_segments_by_hand():
    """Of one pixel: frames 1 and 2 are the winner's, 3 and 4 nobody's, and the last is the loser's."""

    def clip(*values: float) -> torch.Tensor:
        return torch.tensor([100.0, *values]).reshape(1, 1, 6, 1, 1)

    reference = clip(1, 1, 1, 1, 1)
    loss, stats = loss_of(
        clip(0, 1, 2, 0, 2), clip(1, 3, 0, 7, 1), reference, reference, torch.zeros(1, 1, 6, 1, 1),
        beta=0.5, labels=torch.tensor([[1, 0, -1]]), segment_frames=2,
    )  # fmt: skip
    first = -0.5 * ((0.5 - 1) - (5 - 1))  # L of frames 1 and 2: winner (0 + 1) / 2, loser (1 + 9) / 2
    last = -0.5 * ((1 - 1) - (4 - 1))  # frame 5 alone, and the loser of the pair wins it
    expected = [math.log(1 + math.exp(-0.5 * margin)) for margin in (first, last)]
    assert loss.item() == pytest.approx(sum(expected) / 2)
    assert stats["margin"].item() == pytest.approx((first + last) / 2)
    assert stats["winner_drift"].item() == pytest.approx((-0.5 + 0) / 2)


def test_a_tied_segment_gets_no_gradient_and_every_pair_counts_the_same():
    labels = torch.tensor([[1, 0, 0, 0], [1, 1, -1, 1]])
    loss, (winner, loser), _ = gradients(0, (2, 3, 5, 5, 6), beta=50, labels=labels, segment_frames=1)
    for gradient in (winner, loser):
        moved = gradient.abs().sum(dim=(1, 3, 4)) > 0
        assert torch.equal(moved[:, 1:], labels != 0)
        assert not moved[:, 0].any()
    parts = random_parts(0, (2, 3, 5, 5, 6))
    alone = [
        loss_of(*(part[[i]] for part in parts), beta=50, labels=labels[[i]], segment_frames=1)[0]
        for i in (0, 1)
    ]
    torch.testing.assert_close(loss.detach(), torch.stack(alone).mean())


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    labels=st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3),
    options=st.sampled_from(VARIANTS),
)
def test_turning_labels_is_swapping_the_clips(seed, labels, options):
    """The tricks: a label turned, a pair named the other way round."""
    shape, signs = (2, 3, 7, 4, 4), torch.tensor([labels, labels])
    plain = gradients(seed, shape, beta=5, labels=signs, segment_frames=2, **options)
    turned = gradients(seed, shape, swap=True, beta=5, labels=-signs, segment_frames=2, **options)
    torch.testing.assert_close(plain[0], turned[0])
    for one, other in zip(plain[1], turned[1], strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, labels=st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3))
def test_swapping_winner_and_loser_flips_each_segments_gradient(seed, labels):
    """At the reference, where every margin is 0: what a segment pulled, it then pushes as hard."""
    winner, loser, _, _, noise = random_parts(seed, (1, 3, 7, 4, 4))
    found = {}
    for sign in (1, -1):
        sides = [part.clone().requires_grad_() for part in (winner, loser)]
        options = {"beta": 50.0, "labels": sign * torch.tensor([labels]), "segment_frames": 2}
        loss, stats = loss_of(*sides, winner, loser, noise, **options)
        found[sign] = torch.autograd.grad(loss, sides)
        assert (stats["margin"], stats["accuracy"]) == (0, 0.5)
    for pulled, pushed in zip(found[1], found[-1], strict=True):
        torch.testing.assert_close(pulled, -pushed)
    along = (found[1][0] * (winner - noise))[:, :, 1:].sum(dim=(1, 3, 4)).view(3, 2).sum(dim=1)
    assert (along.sign() == torch.tensor(labels)).all(), (
        "the error of a segment falls where its label says so"
    )


def test_an_identical_pair_has_no_gradient_whatever_its_labels():
    _, _, ref, _, noise = random_parts(0, SHAPES[0])
    weight = torch.tensor(0.7, requires_grad=True)
    policy, labels = weight * ref, torch.tensor([[1, -1, 0], [-1, 1, 1]])
    options = {"beta": 5000.0, "labels": labels, "segment_frames": 1}
    loss_of(policy, policy, ref, ref, noise, **options)[0].backward()
    assert weight.grad == 0


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"labels \[2, 2\]: want one a segment, \[2, 3\]"):
        gradients(0, SHAPES[0], beta=1, labels=torch.ones(2, 2), segment_frames=1)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="sigmoid, ipo, hinge"):
        loss_of_errors(ERRORS, beta=1.0, kind="simpo")


def test_kto_by_hand():
    """Gains r = .25 (good) and -.05 (bad): z = .1, so 1 - sigmoid(2 * .15) and 1 - sigmoid(2 * .15)."""
    error, reference = torch.tensor([0.5, 1.1]), torch.tensor([1.0, 1.0])
    loss, stats = kto_loss(error, reference, torch.tensor([True, False]), beta=2.0)
    assert loss.item() == pytest.approx(1 - 1 / (1 + math.exp(-0.3)), abs=1e-6)
    assert stats["margin"].item() == pytest.approx(0.15)
    assert stats["accuracy"] == 1
    assert stats["winner_drift"].item() == pytest.approx(-0.5)
    assert stats["loser_drift"].item() == pytest.approx(0.1)
    assert stats["rewards/chosen"].item() == pytest.approx(0.5)
    assert stats["rewards/rejected"].item() == pytest.approx(-0.1)
    assert stats["rewards/margins"].item() == pytest.approx(0.6)


@pytest.mark.parametrize("good", [True, False])
def test_kto_of_one_sort_only(good):
    """Untrained: 1 - sigmoid(0). A good sample is to be learnt, a bad one to be unlearnt."""
    error = torch.tensor([1.0, 1.0], requires_grad=True)
    loss, stats = kto_loss(error, torch.ones(2), torch.tensor([good, good]), beta=2.0)
    loss.backward()
    assert loss.item() == 0.5
    assert ((error.grad > 0) == good).all()
    assert stats["accuracy"] == 0.5
    assert all(figure.isfinite() for figure in stats.values())


# The noise a network's answer means


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_answer_means_the_very_noise(kind, shape):
    scheduler = DDIMScheduler(
        **SD14, prediction_type=kind, rescale_betas_zero_snr=kind == "v_prediction", clip_sample=False
    )
    latents, noise = random_parts(0, shape)[:2]
    timesteps = torch.tensor([3, 999])  # 999: zero terminal SNR
    noisy = add_noise(scheduler, latents, noise, timesteps)
    answer = prediction_target(scheduler, latents, noise, timesteps)
    error = noise_error(noise_prediction(scheduler, answer.bfloat16(), noisy, timesteps), noise)
    torch.testing.assert_close(error, torch.zeros(2), atol=1e-4, rtol=0)
    exact = noise_prediction(scheduler, answer, noisy, timesteps)
    torch.testing.assert_close(noise_error(exact, noise), torch.zeros(2), atol=1e-9, rtol=0)


def test_a_picture_is_noised_whole():
    latents, noise = random_parts(0, SHAPES[1])[:2]
    noisy = add_noise(DDIMScheduler(**SD14), latents, noise, torch.tensor([999, 10]))
    assert not torch.isclose(noisy, latents).all(dim=(1, 2, 3)).any()
