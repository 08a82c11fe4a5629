"""All that training changes: weights, temperatures, moments, gradient scaler, random states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cusa.data.errors import RunError, first_line
from cusa.train.config import Config
from cusa.train.saving.tensors import mismatch, with_prefix, without_prefix
from cusa.train.step import TrainStep, make_optimizer


class TrainingState:
    """Changes with every step, is saved with every checkpoint.

    Args:
        step: The module that is trained.
        config: The run's settings.
        device: Where it is.
    """

    def __init__(
        self,
        step: TrainStep,
        config: Config,
        device: torch.device,
    ) -> None:
        self._step = step
        self._device = device
        self._greatest_norm = config.optim.grad_clip or math.inf
        self._optimizer, self._names = make_optimizer(step, config)
        self._parameters: list[nn.Parameter] = []
        for group in self._optimizer.param_groups:
            self._parameters += group["params"]
        is_fp16 = config.train.precision == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, enabled=is_fp16)

    def descend(self, loss: Tensor, learning_rate: float) -> bool:
        """Take the backward pass and the optimizer's step.

        Args:
            loss: Scalar.
            learning_rate: Of this step.

        Returns:
            Whether loss and gradient are finite. If not, nothing is changed. (In fp16 gradients
            overflow now and then; the scaler leaves such a step out and lowers its scale.)
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._greatest_norm)
        is_finite = torch.isfinite(loss.detach())
        # The scaler looks at the gradient itself.
        if not self._scaler.is_enabled():
            is_finite &= torch.isfinite(norm)
        if not is_finite:  # the one wait for the GPU, when all that takes long has been queued
            return False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return what is the same in every process, by name."""
        state = self._optimizer.state_dict()["state"]
        moments: dict[str, Tensor] = {}
        for number, of_parameter in state.items():
            moments |= with_prefix(self._names[number], of_parameter)
        return {
            **with_prefix("student", self._step.student.state_dict()),
            **with_prefix("loss", self._step.loss.state_dict()),
            **with_prefix("optimizer", moments),
        }

    def scaler(self) -> dict[str, Any]:
        """Return the gradient scaler's state, JSON-compatible."""
        return self._scaler.state_dict()

    def random_states(self) -> dict[str, Tensor]:
        """Return this process's own random states, by device."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        random_states: Mapping[str, Tensor],
        scaler: dict[str, Any],
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
        student = without_prefix("student", tensors)
        loss = without_prefix("loss", tensors)
        moments = without_prefix("optimizer", tensors)
        problem = (
            mismatch(student, self._step.student.state_dict())
            or mismatch(loss, self._step.loss.state_dict())
            or self._mismatch_of_moments(moments)
            or self._mismatch_of_random_states(random_states)
        )
        if problem:
            raise RunError(f"the checkpoint is of another student ({problem}); was a file changed?")
        try:
            self._scaler.load_state_dict(scaler)
        except (RuntimeError, KeyError) as error:
            problem = first_line(error)
            raise RunError(f"the checkpoint is of another precision ({problem})") from None
        # All has been looked at: nothing fails from here on.
        self._step.student.load_state_dict(student)
        self._step.loss.load_state_dict(loss)
        self._restore_optimizer(moments)
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states and self._device.type == "cuda":
            torch.cuda.set_rng_state(random_states["cuda"], self._device)

    def _restore_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in moments.items():
            parameter_name, _, moment = name.rpartition(".")
            number = self._names.index(parameter_name)
            # A copy: what was read maps the file, and the optimizer would go on in it.
            state.setdefault(number, {})[moment] = tensor.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _mismatch_of_moments(self, moments: Mapping[str, Tensor]) -> str:
        """Return what is wrong with AdamW's moments; before the first step there are none."""
        if not moments:
            return ""
        expected: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            expected |= {
                f"{name}.step": torch.zeros(()),
                f"{name}.exp_avg": parameter,
                f"{name}.exp_avg_sq": parameter,
            }
        return mismatch(moments, expected)

    def _mismatch_of_random_states(self, states: Mapping[str, Tensor]) -> str:
        try:
            torch.Generator().set_state(states.get("cpu", torch.empty(0)))
        except (RuntimeError, TypeError) as error:
            # There are numbers that the generator never has.
            return f"rng is no state of the generator: {first_line(error)}"
        return ""
