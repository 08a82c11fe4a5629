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

# What torch adds to the norm of gradients before it compares it with the greatest one.
_ADDED_TO_NORM = 1e-6


class TrainingState:
    """The state that every step changes and every checkpoint saves.

    Args:
        step: The module that is trained.
        config: The run's settings.
        device: The module's device.
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
        """Run the backward pass, and take the optimizer's step.

        Args:
            loss: The loss, a scalar.
            learning_rate: The learning rate of this step.

        Returns:
            Whether loss and gradient are finite; if not, the weights stay as they are. (In fp16,
            gradients overflow now and then. Such a step counts as finite: the scaler skips it and
            lowers its scale.)
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        gradients = [parameter.grad for parameter in self._parameters]
        gradient_norm = nn.utils.get_total_norm(filter(torch.is_tensor, gradients))
        # The only wait for the GPU, after everything slow has been queued.
        loss_value, norm_value = torch.stack([loss.detach(), gradient_norm]).tolist()
        is_finite = math.isfinite(loss_value)
        # In fp16, the scaler checks the gradient.
        if not self._scaler.is_enabled():
            is_finite = is_finite and math.isfinite(norm_value)
        if not is_finite:
            return False
        # Torch would also multiply by one the gradients that are short enough.
        if norm_value + _ADDED_TO_NORM > self._greatest_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, self._greatest_norm, gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return by name the tensors that are the same in every process."""
        student_weights = self._step.student.state_dict()
        loss_weights = self._step.loss.state_dict()
        optimizer_state = self._optimizer.state_dict()["state"]
        moments: dict[str, Tensor] = {}
        for number, parameter_moments in optimizer_state.items():
            moments |= with_prefix(self._names[number], parameter_moments)
        return {
            **with_prefix("student", student_weights),
            **with_prefix("loss", loss_weights),
            **with_prefix("optimizer", moments),
        }

    def scaler(self) -> dict[str, Any]:
        """Return the gradient scaler's state, which is JSON-compatible."""
        return self._scaler.state_dict()

    def random_states(self) -> dict[str, Tensor]:
        """Return this process's random states by device, ``"cpu"`` and perhaps ``"cuda"``."""
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
        """Restore a saved state.

        Args:
            tensors: As :meth:`tensors` returned them.
            random_states: As :meth:`random_states` returned them.
            scaler: As :meth:`scaler` returned it.

        Raises:
            RunError: If the state is of another student, loss, optimizer or precision; nothing is
                restored then.
        """
        student_weights = without_prefix("student", tensors)
        loss_weights = without_prefix("loss", tensors)
        moments = without_prefix("optimizer", tensors)
        student = self._step.student
        loss = self._step.loss
        problem = (
            mismatch(student_weights, student.state_dict())
            or mismatch(loss_weights, loss.state_dict())
            or self._mismatch_of_moments(moments)
            or _mismatch_of_random_states(random_states)
        )
        if problem:
            raise RunError(f"the checkpoint is of another student ({problem}); was a file changed?")
        try:
            self._scaler.load_state_dict(scaler)
        except (RuntimeError, KeyError) as error:
            problem = first_line(error)
            raise RunError(f"the checkpoint is of another precision ({problem})") from None
        # Everything has been checked: nothing fails from here on.
        student.load_state_dict(student_weights)
        loss.load_state_dict(loss_weights)
        self._restore_optimizer(moments)
        self._restore_random_states(random_states)

    def _restore_random_states(self, random_states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states and self._device.type == "cuda":
            torch.cuda.set_rng_state(random_states["cuda"], self._device)

    def _restore_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        moments_by_number: dict[int, dict[str, Tensor]] = {}
        for full_name, tensor in moments.items():
            parameter_name, _, moment_name = full_name.rpartition(".")
            number = self._names.index(parameter_name)
            parameter_moments = moments_by_number.setdefault(number, {})
            # A copy: the loaded tensor maps the file, which the optimizer would write to.
            parameter_moments[moment_name] = tensor.clone()
        state = self._optimizer.state_dict()
        state["state"] = moments_by_number
        self._optimizer.load_state_dict(state)

    def _mismatch_of_moments(self, moments: Mapping[str, Tensor]) -> str:
        """Describe what is wrong with AdamW's moments; before the first step, there are none."""
        if not moments:
            return ""
        expected: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            expected[f"{name}.step"] = torch.zeros(())
            expected[f"{name}.exp_avg"] = parameter
            expected[f"{name}.exp_avg_sq"] = parameter
        return mismatch(moments, expected)


def _mismatch_of_random_states(states: Mapping[str, Tensor]) -> str:
    cpu_state = states.get("cpu", torch.empty(0))
    try:
        torch.Generator().set_state(cpu_state)
    except (RuntimeError, TypeError) as error:
        # Its shape and dtype may be right, but its numbers none that the generator can have.
        return f"rng is no state of the generator: {first_line(error)}"
    return ""
