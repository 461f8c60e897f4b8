# make demo · make test · make lint · make bench: each builds .venv when it is missing or its recipe has changed.
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What it was built with stays, unless another Python or PyTorch is asked for, which builds it anew.
BUILT := $(shell cat $(INSTALLED) 2>/dev/null)
ifneq ($(BUILT),)
PYTHON ?= $(firstword $(BUILT))
TORCH ?= $(wordlist 2,$(words $(BUILT)),$(BUILT))
endif
PYTHON ?= python3
# A tested pair. Any PyTorch from 2.4 on works: make install TORCH="torch==2.6.0 torchvision==0.21.0"
TORCH ?= torch==2.14.1 torchvision==0.29.1
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

ifneq ($(BUILT),)
ifneq ($(BUILT),$(PYTHON) $(TORCH))
ANEW := --clear
.PHONY: $(INSTALLED)
endif
endif

.PHONY: help install demo test lint bench clean

help:
	@echo "make install   build $(VENV): PyTorch, Detectron2 0.6, d2_covid and its test tools"
	@echo "make demo      make phantom CT, train on it, evaluate, write overlays and a summary page to demo/"
	@echo "make test      lint, then the whole test suite"
	@echo "make lint      ruff: rules and format"
	@echo "make bench     speed and memory beside torchvision's Mask R-CNN and others, on the CPU and, where there is"
	@echo "               one, on the GPU, to output/benchmark/"
	@echo "make clean     remove $(VENV) and demo/"

install: $(INSTALLED)

# pip 26.3 and newer refuse Detectron2's sdist for an optional dependency it names by URL, hence the bound.
$(INSTALLED): setup.py requirements/detectron2-pypi.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "d2_covid needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(ANEW) $(VENV)
	$(PIP) install --quiet "pip>=24.1,<26" "setuptools>=70.1" wheel
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-deps --no-build-isolation --use-pep517 --requirement requirements/detectron2-pypi.txt
	$(PIP) install --quiet --no-build-isolation --editable ".[all]"
	$(BIN)/d2-covid doctor
	@echo '$(PYTHON) $(TORCH)' > $@

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py --output demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

bench: $(INSTALLED)
	$(BIN)/python tools/benchmark.py --output output/benchmark

clean:
	rm -rf $(VENV) demo build *.egg-info
