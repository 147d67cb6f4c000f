# Everything is in tools/bootstrap.py, which also runs without make: `py tools/bootstrap.py demo` on Windows.
# More arguments: make bench ARGS="--quick"      Another Python: make test PYTHON=python3.12

# The first of these that starts and is 3.10 or newer. (A version manager leaves names on PATH that do not start.)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help demo studio test test-all test-oldest test-newest test-webui test-hosts bench matrix soak train train-demo docs wheel release format lock venv clean
help:
	@echo "make demo     paint with the embedded pipeline: out/demo.png"
	@echo "make studio   a page that paints, with the embedded pipeline (ARGS=\"--model DIR\" for one of yours)"
	@echo "make test     lint, types, the test suite, and what can be tested of the WebUI's own stack, where a Python 3.10 is"
	@echo "make test-all     that, slow tests included: half an hour and more"
	@echo "make test-oldest  what can be tested with the WebUI's own Python, torch and libraries; needs a Python 3.10"
	@echo "make test-newest  make test with the newest versions that there are, and what they break"
	@echo "make test-webui   the extension in the installed WebUI that SD_WEBUI_DIR names"
	@echo "make test-hosts   the extension in the installed programs that FORGE_NEO_DIR, … name"
	@echo "make bench    measure against diffusers, a plain loop and the floor: bench.json"
	@echo "              (ARGS=--gpu: on one GPU, checks and tables in at most 8 minutes: gpu.json, gpu.md)"
	@echo "make matrix   measure where a LoRA acts (ARGS=--write: docs/where-it-acts.md; --all: hours; --only Flux)"
	@echo "make soak     100,000 random sequences of what people do with a model, an hour or more"
	@echo "make train    train the embedded pipeline and its LoRAs again (about an hour)"
	@echo "make train-demo   train a LoRA on training/pictures (3 minutes), paint with its tag: out/train-demo.png"
	@echo "make docs     the pages as a site: site/ (ARGS=serve: shown while you write)"
	@echo "make wheel    wheel and sdist in dist/, checked, installed elsewhere and used there"
	@echo "make release  what a release of this version would do (ARGS=--tag: do it)"
	@echo "make format   put the code into the project's format"
	@echo "make lock     write the exact versions in locks/ anew (all to the newest: ARGS=--upgrade)"
	@echo "make venv     only make .venv, with everything in it"
	@echo "make clean    remove .venv and the other environments, caches and what the commands wrote"

demo studio test test-all test-oldest test-newest test-webui test-hosts bench matrix soak train train-demo docs wheel release format lock venv clean:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer found. Install one, or name it: make $@ PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) tools/bootstrap.py $@ $(ARGS)
