"""All that training changes: weights, temperatures, AdamW's moments, the gradient scaler, the random states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cusa.data.errors import RunError, first_line
from cusa.train.config import Config
from cusa.train.step import TrainStep, make_optimizer
from cusa.train.tensors import prefixed, under, unlike


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

        Args:
            tensors: As :meth:`tensors` gives them.
            random_states: As :meth:`random_states` gives them.
            scaler: As :meth:`scaler` gives it.

        Raises:
            RunError: If it is of another student, loss, optimizer or precision; then nothing is
                restored.
        """
        student, loss, moments = (under(part, tensors) for part in ("student", "loss", "optimizer"))
        problem = (
            unlike(student, self._step.student.state_dict())
            or unlike(loss, self._step.loss.state_dict())
            or self._unlike_moments(moments)
            or self._unlike_random_states(random_states)
        )
        if problem:
            raise RunError(f"the checkpoint is of another student ({problem}); was a file changed?")
        try:
            self._scaler.load_state_dict(scaler)
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"the checkpoint is of another precision ({first_line(error)})",
            ) from None
        self._step.student.load_state_dict(student)
        self._step.loss.load_state_dict(loss)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in moments.items():
            parameter, _, key = name.rpartition(".")
            # A copy: what was read maps the file, and the optimizer would go on in it.
            state.setdefault(self._names.index(parameter), {})[key] = tensor.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states and self._device.type == "cuda":
            torch.cuda.set_rng_state(random_states["cuda"], self._device)

    def _unlike_moments(self, moments: Mapping[str, torch.Tensor]) -> str:
        """Tell what is wrong with AdamW's moments; before the first step there are none."""
        if not moments:
            return ""
        expected: dict[str, torch.Tensor] = {}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            expected[f"{name}.step"] = torch.zeros(())
            expected |= {f"{name}.{moment}": parameter for moment in ("exp_avg", "exp_avg_sq")}
        return unlike(moments, expected)

    def _unlike_random_states(self, states: Mapping[str, torch.Tensor]) -> str:
        if "cpu" not in states:
            return "rng is missing"
        difference = unlike({"rng": states["cpu"]}, {"rng": torch.get_rng_state()})
        if difference:
            return difference
        try:
            torch.Generator().set_state(states["cpu"])
        except RuntimeError as error:  # numbers that the generator never has
            return f"rng is no state of the generator: {first_line(error)}"
        return ""
