# `make demo` runs the main job, and `make test` runs the tests.
# Each creates .venv from requirements.lock first, and skips what is done already.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
PARITY := .venv-parity

.PHONY: demo test parity install lint

demo: install
	$(BIN)/avel demo --out $(DEMO)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Compare the features with those of Keras, torchvggish, OpenCV, resampy and transformers, read exports with sed_eval and
# soundevent, and compare the store of a Ray cluster with that of this machine. Only these tests need .venv-parity.
parity: $(PARITY)/.installed
	AVEL_PARITY=1 $(PARITY)/bin/python -m pytest -s tests/test_parity.py tests/test_timeline_exports.py
	AVEL_PARITY=1 OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest -n auto --maxprocesses 8 tests/test_huggingface.py tests/test_zero_shot.py tests/test_curves.py
	AVEL_PARITY=1 OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest -m slow tests/test_ray.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "avel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

# --no-deps: torchvggish would install another torch, torchvision and torchaudio.
$(PARITY)/.installed: requirements.lock requirements-parity.lock pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --disable-pip-version-check --progress-bar off -r requirements.lock
	$(PARITY)/bin/pip install --disable-pip-version-check --progress-bar off --no-deps -r requirements-parity.lock
	$(PARITY)/bin/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@
