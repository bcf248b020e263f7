# make quickstart   the main job on the built-in digits: dataset, training, samples (minutes, no GPU needed)
# make test         ruff and pytest
# make demo         a web page to try a network on: NETWORK=mnist by default, or a snapshot
# make test-browser tests of that page in a headless Chromium, which it installs if it can; at most BROWSER_SECONDS
# make test-notebook  runs docs/tour.ipynb top to bottom
# make docs         the guides and the pages of the package as a site, in site/
# make install      .venv alone, with what the scripts need; all of the above make it themselves
# make clean        removes .venv and what make quickstart writes by default

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out/quickstart
DATA := datasets/quickstart
NETWORK ?= mnist
BROWSER_SECONDS ?= 300

.PHONY: install test test-browser test-notebook docs demo quickstart clean
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
	$(BIN)/python -m pytest -n auto --ignore=tests/browser

$(VENV)/installed-demo: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo]'
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python demo.py --network=$(NETWORK)

$(VENV)/installed-browser: $(VENV)/installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[browser]'
	touch $@

test-browser: $(VENV)/installed-dev
	@command -v chromium >/dev/null || timeout 120 sh -c 'apt-get update -qq && apt-get install -yqq chromium' \
	    </dev/null >/dev/null 2>&1 || true
	@if ! command -v chromium >/dev/null; then \
	    echo 'make test-browser: skipped, as Chromium is not installed (apt-get install chromium)'; \
	elif ! $(MAKE) --no-print-directory $(VENV)/installed-browser >$(VENV)/browser.log 2>&1; then \
	    echo 'make test-browser: skipped, as the extra browser cannot be installed; see $(VENV)/browser.log'; \
	elif ! $(BIN)/python tests/browser/chromium.py 2>$(VENV)/chromium.log; then \
	    echo "make test-browser: skipped, as Chromium does not start: $$(tail -n 1 $(VENV)/chromium.log)"; \
	else \
	    timeout --kill-after=20 $(BROWSER_SECONDS) $(BIN)/python -m pytest -x -n 2 -o faulthandler_timeout=240 tests/browser || { \
	        code=$$?; \
	        if [ $$code -eq 124 ]; then echo 'make test-browser: stopped after $(BROWSER_SECONDS) seconds'; fi; \
	        exit $$code; \
	    }; \
	fi

$(VENV)/installed-notebook: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[train,codec,notebook]'
	touch $@

test-notebook: $(VENV)/installed
	@if ! $(MAKE) --no-print-directory $(VENV)/installed-notebook >$(VENV)/notebook.log 2>&1; then \
	    echo 'make test-notebook: skipped, as the extra notebook cannot be installed; see $(VENV)/notebook.log'; \
	else \
	    $(BIN)/jupyter execute --timeout=600 docs/tour.ipynb; \
	fi

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

quickstart: install
	@PATH="$(abspath $(BIN)):$$PATH" sh experiments/quickstart.sh $(DATA) $(OUT)

clean:
	rm -rf $(VENV) out/quickstart out/tour site datasets/quickstart build *.egg-info
