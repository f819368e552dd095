# make demo   train four small digit classifiers, align them with every search, write demo/report.html
# make test   the test suite: minutes on two cores
# make test-slow  more cases of what it tests, long campaigns, and the demo
# make test-all   both in one run, as CI does
# make proofs compile every device kernel; no GPU needed. It installs Triton, NVRTC and CuPy, so that
#             `make test` after it runs the kernels' tests too, which it else skips
# make simulate  the CUDA kernels thread by thread, without a GPU: races, missing barriers,
#             deadlocks, bad reads. Needs g++ and addr2line. `make test-slow` has the quick form
# make check  what CI runs before the tests: lint, format, types
# make docs   the documentation site, into site/; `make docs-serve` serves it and follows changes
# make wheel  dist/*.whl, installed and imported in a clean environment
# make everything  installs at once what all of these need
# Each makes its own virtual environment on first use and needs only Python >= 3.11 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
PIP := $(BIN)/python $(INSTALL)

.PHONY: demo test test-slow test-all proofs simulate check bench docs docs-serve wheel everything clean

demo: $(VENV)/demo.stamp
	$(BIN)/gpu-align demo --out demo

test: $(VENV)/test.stamp
	$(BIN)/pytest -q -n auto --dist worksteal

test-slow: $(VENV)/test.stamp
	$(BIN)/pytest -q -n auto --dist worksteal -m 'slow and not whole'

test-all: $(VENV)/test.stamp
	$(BIN)/pytest -q -n auto --dist worksteal -m 'not whole'

proofs: $(VENV)/proofs.stamp
	$(BIN)/python -m bench.compile_kernels
	$(BIN)/python -m bench.compile_cuda

simulate: $(VENV)/test.stamp
	$(BIN)/pytest -q -n auto tests/test_simulator.py tests/test_k_best_simulator.py -m ''

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/pytest -q bench --benchmark-json=bench/results/latest.json

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: $(VENV)/dev.stamp
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build --wheel --outdir dist . >/dev/null
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python $(INSTALL) --no-compile dist/*.whl
	cd / && '$(CURDIR)/$(VENV)-wheel/bin/python' -c 'import gpu_align; print(gpu_align.__file__)'
	$(VENV)-wheel/bin/gpu-align env
	rm -rf $(VENV)-wheel

# All cores compile, where pip takes one. What is of another Python fails, and is never imported.
everything: $(VENV)/bin/python
	$(PIP) --no-compile -e '.[demo,fast,docs,dev,kernels-check]'
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $(foreach name,demo test proofs docs dev,$(VENV)/$(name).stamp)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpu-align needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) -e '.[demo,fast]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/proofs.stamp: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) -e '.[test,kernels-check]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-wheel build dist demo site *.egg-info
