# `make demo` and `make test` set up what they need: a pinned environment in .venv. `make install` does only that.

PYTHON ?= $(shell command -v python3.11 || echo python3)
# Which torch: cpu serves the demo, the tests and all that runs in an image; cuda is for GPUs of this machine without one.
# Without a choice an environment keeps what it has; with another choice it is set up anew.
INSTALLED = $(shell cat .venv/installed 2>&-)
TORCH ?= $(or $(INSTALLED),cpu)
TORCH_FOR_CPUS = https://download.pytorch.org/whl/cpu
SHELL = bash
.SHELLFLAGS = -o pipefail -c
export PATH := $(CURDIR)/.venv/bin:$(PATH)

define ASK
printf "QUESTION:Does abrolol reduce cough in smokers?\nCONTEXT: We gave smokers abrolol or placebo.\nThe effect on cough \
remains uncertain: few patients finished, and the groups differed at entry.\nTARGET: the answer to the question given the \
context is (yes|no|maybe):" | .venv/bin/python workflow/tools/ask.py demo/results/runs/lora/fold0/seed0/peft
endef

define CHECK_CHOICES
$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "Python 3.11 is needed, and \
$(PYTHON) is $$($(PYTHON) --version 2>&1 | head -1). Install it, or name it: make install PYTHON=/path/to/python3.11"; exit 1; }
case "$(TORCH)" in cpu|cuda) ;; *) echo "TORCH=$(TORCH) is neither cpu nor cuda"; exit 1;; esac
endef

define INSTALL_TORCH
test "$(TORCH)" = cuda || $(1)/bin/python -m pip install --no-deps --retries 1 --timeout 30 --index-url $(TORCH_FOR_CPUS) \
$$(grep ^torch== envs/requirements.txt) || { echo "torch's build for CPUs could not be fetched from $(TORCH_FOR_CPUS). \
TORCH=cuda takes torch from pip's own index, on Linux several GB."; exit 1; }
endef

# Of pip's hundreds of lines, only how far it is; its errors are shown.
define PIP_INSTALL
python -um pip install --disable-pip-version-check --progress-bar off --requirement envs/$(1).txt $(2) | awk \
-v all=$$(grep -c == envs/$(1).txt) '/^ *(Collecting|Processing)/ && ++n % 20 == 0 {print n " of " all " packages fetched"; fflush()} \
/^Installing/ {print "Installing the packages of envs/$(1).txt, two to five minutes without further output"; fflush()}'
endef

.PHONY: install anew demo test test-faults test-generations test-cluster test-cluster-long lint docs site

install: .venv/installed
.venv/installed: $(if $(filter-out $(TORCH),$(INSTALLED)),anew)

demo: .venv/installed
	@echo "The whole workflow on a CPU: SmolLM2-135M, a real model, learns to answer questions about simulated trial reports."
	@echo "It takes about 6 minutes on 2 cores, 4 GB of memory and 0.6 GB of disk, and downloads nothing. A line appears when a"
	@echo "job starts, makes progress or ends; train_lora and predict take longest."
	@echo
	snakemake all export --cores all --configfile config/demo.yaml
	@echo
	@echo "The table, also in demo/logs/compare_runs.log, is in percent of the 200 test items. The reports are simulated and easy"
	@echo "to learn: a high accuracy of lora shows that training works, and says nothing about medical questions."
	@echo "Open demo/results/report.html in a browser. README.md of the adapter shows its use with transformers, PEFT and vLLM."
	@echo
	@echo "Next, ask the adapter a question; it should answer maybe:"
	@printf '%s\n' '$(ASK)'
	@echo 'Then try your own data: README.md, "Your own data".'

test: .venv/installed lint
	python -m pytest

test-faults: export KILLS ?= 14
test-faults: export FULL_DISKS ?= 1
test-faults: export DRAWS ?= 1000
test-faults: .venv/installed
	@echo "Bad inputs, $(KILLS) kills and, as root, a full disk for each step. docs/reliability.md has what it tries."
	python -m pytest tests/faults

test-generations: .venv/installed .venv-2.0.0rc0/installed
	python -m pytest tests/generations

test-cluster: .venv/installed
	@echo "Starts a SLURM on this machine, Debian 12, as root; installs it and Apptainer where they lack. About 14 minutes,"
	@echo "8 GB of disk."
	python -m pytest tests/cluster -m "not long"

test-cluster-long: .venv/installed
	python -m pytest tests/cluster -m long

lint: .venv/installed
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

docs: .venv/installed
	python docs/draw.py

site: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv/installed: envs/requirements.txt envs/nemo.txt
	@$(CHECK_CHOICES)
	@test ! -L .venv || { echo '.venv is a link: --clear would empty what it leads to. Remove the link.'; exit 1; }
	@echo "Setting up .venv with PyTorch for $(TORCH): 1.2 GB to download, 4 GB of disk, about 4 minutes."
	@echo "(To run on this machine's GPUs without NVIDIA's image, use \`make install TORCH=cuda\`: several GB more.)"
	@$(PYTHON) -m venv --clear .venv
	@$(call INSTALL_TORCH,.venv)
	@.venv/bin/$(call PIP_INSTALL,requirements)
	@.venv/bin/$(call PIP_INSTALL,nemo,--no-deps)
	@echo $(TORCH) > $@

.venv-2.0.0rc0/installed: envs/requirements.txt tests/generations/requirements.txt
	@$(CHECK_CHOICES)
	@echo "Setting up .venv-2.0.0rc0, an older generation of NeMo: 3 GB of disk, 3 minutes."
	@test ! -L .venv-2.0.0rc0 || { echo '.venv-2.0.0rc0 is a link: --clear would empty what it leads to. Remove the link.'; exit 1; }
	@$(PYTHON) -m venv --clear .venv-2.0.0rc0
	@$(call INSTALL_TORCH,.venv-2.0.0rc0)
	.venv-2.0.0rc0/bin/python -m pip install --no-deps --requirement envs/requirements.txt
	.venv-2.0.0rc0/bin/python -m pip install --no-deps --requirement tests/generations/requirements.txt
	@touch $@

.venv-docs/installed: envs/docs.txt
	@$(CHECK_CHOICES)
	@$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet --requirement envs/docs.txt
	@touch $@
