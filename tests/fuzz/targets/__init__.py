"""What is fuzzed: every module here has a tuple ``TARGETS``, and is picked up by being here."""

import importlib
import pkgutil

from tests.fuzz.harness import Target


def all_targets() -> dict[str, Target]:
    """Every target by its name, in the order of the names."""
    targets: dict[str, Target] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for target in module.TARGETS:
            assert target.name not in targets, f"two targets are called {target.name}"
            targets[target.name] = target
    return dict(sorted(targets.items()))
