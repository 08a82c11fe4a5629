"""The table of all settings, on the screen and in the documentation."""

from pathlib import Path

import cusa
from cusa.train.config import Config
from cusa.train.config_building import build_config, deciding, parse_settings
from cusa.train.preset_files import presets
from cusa.train.settings_table import preset_settings, setting_rows, settings_page
from tests.helpers import run_ok

PAGE = Path(cusa.__file__).parent.parent / "docs" / "settings.md"


def test_the_page_of_settings_is_that_of_the_code():
    remedy = "make it again: python -m cusa.train.settings_table > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == settings_page(), remedy


def test_every_setting_has_a_row_that_says_what_it_takes_and_decides():
    rows = setting_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert set(deciding(Config())) < set(names)
    assert all(row.legal and row.description.endswith(".") for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["train.log_every"] == (
        "train.log_every",
        "10",
        "a whole number from 1 to 1,000,000,000",
        "Steps between lines of metrics.jsonl.",
    )
    assert by_name["loss.tau_csa.text.max"].default == "0.99"


def test_every_default_can_be_given():
    defaults = [f"{row.name}={row.default}" for row in setting_rows()]
    assert build_config(parse_settings(defaults)) == Config()


def test_the_command_line_prints_every_setting_and_preset():
    shown = run_ok("train", "settings")
    for row in setting_rows():
        assert row.name in shown
    for preset in presets():
        for name, value in preset_settings(preset).items():
            assert f"{name}={value}" in shown


def test_the_help_names_every_preset():
    shown = "".join(run_ok("train", "--help").split())  # names are wrapped
    for preset in presets():
        assert preset in shown
