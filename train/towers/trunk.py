"""Trunks: a model's forward pass for the inputs of one modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cusa.data.errors import FORWARD_PASS, StudentError, first_line

NamedInputs = Mapping[str, torch.Tensor]
Inputs = torch.Tensor | NamedInputs


class Trunk(nn.Module):
    """Maps pixels or tokens to features with a pretrained model.

    Args:
        encode: Maps tensors by the names of the model's inputs to features ``[n, dim]``.
        model: The model that ``encode`` runs.
        description: What the model is, for errors.
        source: Its name or folder, for errors.
        owns_model: Whether this trunk holds the model's parameters. Of two trunks of one model,
            only one does.

    Attributes:
        frozen: Whether the model is not trained.
        modules_run: The modules that the forward pass runs, once it was probed.
    """

    def __init__(
        self,
        encode: Callable[[NamedInputs], torch.Tensor],
        model: nn.Module,
        description: str,
        source: str,
        owns_model: bool = True,
    ) -> None:
        super().__init__()
        self._encode = encode
        self._description = description
        self._source = source
        self.frozen = False
        self.modules_run: Sequence[nn.Module] = ()
        if owns_model:
            self.backbone = model

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return float ``[n, dim]``; of a frozen trunk, without a graph.

        Args:
            inputs: float ``[n, 3, h, w]``, or tensors by the names of the model's inputs.

        Raises:
            StudentError: If the model fails on them.
        """
        if not isinstance(inputs, Mapping):
            inputs = {"pixel_values": inputs}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            try:
                return self._encode(inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a model's own code raises nearly anything
                raise StudentError(
                    f"student {self._source!r} ({self._description}) fails on "
                    f"{self._item(inputs)} ({first_line(error)})",
                    name=self._source,
                    location=FORWARD_PASS,
                ) from None

    def train(self, mode: bool = True) -> Trunk:
        """Set the training mode; a frozen trunk's modules, and BatchNorms, stay in eval mode."""
        super().train(mode)
        # By the statistics of a batch, BatchNorm would change the features that were pretrained.
        in_eval_mode: list[nn.Module] = [
            module for module in self.modules() if isinstance(module, _BatchNorm)
        ]
        if self.frozen:
            in_eval_mode += self.modules_run
        for module in in_eval_mode:
            module.training = False
        return self

    def freeze(self, frozen: bool = True) -> None:
        """Train the model no more, or again."""
        self.frozen = frozen
        self.train(self.training)

    @torch.no_grad()
    def probe(
        self,
        model: nn.Module,
        inputs: Inputs,
    ) -> torch.Tensor:
        """Return the features of inputs, and note which modules of the model were run.

        Args:
            model: The model, in eval mode.
            inputs: As :meth:`forward` takes them.
        """
        modules_run: dict[nn.Module, None] = {}

        def note(module: nn.Module, _arguments: Any) -> None:
            modules_run[module] = None

        handles = [module.register_forward_pre_hook(note) for module in model.modules()]
        try:
            features = self(inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.modules_run = tuple(modules_run)
        return features

    @torch.no_grad()
    def _item(self, inputs: NamedInputs) -> str:
        """Describe what a batch fails on: the first item that also fails by itself, if any."""
        n_items = len(next(iter(inputs.values())))
        batch = f"a batch of {n_items}"
        if n_items == 1:
            return batch
        for number in range(n_items):
            only_row = slice(number, number + 1)
            one_item = {name: values[only_row] for name, values in inputs.items()}
            try:
                self._encode(one_item)
            except Exception:
                return f"item {number + 1} of {batch}"
        return batch
