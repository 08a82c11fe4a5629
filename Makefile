# make demo: the whole path on the embedded data set.   make test: lint, types, tests.
# make docs: the API reference, in build/docs.   Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := runs/demo

.PHONY: demo test lint types pytest docs clean
demo: $(STAMP)
	$(BIN)/cusa-precompute --dataset demo --teacher efficientnet-lite0 --teacher minilm
	rm -rf $(DEMO)
	$(BIN)/cusa-train --embeddings data/demo_teachers.h5 --loss contrastive --seed 0 --run-dir $(DEMO)/contrastive
	$(BIN)/cusa-train --embeddings data/demo_teachers.h5 --loss cusa --seed 0 --run-dir $(DEMO)/cusa
	$(BIN)/cusa-eval --run $(DEMO)/contrastive --run $(DEMO)/cusa

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setup.cfg's package_dir mapping: give it the packages under their import names.
types: $(STAMP)
	mkdir -p build/types/cusa
	for file in cusa/*.py cusa/*.pyi cusa/cli cusa/hosts cusa/screen cusa/stages; do ln -sfn ../../../$$file build/types/$$file; done
	for room in data precompute train eval; do ln -sfn ../../../$$room build/types/cusa/$$room; done
	MYPYPATH=build/types $(BIN)/mypy build/types/cusa tests/stages/typed_user.py

pytest: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

docs: $(STAMP)
	$(BIN)/python docs/build_api.py build/docs

$(STAMP): setup.cfg constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
# Without its dependencies, as torchvision has no CPU build beside a CPU torch: the tests bring a stand-in.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt open_clip_torch
	touch $(STAMP)

clean:
	rm -rf build dist *.egg-info .venv
