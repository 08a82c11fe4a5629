"""The truth of claims: the scenes of a split that each is true of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from cusa.data.demo_set.world import Claim, Description, Scene, Thing
from cusa.data.records import Truth, csr

_MAX_THINGS = 3  # of a scene
_NO_THING = Thing("", "", "", -1, -1)  # fits no description
_ATTRIBUTES = ("kind", "colour", "size", "row", "col")
_AXES = {"above": "row", "left of": "col"}


def truth_of(scenes: Sequence[Scene], claims: Sequence[Claim]) -> Truth:
    """Evaluate every claim on every scene; scenes with the same cast get the same image label."""
    casts = sorted({scene.cast for scene in scenes})
    label_of_cast = {cast: label for label, cast in enumerate(casts)}
    labels = np.zeros(len(scenes), np.int64)
    for number, scene in enumerate(scenes):
        labels[number] = label_of_cast[scene.cast]

    table = _SceneTable(scenes)
    true_rows = []
    for claim in claims:
        is_true = table.holds(claim)
        true_rows.append(np.flatnonzero(is_true))
    indptr, indices = csr(true_rows)
    return Truth(labels, indptr, indices)


class _SceneTable:
    """The scenes of a split as columns, so that a claim is evaluated on all of them at once."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        # Of each attribute, [n_scenes, 3].
        self.things: dict[str, np.ndarray] = {}
        for attribute_name in _ATTRIBUTES:
            self.things[attribute_name] = _column(scenes, attribute_name)
        self.counts = np.array([len(scene.things) for scene in scenes])
        self.settings = np.array([scene.setting for scene in scenes])
        self._fits: dict[Description, np.ndarray] = {}

    def holds(self, claim: Claim) -> np.ndarray:
        """Return the scenes that the claim is true of: bool ``[n_scenes]``."""
        holds = np.zeros(len(self.counts), bool)
        # Each way to choose a thing for each description.
        for thing_numbers in permutations(range(_MAX_THINGS), len(claim.descriptions)):
            holds |= self._holds_for(claim, thing_numbers)
        if claim.count is not None:
            holds &= self.counts == claim.count
        if claim.settings:
            holds &= np.isin(self.settings, claim.settings)
        return holds

    def _holds_for(self, claim: Claim, thing_numbers: Sequence[int]) -> np.ndarray:
        """Return where descriptions and relation hold for the things in these slots."""
        holds = np.ones(len(self.counts), bool)
        for description, thing_number in zip(claim.descriptions, thing_numbers, strict=True):
            holds &= self.fits(description)[:, thing_number]
        if claim.relation:
            axis = self.things[_AXES[claim.relation]]
            holds &= axis[:, thing_numbers[0]] < axis[:, thing_numbers[1]]
        return holds

    def fits(self, description: Description) -> np.ndarray:
        """Return the things that fit the description: bool ``[n_scenes, 3]``."""
        if description not in self._fits:
            self._fits[description] = self._compute_fits(description)
        return self._fits[description]

    def _compute_fits(self, description: Description) -> np.ndarray:
        fits = self.things["kind"] != ""
        if description.kinds:
            fits &= np.isin(self.things["kind"], description.kinds)
        if description.colours:
            fits &= np.isin(self.things["colour"], description.colours)
        for attribute_name in ("size", "row", "col"):
            value = getattr(description, attribute_name)
            if value is not None:
                fits &= self.things[attribute_name] == value
        return fits


def _column(scenes: Sequence[Scene], attribute_name: str) -> np.ndarray:
    """Return an attribute of every thing of every scene: ``[n_scenes, 3]``."""
    rows = []
    for scene in scenes:
        n_missing = _MAX_THINGS - len(scene.things)
        things = [*scene.things, *[_NO_THING] * n_missing]
        rows.append([getattr(thing, attribute_name) for thing in things])
    return np.array(rows)
