"""Known relevance: the scenes of a split that each claim is true of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations
from operator import attrgetter

import numpy as np

from cusa.data.demo_set.world import AXES, Claim, Description, Scene, Thing
from cusa.data.records import Truth, csr

_MAX_THINGS = 3  # in a scene
# Padding for scenes of fewer things; it fits no description.
_NO_THINGS = [Thing("", "", "", -1, -1)] * _MAX_THINGS
_ATTRIBUTES = ("kind", "colour", "size", "row", "column")


def truth_of(
    scenes: Sequence[Scene],
    claims: Sequence[Claim],
) -> Truth:
    """Evaluate every claim on every scene; scenes with the same cast get the same image label."""
    casts = [scene.cast for scene in scenes]
    sorted_casts = sorted(set(casts))
    labels = list(map(sorted_casts.index, casts))
    table = _SceneTable(scenes)
    true_scenes = [np.flatnonzero(table.is_true(claim)) for claim in claims]
    indptr, indices = csr(true_scenes)
    return Truth(np.array(labels, np.int64), indptr, indices)


class _SceneTable:
    """The scenes of a split as columns, so that a claim is evaluated on all of them at once."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        # By attribute: its values, [n_scenes, 3].
        self._things: dict[str, np.ndarray] = {}
        things: list[Thing] = []
        for scene in scenes:
            padded_things = [*scene.things, *_NO_THINGS]
            things += padded_things[:_MAX_THINGS]
        for attribute_name in _ATTRIBUTES:
            values = map(attrgetter(attribute_name), things)
            columns = np.array(list(values))
            self._things[attribute_name] = columns.reshape(-1, _MAX_THINGS)
        self._counts = (self._things["kind"] != "").sum(axis=1)
        self._settings = np.array([scene.setting for scene in scenes])
        # Cached, as each description is looked up for every choice of things.
        self._fits = cache(self._compute_fits)

    def is_true(self, claim: Claim) -> np.ndarray:
        """Return the scenes that the claim is true of: bool ``[n_scenes]``."""
        is_true = np.zeros(len(self._counts), bool)
        n_described = len(claim.descriptions)
        # All ways to assign different things to the descriptions.
        for thing_numbers in permutations(range(_MAX_THINGS), n_described):
            is_true |= self._is_true_for(claim, thing_numbers)
        if claim.count is not None:
            is_true &= self._counts == claim.count
        if claim.settings:
            is_true &= np.isin(self._settings, claim.settings)
        return is_true

    def _is_true_for(
        self,
        claim: Claim,
        thing_numbers: Sequence[int],
    ) -> np.ndarray:
        """Return where the things of these numbers fit: bool ``[n_scenes]``."""
        is_true = np.ones(len(self._counts), bool)
        for description, thing_number in zip(claim.descriptions, thing_numbers, strict=True):
            is_true &= self._fits(description)[:, thing_number]
        if claim.relation:
            positions = self._things[AXES[claim.relation]]
            first_positions = positions[:, thing_numbers[0]]
            second_positions = positions[:, thing_numbers[1]]
            is_true &= first_positions < second_positions
        return is_true

    def _compute_fits(self, description: Description) -> np.ndarray:
        """Return the things that fit the description: bool ``[n_scenes, 3]``."""
        kinds = self._things["kind"]
        is_fitting = kinds != ""
        if description.kinds:
            is_fitting &= np.isin(kinds, description.kinds)
        if description.colours:
            colours = self._things["colour"]
            is_fitting &= np.isin(colours, description.colours)
        for attribute_name in ("size", "row", "column"):
            value = getattr(description, attribute_name)
            if value is not None:
                is_fitting &= self._things[attribute_name] == value
        return is_fitting
