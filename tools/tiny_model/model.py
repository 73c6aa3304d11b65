"""The network: a llama of 1.77 million parameters in plain PyTorch.

RoPE turns neighbouring pairs (0, 1), (2, 3), ..., which is what llama.cpp does for the architecture ``llama``, so the
weights go into the GGUF without any permutation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ModelShape:
    """The sizes that llama.cpp needs to know. ``context`` is in tokens."""

    vocabulary: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 1024
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers per attention head."""
        return self.width // self.heads


class RmsNorm(nn.Module):
    """Divides by the root mean square; one learnt scale per number."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


class Block(nn.Module):
    """Grouped-query attention and a SwiGLU feed-forward layer, both before a residual."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape, kv_width = shape, shape.kv_heads * shape.head_width
        self.attn_norm = RmsNorm(shape.width, shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = RmsNorm(shape.width, shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        shape, (rows, length, _) = self.shape, x.shape
        normed = self.attn_norm(x)
        q = self.attn_q(normed).view(rows, length, shape.heads, shape.head_width)
        k = self.attn_k(normed).view(rows, length, shape.kv_heads, shape.head_width)
        v = self.attn_v(normed).view(rows, length, shape.kv_heads, shape.head_width)
        q, k = _rotate(q, turns), _rotate(k, turns)
        k, v = (t.repeat_interleave(shape.heads // shape.kv_heads, dim=2) for t in (k, v))
        seen = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + self.attn_output(seen.transpose(1, 2).reshape(rows, length, shape.width))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


def _rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = turns
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention written out: on a CPU, at these sizes, it takes 20 % less time than the fused kernel."""
    rows, heads, length, width = q.shape
    future = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    q, k, v = ((t if t is not q else t * width**-0.5).flatten(0, 1) for t in (q, k, v))
    weights = torch.softmax(torch.baddbmm(future, q, k.transpose(1, 2)).to(v.dtype), -1)
    return torch.bmm(weights.to(v.dtype), v).unflatten(0, (rows, heads))


class TinyLlama(nn.Module):
    """Tokens in, logits out; the output layer is the embedding."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = RmsNorm(shape.width, shape.norm_epsilon)
        for parameter_name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02
                if parameter_name.endswith(("attn_output.weight", "ffn_down.weight")):
                    scale /= (2 * shape.layers) ** 0.5
                nn.init.normal_(parameter, std=scale)
        speeds = shape.rope_base ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angles = torch.arange(shape.context).float()[:, None] * speeds
        self.register_buffer("cosine", angles.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sine", angles.sin()[None, :, None, :], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embd(tokens)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        length = tokens.shape[1]
        turns = (self.cosine[:, :length].to(kind), self.sine[:, :length].to(kind))
        for block in self.blk:
            x = block(x, turns)
        return functional.linear(self.output_norm(x), self.token_embd.weight)
