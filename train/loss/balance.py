"""Weights for soft labels beside a host's own loss, from the norms of the two gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.config import GivenLoss, LossConfig, given_loss
from cusa.train.loss.gather import GatherGroup


def balanced_config(
    config: GivenLoss,
    losses: Iterable[tuple[Tensor, Tensor]],
    parameters: Iterable[Tensor],
    ratio: float = 1 / 3,
) -> LossConfig:
    r"""Scale the weights of a loss so that its gradient has a given size beside the host's own.

    The paper's alpha and beta belong to its contrastive term. A host's loss may be far larger or
    smaller, such as the hinge losses of VSE++ and SGRAF, which are sums over the batch. All weights
    are multiplied by ``f = ratio * mean_k |dH_k/dW| / mean_k |dS_k/dW|``: over the batches k that
    are given, H is the host's loss, S the loss of ``config``, W the parameters that both depend on
    and ``|.|`` the Euclidean norm over all of W. Gradients are linear in the weights, so that S
    then has ``ratio`` times the gradient of H in these batches.

    The norms are those of GradNorm (Chen et al., ICML 2018). That method learns its weights during
    training and also slows tasks that are ahead; this one measures once, before training, and the
    weights are constants. The same batches and parameters give the same weights.

    Args:
        config: Settings of the loss, or values by name; their proportions are kept.
        losses: For each of a few batches, two scalars: the host's loss and
            ``CUSALoss(config)(...).total``, with graphs that are not freed. A generator holds one
            batch at a time.
        parameters: The tensors, such as ``model.parameters()``. Those that one of the losses does
            not depend on, such as uni-modal heads, are left out.
        ratio: Norm of the gradient of the soft labels over that of the host's loss. The default is
            about what the paper's setting has beside its own contrastive term when training begins
            (docs/benchmarks.md).

    Returns:
        The settings with all weights multiplied by f. In several processes, the norms are averaged
        over the ranks, which all have to call.

    Raises:
        SettingError: If a setting is illegal, ``ratio`` is not a number above zero, or a weight
            becomes too large.
        EmbeddingsError: If there is no batch, no parameter that both losses depend on, or a
            gradient is zero or not finite; ``name`` is the argument.
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
        raise SettingError(f"ratio must be a number above zero, got {ratio!r}", name="ratio")
    settings = given_loss(config)
    learnable = [parameter for parameter in parameters if parameter.requires_grad]
    if not learnable:
        raise EmbeddingsError(
            "no parameter needs a gradient; pass those of the model", name="parameters"
        )
    norms: list[Tensor] = []
    for host_loss, soft_label_loss in losses:
        for loss in (host_loss, soft_label_loss):
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise EmbeddingsError(
                    "losses must be pairs of tensors with a gradient; of CUSALoss, that is "
                    "terms.total, and csa and usa are for logs",
                    name="losses",
                )
        norms.append(_norms(host_loss, soft_label_loss, learnable))
    if not norms:
        raise EmbeddingsError(
            "there is no batch to measure; give the losses of a few", name="losses"
        )
    mean_norms = torch.stack(norms).mean(dim=0)
    group = GatherGroup.if_several(None)
    if group is not None:
        mean_norms = group.sum(mean_norms) / group.size
    host_norm, soft_label_norm = mean_norms.tolist()
    for name, norm in (("host's loss", host_norm), ("soft-label loss", soft_label_norm)):
        if not (math.isfinite(norm) and norm > 0):
            raise EmbeddingsError(
                f"the gradient of the {name} has a norm of {norm:g}, by which nothing can be "
                "scaled; give batches in which both losses have a gradient",
                name="losses",
            )
    factor = ratio * host_norm / soft_label_norm
    return replace(
        settings,
        alpha=factor * settings.alpha,
        beta=factor * settings.beta,
        contrastive_weight=factor * settings.contrastive_weight,
        rule_weight=factor * settings.rule_weight,
    )


def _norms(
    host_loss: Tensor,
    soft_label_loss: Tensor,
    parameters: Sequence[Tensor],
) -> Tensor:
    """Return the norms of both losses' gradients over the parameters of both: float64 ``[2]``."""
    gradients_of_host = torch.autograd.grad(
        host_loss, parameters, retain_graph=True, allow_unused=True
    )
    gradients_of_soft_labels = torch.autograd.grad(soft_label_loss, parameters, allow_unused=True)
    squares = torch.zeros(2, dtype=torch.float64, device=host_loss.device)
    is_shared = False
    for pair in zip(gradients_of_host, gradients_of_soft_labels, strict=True):
        if pair[0] is None or pair[1] is None:
            continue
        is_shared = True
        squares += torch.stack([gradient.double().square().sum() for gradient in pair])
    if not is_shared:
        raise EmbeddingsError(
            "no parameter influences both losses; pass those of the encoders that both train",
            name="parameters",
        )
    return squares.sqrt()
