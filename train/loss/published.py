"""The published code's settings of the loss, as settings of ours.

Its YAML files have a section ``loss_config``, in which each term of the loss has a section. What
their settings mean is known from figures that the published code computed (tests/golden).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cusa.data.errors import SettingError
from cusa.train.config_building import load_config_file, merge, nest
from cusa.train.loss.config import LossConfig, Term
from cusa.train.settings import shortened, shown, validate

_SECTIONS = ("contrastive", "cross_softlabel", "uni_softlabel")
_SWITCHES: dict[str, Term] = {
    "contrastive.is_on": "contrastive",
    "cross_softlabel.is_on": "csa",
    "uni_softlabel.is_on": "usa",
}
# Published settings, and those of ours that they set.
_CONTRASTIVE = {
    "contrastive.rate": ["contrastive_weight"],
    "contrastive.contrastive_loss_mode": ["contrastive_scaling"],
    "contrastive.tau": ["tau.init"],
    "contrastive.tau_min": ["tau.min"],
    "contrastive.tau_max": ["tau.max"],
    "contrastive.is_block_tau": ["tau.learnable"],
}
_CSA = {
    "cross_softlabel.rate": ["alpha"],
    "cross_softlabel.use_loss": ["csa_divergence"],
    "cross_softlabel.contrastive_loss_mode": ["csa_scaling"],
    "cross_softlabel.cross_softlabel_mode": ["soft_label_source"],
}
_USA = {
    "uni_softlabel.rate": ["beta"],
    "uni_softlabel.use_loss": ["usa_divergence"],
    "uni_softlabel.contrastive_loss_mode": ["usa_scaling"],
    "uni_softlabel.use_cross_softlabel_same_tau": ["usa_shares_csa"],
    "uni_softlabel.use_cross_softlabel_same_softlabel_tau": ["usa_shares_soft"],
}
# The values of some settings in our terms, by the last part of the setting's name.
_VALUES: dict[str, dict[Any, Any]] = {
    "is_on": {True: True, False: False},
    "use_loss": {"kl": "kl", "contrastive": "cross_entropy"},
    "contrastive_loss_mode": {"mean": "paper", "sum": "infonce"},
    "is_block_tau": {True: False, False: True},
    "is_block_softlabel_tau": {True: False, False: True},
}


def loss_config_from_published(settings: Path | str | Mapping[str, Any]) -> LossConfig:
    """Convert settings of the published code; see :meth:`LossConfig.from_published`."""
    if not isinstance(settings, Mapping):
        settings = load_config_file(Path(settings))
    flat = _flat_settings(settings.get("loss_config", settings))
    table = _table()
    _check_names(flat, [*_SWITCHES, *table])

    terms: list[Term] = []
    for switch, term in _SWITCHES.items():
        if _translated(switch, flat[switch]):
            terms.append(term)
    nested: dict[str, Any] = {"terms": tuple(terms)}
    published_names = {"terms": "contrastive.is_on"}
    for published_name, names in table.items():
        value = _translated(published_name, flat[published_name])
        for name in names:
            nested = merge(nested, nest(name, value))
            published_names[name] = published_name
    try:
        return validate(LossConfig, nested)
    except SettingError as error:
        published_name = published_names[error.name]
        raise error.reworded(
            f"loss_config.{published_name} gives an illegal {error}", name=published_name
        ) from None


def _table() -> dict[str, list[str]]:
    """Return the published settings but for the switches, and those of ours that they set."""
    table = _CONTRASTIVE | _CSA | _USA
    for section, kind, pair in (
        ("cross_softlabel", "tau", "tau_csa"),
        ("cross_softlabel", "softlabel_tau", "tau_soft"),
        ("uni_softlabel", "tau", "tau_usa"),
        ("uni_softlabel", "softlabel_tau", "tau_soft_usa"),
    ):
        table[f"{section}.use_same_{kind}"] = [f"{pair}.shared"]
        learnable = [f"{pair}.image.learnable", f"{pair}.text.learnable"]
        table[f"{section}.is_block_{kind}"] = learnable
        for modality in ("image", "text"):
            name = f"{section}.{modality}_tau"
            if kind == "softlabel_tau":
                name = f"{section}.the_softlabel_{modality}_tau"
            table[name] = [f"{pair}.{modality}.init"]
            table[f"{name}_min"] = [f"{pair}.{modality}.min"]
            table[f"{name}_max"] = [f"{pair}.{modality}.max"]
    return table


def _flat_settings(sections: Any) -> dict[str, Any]:
    """Return the settings of the three sections as ``"section.name"``."""
    flat: dict[str, Any] = {}
    if not isinstance(sections, Mapping):
        sections = {}
    for section in sections:
        if section not in _SECTIONS:
            raise SettingError(
                f"loss_config.{shortened(str(section))} is no section of the published code's "
                f"loss_config; legal: {', '.join(_SECTIONS)}",
                name=str(section),
            )
    for section in _SECTIONS:
        values = sections.get(section)
        if not isinstance(values, Mapping):
            raise SettingError(
                f"loss_config.{section} is missing or no section; pass a YAML file of the "
                "published code, or its loss_config, as a dictionary",
                name=section,
            )
        for name, value in values.items():
            flat[f"{section}.{name}"] = value
    return flat


def _check_names(flat: Mapping[str, Any], published_names: list[str]) -> None:
    for name in flat:
        if name not in published_names:
            raise SettingError(
                f"loss_config.{shortened(name)} is no setting of the published code; legal: "
                f"{', '.join(published_names)}",
                name=name,
            )
    for name in published_names:
        if name not in flat:
            raise SettingError(
                f"loss_config.{name} is missing, which every file of the published code has; give "
                "it, too",
                name=name,
            )


def _translated(published_name: str, value: Any) -> Any:
    """Return a value in our terms."""
    translations = _VALUES.get(published_name.rpartition(".")[2])
    if translations is None:
        return value
    for published_value, translated in translations.items():
        # Compare types, too, as 1 equals True.
        if type(value) is type(published_value) and value == published_value:
            return translated
    legal = ", ".join(map(str, translations))
    raise SettingError(
        f"loss_config.{published_name} must be one of {legal}, got {shown(value)}",
        name=published_name,
    )
