"""The CUSA loss (Huang et al., AAAI 2024): contrastive, CSA and USA, on embeddings and on similarity matrices.

:class:`CUSALoss` is the whole loss with its temperatures; the functions are its parts, on similarity matrices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from cusa.train.loss.arrays import Rows, as_ids, as_rows
from cusa.train.loss.config import TERMS, LossConfig, Temperature, TemperaturePair, Term
from cusa.train.loss.functions import (
    contrastive_loss,
    fuse_similarities,
    positives,
    soft_label_loss,
    soft_label_sum,
    soft_labels,
)
from cusa.train.loss.gather import World
from cusa.train.loss.tiled import Pair, Sides, Taus, tiled_loss
from cusa.train.loss.unit_features import unit_features

__all__ = [
    "TERMS",
    "CUSALoss",
    "LossConfig",
    "LossTerms",
    "Temperature",
    "TemperaturePair",
    "contrastive_loss",
    "fuse_similarities",
    "soft_label_loss",
    "soft_labels",
]

Method = Literal["auto", "dense", "tiled"]

# Batch size from which "auto" takes the tiled method, the contrastive term alone from eight times as many: where it is
# the faster one on two CPU cores (docs/benchmarks.md).
TILED_FROM = 512


class LossTerms(NamedTuple):
    """A loss and what it is made of; every term carries its weight already, ``total`` is their sum. Scalars.

    ``total`` alone carries gradients; the terms are for logs.
    """

    total: torch.Tensor
    contrastive: torch.Tensor
    csa: torch.Tensor
    usa: torch.Tensor


class CUSALoss(nn.Module):
    """The CUSA loss; owns the temperatures.

    ``L = L_con + alpha * L_csa + beta * L_usa`` (paper, section 3; DESIGN, section 2). Temperatures are clamped to
    their bounds before every use; one that sits on a bound keeps its gradient.

    Args:
        config: Settings.
        method: How the loss of embeddings is computed. ``"dense"`` writes the formulas out on ``[B, B]`` matrices;
            ``"tiled"`` holds a few rows of them at a time and forms the gradient in the same sweep, so that memory
            grows with B alone. Values and gradients are equal up to rounding; ``"auto"`` picks the faster one by size.
        tile_rows: Rows that the tiled method holds; ``None``: as many as suit the device.
        normalize: Divide the cross-modal features by their length; ``False``: they have length one already, as
            open_clip's. What comes from uni-modal heads and teachers is divided in any case.
        gather: The batch is that of all ranks of ``torch.distributed``: loss and gradients are those of one process on
            the concatenated batch. Each rank computes its own rows. The gradients that reach a rank's features are
            multiplied by the number of ranks, because DDP averages what comes out of the ranks; those of the
            temperatures are summed here and equal on every rank, inside DDP or not. Ranks may have different batch
            sizes, and all of them must call, in evaluation too. Without a process group, or with one rank, it changes
            nothing.
        group: Process group to gather over; ``None``: the default one.

    Raises:
        ValueError: If ``method`` or ``tile_rows`` is illegal.
    """

    def __init__(
        self,
        config: LossConfig | None = None,
        *,
        method: Method = "auto",
        tile_rows: int | None = None,
        normalize: bool = True,
        gather: bool = False,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if method not in ("auto", "dense", "tiled"):
            raise ValueError(f"method must be auto, dense or tiled, got {method!r}")
        if tile_rows is not None and tile_rows < 1:
            raise ValueError(f"tile_rows must be at least 1, got {tile_rows}")
        self.config = c = config or LossConfig()
        self.method, self.tile_rows, self.normalize = method, tile_rows, normalize
        self.gather, self._group = gather, group
        self._bounds: dict[str, tuple[float, float]] = {}
        csa, usa = "csa" in c.terms, "usa" in c.terms
        if "contrastive" in c.terms:
            self._add("tau", c.tau)
        fused = c.soft_label_source != "each"
        if csa or (usa and c.usa_shares_csa):
            self._add_pair("tau_csa", c.tau_csa, fused)
        if csa or (usa and c.usa_shares_soft):
            self._add_pair("tau_soft", c.tau_soft, fused)
        if usa and not c.usa_shares_csa:
            self._add_pair("tau_usa", c.tau_usa)
        if usa and not c.usa_shares_soft:
            self._add_pair("tau_soft_usa", c.tau_soft_usa)

    def _add(self, name: str, temperature: Temperature) -> None:
        value = torch.tensor(float(temperature.init))
        self._bounds[name] = (temperature.min, temperature.max)
        if temperature.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _add_pair(self, name: str, pair: TemperaturePair, fused: bool = False) -> None:
        i, t = pair.image, pair.text
        if pair.shared or fused:
            learnable = i.learnable or t.learnable
            mean = Temperature(
                (i.init + t.init) / 2, (i.min + t.min) / 2, (i.max + t.max) / 2, learnable
            )
            self._add(name, mean)
        else:
            self._add(f"{name}_image", i)
            self._add(f"{name}_text", t)

    def temperatures(self) -> dict[str, float]:
        """The temperatures as they would be used now, by name."""
        return {
            k: min(max(getattr(self, k).item(), low), high)
            for k, (low, high) in self._bounds.items()
        }

    def _taus(self, world: World | None, dtype: torch.dtype) -> Taus:
        """The temperatures by their use, clamped; their gradients are summed over the ranks."""
        for name, (low, high) in self._bounds.items():
            # .data: an in-place change that a graph still waiting for its backward does not trip over.
            getattr(self, name).data.clamp_(low, high)
        values = [getattr(self, name) for name in self._bounds]
        used = dict(
            zip(self._bounds, world.sum_gradients(values) if world else values, strict=True)
        )
        used = {name: tau.to(dtype) for name, tau in used.items()}
        c = self.config

        def pair(term: Term, name: str) -> Pair | None:
            if term not in c.terms:
                return None
            return (
                (used[name], used[name])
                if name in used
                else (used[f"{name}_image"], used[f"{name}_text"])
            )

        return Taus(
            contrastive=pair("contrastive", "tau"),
            csa=pair("csa", "tau_csa"),
            csa_soft=pair("csa", "tau_soft"),
            usa=pair("usa", "tau_csa" if c.usa_shares_csa else "tau_usa"),
            usa_soft=pair("usa", "tau_soft" if c.usa_shares_soft else "tau_soft_usa"),
        )

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        uni_image_features: torch.Tensor | None = None,
        uni_text_features: torch.Tensor | None = None,
        teacher_image: Rows | None = None,
        teacher_text: Rows | None = None,
        image_ids: Rows | None = None,
    ) -> LossTerms:
        """The loss of B pairs. Features are L2-normalised here, in float32 or wider, also under autocast.

        Inputs are checked, but for what is compiled by torch.compile. Teacher rows and ids may be
        numpy arrays, also read-only ones of a memory map; they go to where the features are. (What
        is compiled wants tensors.)

        Args:
            image_features: float ``[B, d]`` from the cross-modal image head.
            text_features: float ``[B, d]`` from the cross-modal text head.
            uni_image_features: float ``[B, d']`` from the uni-modal image head; USA needs it.
            uni_text_features: float ``[B, d'']`` from the uni-modal text head; USA needs it.
            teacher_image: float ``[B, e]`` of the image teacher; CSA and USA need it. No gradient flows into it.
            teacher_text: float ``[B, e']`` of the text teacher; CSA and USA need it.
            image_ids: integers ``[B]``, the image of each pair; ``None``: all different.

        Raises:
            ValueError: If a term lacks an input, sizes differ, features are no tensors, or a teacher
                row is zero or has no finite length; names the rows.
        """
        _refuse_arrays(
            image_features=image_features,
            text_features=text_features,
            uni_image_features=uni_image_features,
            uni_text_features=uni_text_features,
        )
        cross = image_features, text_features
        teacher, image_ids, fault = _as_tensors((teacher_image, teacher_text), image_ids, cross[0])
        sides = self._sides(cross, (uni_image_features, uni_text_features), teacher)
        world = World.of(self._group) if self.gather else None
        fault = fault or _fault(sides, image_ids, self.config.terms)
        if world is not None:
            world.agree(sides.all(), image_ids, fault)
        elif fault:
            raise ValueError(fault)
        with torch.autocast(image_features.device.type, enabled=False):
            features = _in_one_dtype(_unit(sides, cross=self.normalize))
            rows = slice(0, len(image_features))
            if world is not None:
                features, rows = features.map(world.gather), world.rows
                image_ids = None if image_ids is None else world.all_rows(image_ids.long())
            taus = self._taus(world, features.cross[0].dtype)
            if self._tiles(rows, len(features.cross[0])):
                share = LossTerms(
                    *tiled_loss(features, image_ids, taus, self.config, rows, self.tile_rows)
                )
            elif taus.contrastive is not None and self.config.terms == ("contrastive",):
                # The temperature divides [B, d] instead of [B, B], as open_clip's does.
                scaled = features.cross[0] * taus.contrastive[0].reciprocal(), features.cross[1]
                con = self._contrastive(
                    _products(scaled, (scaled[1], scaled[0]), rows), image_ids, rows
                )
                share = _as_terms(con, con.new_zeros(()), con.new_zeros(()))
            else:
                share = self._dense(_similarities(features, rows), image_ids, taus, rows)
            if world is None:
                return share
            terms = world.sum(torch.stack(share[1:]))
            # The value of all ranks' rows, with the gradient of this one's.
            return LossTerms(terms.sum() + (share.total - share.total.detach()), *terms)

    def on_similarities(
        self,
        similarity: torch.Tensor,
        uni_image_features: torch.Tensor | None = None,
        uni_text_features: torch.Tensor | None = None,
        teacher_image: Rows | None = None,
        teacher_text: Rows | None = None,
        image_ids: Rows | None = None,
    ) -> LossTerms:
        """The same loss for a model whose similarity is no dot product: SGRAF, IMRAM, a fusion encoder's scores.

        Whoever computes the matrix decides what is in it: ``gather`` and ``method`` have no part here.

        Args:
            similarity: float ``[B, B]`` of image i and caption j, taken as it is.
            uni_image_features: As in :meth:`forward`; from regions pooled, say.
            uni_text_features: Same, from words pooled.
            teacher_image: As in :meth:`forward`.
            teacher_text: As in :meth:`forward`.
            image_ids: As in :meth:`forward`.

        Raises:
            ValueError: As in :meth:`forward`, or if ``similarity`` is not square.
        """
        _refuse_arrays(
            similarity=similarity,
            uni_image_features=uni_image_features,
            uni_text_features=uni_text_features,
        )
        if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
            raise ValueError(f"similarity must be [B, B], got {list(similarity.shape)}")
        teacher, image_ids, fault = _as_tensors(
            (teacher_image, teacher_text),
            image_ids,
            similarity,
        )
        sides = self._sides(
            (similarity, similarity.T),
            (uni_image_features, uni_text_features),
            teacher,
        )
        if fault := fault or _fault(sides, image_ids, self.config.terms):
            raise ValueError(fault)
        with torch.autocast(similarity.device.type, enabled=False):
            sides = _in_one_dtype(_unit(sides, cross=False))
            rows, taus = slice(0, len(similarity)), self._taus(None, sides.cross[0].dtype)
            return self._dense(_within(sides, rows), image_ids, taus, rows)

    def _sides(
        self,
        cross: Pair,
        uni: tuple[torch.Tensor | None, torch.Tensor | None],
        teacher: tuple[torch.Tensor | None, torch.Tensor | None],
    ) -> Sides:
        """What the terms use of it, as far as it is there; nothing flows back into the teacher."""
        uni_image, uni_text, teacher_image, teacher_text = *uni, *teacher
        used_uni = used_teacher = None
        if (
            {"csa", "usa"} & set(self.config.terms)
            and teacher_image is not None
            and teacher_text is not None
        ):
            used_teacher = teacher_image.detach(), teacher_text.detach()
        if "usa" in self.config.terms and uni_image is not None and uni_text is not None:
            used_uni = uni_image, uni_text
        return Sides(cross, used_uni, used_teacher)

    def _tiles(self, rows: slice, n_candidates: int) -> bool:
        if self.method == "auto":
            least = 8 * TILED_FROM if self.config.terms == ("contrastive",) else TILED_FROM
            return (rows.stop - rows.start) * n_candidates >= least**2
        return self.method == "tiled"

    def _dense(
        self, sims: Sides, image_ids: torch.Tensor | None, taus: Taus, rows: slice
    ) -> LossTerms:
        """The share of some rows in the loss, from their similarities with all candidates."""
        c, weights = self.config, self.config.row_weights(sims.cross[0].shape[1])

        def soft(
            term: Term, students: Pair, teachers: Pair, tau: Pair, tau_soft: Pair
        ) -> torch.Tensor:
            directions = zip(students, teachers, tau, tau_soft, strict=True)
            image, text = (soft_label_sum(*d, c.divergence(term)) for d in directions)
            return weights[term] * (image + text)

        con = csa = usa = sims.cross[0].new_zeros(())
        if taus.contrastive is not None:
            image, text = (sim / tau for sim, tau in zip(sims.cross, taus.contrastive, strict=True))
            con = self._contrastive((image, text), image_ids, rows)
        if sims.teacher is not None and taus.csa is not None and taus.csa_soft is not None:
            fused = fuse_similarities(*sims.teacher, c.soft_label_source)
            csa = soft("csa", sims.cross, fused, taus.csa, taus.csa_soft)
        if (
            sims.teacher is not None
            and sims.uni is not None
            and taus.usa is not None
            and taus.usa_soft is not None
        ):
            usa = soft("usa", sims.uni, sims.teacher, taus.usa, taus.usa_soft)
        return _as_terms(con, csa, usa)

    def _contrastive(
        self, logits: Pair, image_ids: torch.Tensor | None, rows: slice
    ) -> torch.Tensor:
        targets = positives(image_ids, rows, logits[0])
        image, text = (F.cross_entropy(x, targets, reduction="sum") for x in logits)
        return self.config.row_weights(logits[0].shape[1])["contrastive"] * (image + text)


def _refuse_arrays(**features: object) -> None:
    """Refuse a student's features that are no tensors: nothing could be learnt from the loss.

    Raises:
        ValueError: Names them.
    """
    for name, value in features.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")


def _as_tensors(
    teacher: tuple[Rows | None, Rows | None], image_ids: Rows | None, like: torch.Tensor
) -> tuple[tuple[torch.Tensor | None, torch.Tensor | None], torch.Tensor | None, str]:
    """Take teacher rows and ids as tensors where the features are.

    Returns:
        Both, and what is wrong with them; empty if nothing. It is not raised, since with ``gather``
        other ranks would wait for this one.
    """
    image, text = teacher
    shape, device = (len(like), None), like.device
    try:
        if image is not None:
            image = as_rows(image, device, "teacher_image", shape)
        if text is not None:
            text = as_rows(text, device, "teacher_text", shape)
        if image_ids is not None:
            image_ids = as_ids(image_ids, device, "image_ids", (len(like),))
    except ValueError as error:
        return (None, None), None, str(error)
    return (image, text), image_ids, ""


def _as_terms(con: torch.Tensor, csa: torch.Tensor, usa: torch.Tensor) -> LossTerms:
    return LossTerms(con + csa + usa, con.detach(), csa.detach(), usa.detach())


def _in_one_dtype(sides: Sides) -> Sides:
    """In float32 or, if any feature of the student is, in float64."""
    double = any(x.dtype == torch.float64 for x in (*sides.cross, *(sides.uni or ())))
    return sides.map(lambda x: x.to(torch.float64 if double else torch.float32))


def _unit(sides: Sides, cross: bool) -> Sides:
    """L2-normalised in float32 or wider, the cross-modal side if wanted.

    Each in its own dtype: float32 does not hold the lengths of all float64 rows.
    """

    def unit(pair: Pair) -> Pair:
        wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in pair)
        image, text = (unit_features(x) for x in wide)
        return image, text

    uni, teacher = (None if pair is None else unit(pair) for pair in (sides.uni, sides.teacher))
    return Sides(unit(sides.cross) if cross else sides.cross, uni, teacher)


def _similarities(features: Sides, rows: slice) -> Sides:
    """Of the queries in ``rows`` with all candidates."""
    image, text = features.cross
    return _within(features, rows)._replace(cross=_products((image, text), (text, image), rows))


def _within(features: Sides, rows: slice) -> Sides:
    """Of the queries in ``rows`` with all candidates of their own modality; the cross-modal side stays as it is."""
    uni, teacher = (
        None if pair is None else _products(pair, pair, rows)
        for pair in (features.uni, features.teacher)
    )
    return Sides(features.cross, uni, teacher)


def _products(pair: Pair, candidates: Pair, rows: slice) -> Pair:
    everyone = rows.stop - rows.start == len(pair[0])  # no copy, and none in the backward pass
    image, text = pair if everyone else (pair[0][rows], pair[1][rows])
    return image @ candidates[0].T, text @ candidates[1].T


def _fault(sides: Sides, image_ids: torch.Tensor | None, terms: tuple[Term, ...]) -> str:
    """What is wrong with a batch, in a line; empty if nothing. While compiling, sizes and rows are not looked at."""
    if {"csa", "usa"} & set(terms) and sides.teacher is None:
        return "CSA and USA need teacher_image and teacher_text"
    if "usa" in terms and sides.uni is None:
        return "USA needs uni_image_features and uni_text_features"
    if torch.compiler.is_compiling():
        return ""
    b = len(sides.cross[0])
    if b == 0:
        return "the batch is empty: a loss needs at least one pair"
    if wrong := [list(x.shape) for x in sides.all() if x.ndim != 2 or len(x) != b]:
        return (
            f"features and teacher rows must be matrices of {b} rows like the first, got {wrong[0]}"
        )
    for name, rows in zip(("teacher_image", "teacher_text"), sides.teacher or (), strict=False):
        if not rows.is_floating_point():
            return f"{name} must be of a floating-point type, got {rows.dtype}"
    image_dim, text_dim = (x.shape[1] for x in sides.cross)
    if image_dim != text_dim:
        return f"image_features and text_features must have one dimension, got {image_dim} and {text_dim}"
    if image_ids is not None and image_ids.shape != (b,):
        return f"image_ids must be [{b}], got {list(image_ids.shape)}"
    goods = [_usable(rows) for rows in sides.teacher or ()]
    if (
        goods and not torch.stack([good.all() for good in goods]).all()
    ):  # one wait for a GPU, not one for each
        for modality, good in zip(("image", "text"), goods, strict=True):
            if bad := (~good).nonzero().flatten().tolist():
                shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
                return (
                    f"the {modality} teacher's rows {shown} of the batch are zero or have no finite length "
                    f"({len(bad)} of {b}); leave these pairs out, or make the rows again"
                )
    return ""


def _usable(rows: torch.Tensor) -> torch.Tensor:
    """Which rows have a direction."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return (norms > 0) & norms.isfinite()
