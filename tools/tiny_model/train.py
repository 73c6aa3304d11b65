"""Training: a fixed number of steps from a seed, on the processor, with a schedule that depends on the step alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .corpus import conversation, sample_text
from .model import ModelShape, TinyLlama
from .vocabulary import train_vocabulary

REST_WEIGHT = 0.1  # what the user says counts this much; what the assistant says counts 1


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the outcome. ``steps`` of about 2048 tokens each."""

    steps: int = 3900
    seed: int = 20
    threads: int = 2
    peak_rate: float = 2.5e-3
    warm_up_steps: int = 50
    flat_share: float = 0.4
    long_share: float = 0.25  # the last quarter of the steps sees rows of 512 and 768 tokens
    drill_share: float = 0.25  # in the first quarter of the steps, half of the rows only copy
    vocabulary_conversations: int = 6000

    def rows(self, step: int) -> tuple[int, int]:
        """How many rows of how many tokens this step has."""
        if step < self.steps * (1 - self.long_share):
            return 8, 256
        return (2, 768) if step % 6 == 0 else (4, 512)

    def drills(self, step: int) -> int:
        """How many of this step's rows only copy."""
        return self.rows(step)[0] // 2 if step < self.steps * self.drill_share else 0

    def rate(self, step: int) -> float:
        """Learning rate: a short rise, a flat part, then a straight line to zero."""
        if step < self.warm_up_steps:
            return self.peak_rate * (step + 1) / self.warm_up_steps
        flat_until = self.steps * self.flat_share
        return self.peak_rate * min(1.0, (self.steps - step) / (self.steps - flat_until))


@dataclass
class Trained:
    """The model, its vocabulary, and what it took. Times are in seconds."""

    model: TinyLlama
    tokenizer: Tokenizer
    wall_s: float = 0.0
    cpu_s: float = 0.0
    tokens: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)  # (step, loss per assistant token)


class RowSource:
    """Draws training rows: token ids, and for each token how much it counts."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer, self._rng = tokenizer, random.Random(seed)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def batch(self, rows: int, length: int, *, drills: int = 0) -> tuple[Tensor, Tensor]:
        """``rows`` conversations of exactly ``length + 1`` tokens, and their weights; ``drills`` of them only copy."""
        all_ids, all_weights = [], []
        for row in range(rows):
            ids: list[int] = []
            weights: list[float] = []
            for piece in conversation(
                self._rng, length + 1, lambda text: len(self._encode(text)), only_copying=row < drills
            ):
                fresh = self._encode(piece.text)
                ids += fresh
                weights += [1.0 if piece.learn else REST_WEIGHT] * len(fresh)
            all_ids.append(ids[: length + 1])
            all_weights.append(weights[: length + 1])
        return torch.tensor(all_ids), torch.tensor(all_weights)


def loss_of(model: TinyLlama, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy, weighted."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids[:, :-1])
    each = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    counted = weights[:, 1:].flatten()
    return (each * counted).sum() / counted.sum()


def train(plan: TrainingPlan, report: Callable[[str], None] = print) -> Trained:
    """Learn the vocabulary, then the weights. Takes ``plan.threads`` cores."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    began, cpu_began = time.perf_counter(), time.process_time()
    tokenizer = train_vocabulary(sample_text(plan.seed, plan.vocabulary_conversations))
    result = Trained(TinyLlama(ModelShape()), tokenizer)
    model, source = result.model, RowSource(tokenizer, plan.seed + 1)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=plan.peak_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    held_out = RowSource(tokenizer, plan.seed + 2)
    checks = [held_out.batch(8, 256), held_out.batch(4, 512)]
    checks = [(ids, (weights == 1.0).float()) for ids, weights in checks]
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        ids, weights = source.batch(*plan.rows(step), drills=plan.drills(step))
        loss = loss_of(model, ids, weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        result.tokens += ids.numel() - ids.shape[0]
        if (step + 1) % 100 == 0 or step + 1 == plan.steps:
            with torch.no_grad():
                held = sum(loss_of(model, *check).item() for check in checks) / len(checks)
            result.validation.append((step + 1, held))
            result.wall_s, result.cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
            report(
                f"step {step + 1}/{plan.steps}  training loss {loss.item():.4f}  held-out {held:.4f}  "
                f"wall {result.wall_s:.0f} s  cpu {result.cpu_s:.0f} s"
            )
    return result
