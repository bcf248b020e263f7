# make quickstart   the main job on the built-in digits: dataset, training, samples (minutes, no GPU needed)
# make test         ruff and pytest
# make install      .venv alone, with what the scripts need; both of the above make it themselves
# make clean        removes .venv and what make quickstart writes by default

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out/quickstart
DATA := datasets/quickstart

.PHONY: install test quickstart clean
.DELETE_ON_ERROR:

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto

quickstart: install
	@PATH="$(abspath $(BIN)):$$PATH" sh experiments/quickstart.sh $(DATA) $(OUT)

clean:
	rm -rf $(VENV) out/quickstart datasets/quickstart build *.egg-info
