"""All that training changes: weights, temperatures, AdamW's moments, the gradient scaler, the random states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cusa.data.errors import CusaError
from cusa.train.config import Config
from cusa.train.step import TrainStep, make_optimizer
from cusa.train.tensors import prefixed, under


class TrainingState:
    """Changes with every step, is saved with every checkpoint.

    Args:
        step: The module that is trained.
        config: The run's settings.
        device: Where it is.
    """

    def __init__(self, step: TrainStep, config: Config, device: torch.device) -> None:
        self._step, self._config, self._device = step, config, device
        self._optimizer, self._names = make_optimizer(step, config)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")

    def descend(self, loss: torch.Tensor, lr: float) -> bool:
        """Backward pass and optimizer step.

        Args:
            loss: Scalar.
            lr: The learning rate.

        Returns:
            Whether loss and gradient are finite. If not, nothing is changed. (In fp16 gradients overflow now and then;
            the scaler leaves such a step out and lowers its scale.)
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._config.optim.grad_clip or math.inf)
        finite = torch.isfinite(loss.detach())
        if not self._scaler.is_enabled():
            finite &= torch.isfinite(norm)
        if not finite:  # the one wait for the GPU, when all that is long has been queued
            return False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return True

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is the same in every process, by name."""
        state: dict[int, dict[str, torch.Tensor]] = self._optimizer.state_dict()["state"]
        moments = {f"{self._names[i]}.{key}": value for i, part in state.items() for key, value in part.items()}
        return {
            **prefixed("student", self._step.student.state_dict()),
            **prefixed("loss", self._step.loss.state_dict()),
            **prefixed("optimizer", moments),
        }

    def scaler(self) -> dict[str, Any]:
        """The gradient scaler's state, JSON-compatible."""
        return self._scaler.state_dict()

    def random_states(self) -> dict[str, torch.Tensor]:
        """This process's own."""
        states = {"cpu": torch.get_rng_state()}
        return states | {"cuda": torch.cuda.get_rng_state(self._device)} if self._device.type == "cuda" else states

    def restore(
        self, tensors: Mapping[str, torch.Tensor], random_states: Mapping[str, torch.Tensor], scaler: dict[str, Any]
    ) -> None:
        """Go back to what was saved.

        Raises:
            CusaError: If it is of another student or optimizer.
        """
        try:
            self._step.student.load_state_dict(under("student", tensors))
            self._step.loss.load_state_dict(under("loss", tensors))
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in under("optimizer", tensors).items():
                parameter, _, key = name.rpartition(".")
                state.setdefault(self._names.index(parameter), {})[key] = tensor
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            detail = " ".join(str(error).split())[:200]
            raise CusaError(f"the checkpoint is of another student ({detail}); was a file changed?") from None
        self._scaler.load_state_dict(scaler)
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states and self._device.type == "cuda":
            torch.cuda.set_rng_state(random_states["cuda"], self._device)
