"""CUSALoss beside a momentum queue, as ALBEF, BLIP and X2-VLM have it.

The momentum encoders' features of the batch, and behind them those of earlier batches, are the
candidates. A TeacherQueue remembers which pairs the queue holds, and looks up their teacher rows.

Run it: ``python docs/examples/momentum_queue.py``
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cusa import Candidates, CUSALoss, TeacherQueue, Teachers

from made_up import N_WORDS, caption_batches, make_data
from plain_loop import Encoder

MOMENTUM = 0.9
EMBED_DIM = 32


class MomentumHost(nn.Module):
    """Two encoders, slow copies of them, and a queue of the copies' features.

    The queue, the slot that is next in it, and the rows in its slots are saved with the weights.
    """

    feature_queues: torch.Tensor
    next_slot: torch.Tensor

    def __init__(self, queue_size: int) -> None:
        super().__init__()
        image_trunk = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.GELU())
        text_trunk = nn.Sequential(nn.EmbeddingBag(N_WORDS, 64), nn.GELU())
        self.image_encoder = Encoder(image_trunk, 64, EMBED_DIM)
        self.text_encoder = Encoder(text_trunk, 64, EMBED_DIM)
        self.slow_image_encoder = copy.deepcopy(self.image_encoder).requires_grad_(False)
        self.slow_text_encoder = copy.deepcopy(self.text_encoder).requires_grad_(False)
        # Of the heads: image, text, uni-modal image, uni-modal text.
        self.register_buffer("feature_queues", torch.zeros(4, queue_size, EMBED_DIM))
        self.register_buffer("next_slot", torch.tensor(0))
        self.row_queue = TeacherQueue(queue_size)

    def encode(self, pixels: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of the four heads, ``[B, d]`` each."""
        image, uni_image = self.image_encoder(pixels)
        text, uni_text = self.text_encoder(tokens)
        return [image, text, uni_image, uni_text]

    @torch.no_grad()
    def encode_slowly(self, pixels: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Move the slow encoders towards the others, and return their features."""
        for slow, fast in (
            (self.slow_image_encoder, self.image_encoder),
            (self.slow_text_encoder, self.text_encoder),
        ):
            for slow_weight, weight in zip(slow.parameters(), fast.parameters(), strict=True):
                slow_weight.lerp_(weight, 1 - MOMENTUM)
        image, uni_image = self.slow_image_encoder(pixels)
        text, uni_text = self.slow_text_encoder(tokens)
        return [image, text, uni_image, uni_text]

    @torch.no_grad()
    def enqueue(self, features: list[torch.Tensor], caption_rows: np.ndarray) -> None:
        """Write features and rows over the oldest ones; the queue is a multiple of the batch."""
        start, stop = self.next_slot.item(), self.next_slot.item() + len(caption_rows)
        for queue, batch_features in zip(self.feature_queues, features, strict=True):
            queue[start:stop] = F.normalize(batch_features, dim=-1)
        self.next_slot.fill_(stop % self.feature_queues.shape[1])
        self.row_queue.enqueue(caption_rows)


def main(steps: int = 60, batch_size: int = 32, queue_size: int = 64) -> list[float]:
    """Train; the loss of every step."""
    torch.manual_seed(0)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        host = MomentumHost(queue_size)

        teachers = Teachers(store, "train")
        loss_fn = CUSALoss()
        parameters = [*host.image_encoder.parameters(), *host.text_encoder.parameters()]
        groups = [{"params": parameters}, *loss_fn.param_groups()]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        for caption_rows in caption_batches(store, batch_size, steps):
            inputs = pixels[teachers.rows(caption_rows).image_ids], tokens[caption_rows]
            features = host.encode(*inputs)
            slow_features = host.encode_slowly(*inputs)
            rows, mask = host.row_queue.candidates(teachers, caption_rows)
            candidates = []
            for in_batch, in_queue in zip(slow_features, host.feature_queues, strict=True):
                candidates.append(torch.cat([in_batch, in_queue]))
            terms = loss_fn(
                *features,
                rows.image,
                rows.text,
                rows.image_ids,
                Candidates(*candidates, mask=mask),
            )
            host.enqueue(slow_features, caption_rows)
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            losses.append(terms.total.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
