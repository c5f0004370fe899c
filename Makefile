# wegformer: make setup | reproduce | test | web | docs | docs-serve | test-browser | torture | lint | lab | kernels | bench | clean
PYTHON ?= python3
PY := .venv/bin
OUT ?= runs/table2

.PHONY: setup reproduce test web docs docs-serve test-browser torture lint lab kernels bench clean
setup: .venv/.done

.venv/.done: settings.ini setup.py constraints.txt
	$(PYTHON) install.py
	touch $@

reproduce: setup  ## Table 2 on the embedded data set, printed and written to $(OUT)
	$(PY)/wegformer reproduce table2 --preset toy --out $(OUT)

test: setup  ## what the notebooks assert, then the grids, reference vectors and faults
	@# several notebooks share a process: without a GPU Triton has to know before the first of them imports it
	TRITON_INTERPRET=$$($(PY)/python -c "import torch; print(int(not torch.cuda.is_available()))") \
	PATH="$(CURDIR)/$(PY):$$PATH" OMP_NUM_THREADS=1 nbdev-test --n-workers 2 --do-print --timing
	@# the tests' models are tiny: a second thread wins little, and waits long for a core that is busy
	OMP_NUM_THREADS=1 $(PY)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

web: setup web/node_modules/.done  ## the live page, in web/dist: any file server can show it
	$(PY)/python web/build.py
	cd web && npm run --silent check && npm run --silent bundle

web/node_modules/.done: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "The live page needs Node.js with npm: apt-get install nodejs npm" >&2; exit 1; }
	cd web && npm ci
	touch $@

test-browser: docs  ## the site, its live page, and notebooks in JupyterLab, in Chromium
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	{ echo "The browser tests need Chromium: apt-get install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(PY)/python -m pytest -n 2 --dist loadfile -rP tests/browser  # -rP: times, and where screenshots lie

torture: setup  ## kills, full disks, hostile files, races, damaged data: some 20 minutes; docs/reliability.md tells
	$(PY)/python -m torture

lint: setup  ## one dialect in notebooks, package and scripts: settings in pyproject.toml
	$(PY)/ruff check .
	$(PY)/ruff format --check .

lab: setup
	$(PY)/jupyter lab nbs/index.ipynb

SITE := docs/site/node_modules/.package-lock.json
$(SITE): docs/site/package.json docs/site/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing, which fetches what the site serves itself: apt-get install npm" >&2; exit 1; }
	npm ci --prefix docs/site --no-audit --no-fund

docs: setup $(SITE)  ## the site, into site/: notebooks as stored, tables as recorded, nothing from another host
	@if [ -d web ]; then $(MAKE) web; fi
	NO_MKDOCS_2_WARNING=1 $(PY)/mkdocs build --strict
	$(PY)/python docs/site/check.py site

docs-serve: setup $(SITE)  ## the same at http://localhost:8000, renewed whenever a page changes
	NO_MKDOCS_2_WARNING=1 $(PY)/mkdocs serve

kernels: setup  ## compile every Triton kernel for every GPU target, without a GPU
	$(PY)/python kernels/compile.py

bench: setup  ## time the kernels against their floor and their references, on a GPU
	$(PY)/python kernels/bench.py

clean:
	rm -rf .venv runs build dist site docs/site/node_modules web/dist web/node_modules *.egg-info .pytest_cache .hypothesis .ruff_cache
