# make demo   environment, installation, the main job (videos in, new videos out)
# make test   environment, installation, lint, types, import contracts, docs, tests
# make chaos  builds under kill -9 for minutes (TESSERA_CHAOS_ROUNDS=8), each compared byte by byte
# make four-ranks   what needs four processes that talk to each other
# make health tokenizers trained for minutes on digits and real films, and how their codes are used
# make bench-shards   what writing and reading shards costs, beside other formats' readers
# make bench-shots   cuts, fades and dissolves found, beside PySceneDetect
# make bench-decode   CPU of annotating, tokenize-decoding and sampling, by every library
# make bench-encoder  the batched encoder beside the same model run clip by clip
# make bench-sampling  seconds per video of every method beside cell by cell
# make bench-quality   what samples of every method are worth, on one footing; two hours
# make bench-text     whether the demo's generator understands captions that it was never trained on
# make bench-filling   what a gap is filled from: both sides, or the left
# make bench-tokenizer   multi-scale beside single-scale codes, and how codebooks are used
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

# One thread per process and no spinning: on small machines two eager thread pools fight.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= passive
export RAY_USAGE_STATS_ENABLED = 0
export PYTHONUNBUFFERED = 1
# Modules are compiled once, not anew by every process that a test starts.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test install lint types contracts unit integration chaos four-ranks health bench-shards bench-shots bench-decode bench-tokenize bench-encoder bench-tokenizer bench-sampling bench-quality bench-filling bench-text bench-train format clean

demo: install
	$(BIN)/tessera demo --out runs/demo

test: install lint types contracts unit integration

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

unit integration: export OMP_NUM_THREADS = 1

unit: install
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'not slow and not ray and not multiprocess and not four_ranks and not gpu and not chaos and not health'

# What starts Ray or several processes takes both cores; the rest goes side by side.
integration: install
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'slow and not (ray or multiprocess or four_ranks or gpu or chaos or health)'
	$(BIN)/pytest -q -m '(ray or multiprocess) and not (four_ranks or gpu or chaos or health)'

chaos: install
	$(BIN)/pytest -q -s -m chaos tests/test_chaos.py

four-ranks: export OMP_NUM_THREADS = 1

four-ranks: install
	$(BIN)/pytest -q -m four_ranks

health: install
	$(BIN)/pytest -q -s -m health tests/test_codebook_use.py

bench-shards: install
	$(BIN)/python benchmarks/shard_writing.py
	$(BIN)/python benchmarks/shard_reading.py
	$(BIN)/python benchmarks/stats.py

bench-shots: install
	$(BIN)/python benchmarks/shots.py

bench-tokenize: install
	$(BIN)/python benchmarks/tokenizing.py

bench-decode: export OMP_NUM_THREADS = 1

bench-decode: install
	$(BIN)/python benchmarks/decoding.py

bench-encoder: export OMP_NUM_THREADS = 1

bench-encoder: install
	$(BIN)/python benchmarks/encoding.py

bench-quality: export OMP_NUM_THREADS = 1

bench-quality: install
	$(BIN)/python benchmarks/quality.py

bench-text: export OMP_NUM_THREADS = 1

bench-text: install
	$(BIN)/python benchmarks/held_out_captions.py

bench-filling: export OMP_NUM_THREADS = 1

bench-filling: install
	$(BIN)/python benchmarks/filling.py

bench-tokenizer: install
	$(BIN)/python benchmarks/rate_distortion.py

bench-sampling: export OMP_NUM_THREADS = 1

bench-sampling: install
	$(BIN)/python benchmarks/sampling.py

bench-train: install
	mkdir -p benchmarks/out
	$(BIN)/tessera bench train --out benchmarks/out/train.json

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs benchmarks/out
