# One way to do each thing, here and in CI. PYTHON picks the interpreter of a new .venv.
# torch's default build for Linux brings CUDA along; where your index (PIP_INDEX_URL,
# PIP_EXTRA_INDEX_URL) offers a CPU build of the version in constraints.txt, pip takes that one.

PYTHON ?= $(if $(filter Windows_NT,$(OS)),python,python3)
WORKERS ?= 2
BENCH_DIR ?= build/bench
BENCH_RUNS ?= 7

DEMO := build/demo
OUT := $(DEMO)/small-vae
BASE := fixtures/trained.ckpt
STEPS := --steps 20 --size 128 --batch-size 2 --pixel mse --lpips 0 --lr 5e-5 --ema-decay 0.9
MEASURED := --ema $(BASE) $(OUT) --name base --name fine-tuned --images fixtures/photos/held-out --limit 4 --size 128

VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-numerics test-portable lint format check bench picture reference \
	fixtures clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup: $(READY)  ## make .venv and install vaeconv with its development tools

# pip learns --group at 25.1 and old Pythons bring an older one, so pip itself comes first.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing vaeconv and its tools into $(VENV) (torch makes the first time long)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group dev --editable .
	@$(BIN)/python -m compileall -q vaeconv  # start-up counts, and the environment may forbid it later
	@touch $@

# Held-out photographs are what is measured; the others are trained on.
demo: $(READY)  ## the whole story in small: train, prune, convert, verify, measure, compare, write the card
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/vaeconv inspect $(BASE)
	$(BIN)/vaeconv finetune --ema $(BASE) --data fixtures/photos/seen --out $(DEMO)/run $(STEPS)
	$(BIN)/vaeconv prune --ema $(DEMO)/run/last.ckpt $(DEMO)/small-vae.safetensors
	$(BIN)/vaeconv convert --ema --dtype fp16 --scaling-factor 0.18215 $(DEMO)/run/last.ckpt $(OUT)
	$(BIN)/vaeconv verify --scaling-factor 0.18215 --html $(DEMO)/parity.html --report $(DEMO)/parity.json \
		$(OUT) $(DEMO)/small-vae.safetensors
	$(BIN)/vaeconv eval --out $(DEMO)/eval.json --metrics psnr,ssim $(MEASURED)
	$(BIN)/vaeconv compare --out $(OUT)/samples $(MEASURED)
	$(BIN)/vaeconv card $(OUT) --meta fixtures/card/demo.toml --eval $(DEMO)/eval.json \
		--parity $(DEMO)/parity.json --pictures $(OUT)/samples
	@echo
	@echo "Look at $(DEMO)/parity.html, $(OUT)/samples/sheet.png and $(OUT)/README.md"

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-all: $(READY)  ## run the slow tests as well
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

# Six configurations, the first with all tests: an hour on two cores. One alone:
# .venv/bin/python -m tests.support.processors "AVX2, two threads"
test-numerics: $(READY)  ## run the tests that compute as other processors would
	$(BIN)/python -m tests.support.processors -n $(WORKERS)

test-portable: $(READY)  ## run the tests with what only POSIX has taken away, as on Windows
	$(BIN)/python -m tests.support.processors -n $(WORKERS) "without POSIX"

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test  ## all that CI runs

bench: $(READY)  ## make the inputs (8 GB under BENCH_DIR) once, then measure
	$(BIN)/python -m benchmarks.make_inputs --dir $(BENCH_DIR)
	$(BIN)/python -m benchmarks.convert --dir $(BENCH_DIR) --runs $(BENCH_RUNS)
	$(BIN)/python -m benchmarks.prune --dir $(BENCH_DIR) --runs $(BENCH_RUNS)
	$(BIN)/python -m benchmarks.verify --dir $(BENCH_DIR)
	$(BIN)/python -m benchmarks.eval --dir $(BENCH_DIR)

picture: $(READY)  ## redraw docs/inspect.svg and docs/reconstructions.jpg
	$(BIN)/python docs/make_picture.py fixtures/trained.ckpt docs/inspect.svg
	$(BIN)/python docs/make_reconstructions.py docs/reconstructions.jpg

reference: $(READY)  ## rewrite docs/cli.md, docs/api.md and the outputs in README.md
	$(BIN)/python -m docs.make_reference
	$(BIN)/python -m docs.make_api
	$(BIN)/python -m docs.make_readme

fixtures: $(READY)  ## rewrite fixtures/ from its script
	$(BIN)/python -m fixtures.make_fixtures

clean:  ## remove what the targets made, but .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
