import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from huvidpo.attention import (
    Attention,
    SparseCausalAttention,
    TemporalAttention,
    TextAttention,
    visible_frames,
)

B, N, C, HEADS = 2, 6, 8, 2


def tokens(frames: int) -> Tensor:
    return torch.randn(B * frames, N, C, generator=torch.Generator().manual_seed(frames))


def plain(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for one sequence [tokens, C], spelled out."""
    out = []
    for q, k, v in zip(
        *(
            layer(y).chunk(HEADS, -1)
            for layer, y in zip(
                (attention.to_q, attention.to_k, attention.to_v), (x, context, context), strict=True
            )
        ),
        strict=True,
    ):
        out.append(((q @ k.T) / (C / HEADS) ** 0.5).softmax(-1) @ v)
    return attention.to_out[0](torch.cat(out, -1))


def test_visible_frames_by_hand():
    assert visible_frames(4, "first_prev").tolist() == [[0, 0], [0, 0], [0, 1], [0, 2]]
    assert visible_frames(3, "first").tolist() == [[0], [0], [0]]
    assert visible_frames(1, "first_prev").tolist() == [[0, 0]]


def test_unknown_mode_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'last' is unknown; use one of first_prev, first"):
        SparseCausalAttention(C, HEADS, "last")


@pytest.mark.parametrize("mode", ["first_prev", "first"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_sparse_causal_attention_equals_the_loop(mode: str, frames: int):
    attention = SparseCausalAttention(C, HEADS, mode)
    x = tokens(frames)
    clips = x.view(B, frames, N, C)
    expected = torch.stack(
        [
            plain(attention, clips[b, f], torch.cat([clips[b, g] for g in visible_frames(frames, mode)[f]]))
            for b in range(B)
            for f in range(frames)
        ]
    )
    torch.testing.assert_close(attention(x, frames), expected)


@pytest.mark.parametrize(("mode", "seen"), [("first_prev", [0, 3, 4]), ("first", [0, 4])])
def test_a_frame_sees_only_the_first_the_previous_and_itself(mode: str, seen: list[int]):
    x = tokens(6).requires_grad_()
    SparseCausalAttention(C, HEADS, mode)(x, 6)[4].sum().backward()
    touched = x.grad.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert touched == seen  # of clip 0; clip 1 is not touched at all


def test_text_attention_equals_repeating_the_text():
    attention = TextAttention(C, HEADS, context_dim=10)
    x, text = tokens(3), torch.randn(B, 4, 10)
    expected = torch.stack([plain(attention, x[i], text[i // 3]) for i in range(B * 3)])
    torch.testing.assert_close(attention(x, attention.keys_values(text), 3), expected)


def test_temporal_attention_equals_the_loop_over_pixels_and_starts_at_zero():
    attention = TemporalAttention(C, HEADS)
    x = tokens(5)
    assert not attention(x, 5).any()
    torch.nn.init.normal_(attention.to_out[0].weight)
    clips = x.view(B, 5, N, C)
    pixels = [[plain(attention, clips[b, :, n], clips[b, :, n]) for n in range(N)] for b in range(B)]
    expected = torch.stack([torch.stack(rows, 1) for rows in pixels]).flatten(0, 1)
    torch.testing.assert_close(attention(x, 5), expected)


@pytest.mark.parametrize("most_plain", [0, 2**22], ids=["fused", "plain"])
def test_bfloat16_training_on_cpu_stays_close_to_float32(most_plain: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huvidpo.hardware.MOST_PLAIN_SCORES", most_plain)
    attention = SparseCausalAttention(C, HEADS, "first_prev")
    x = tokens(4)
    with torch.autocast("cpu", torch.bfloat16):
        low = attention(x.requires_grad_(), 4)
    assert low.dtype == torch.bfloat16
    assert F.mse_loss(low.float(), attention(x, 4)) < 1e-4
    low.float().sum().backward()
    assert attention.to_q.weight.grad.isfinite().all()


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="8 channels do not divide into 3 heads"):
        Attention(8, 3)
