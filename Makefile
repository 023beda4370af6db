# make demo   set up, then run the whole study on synthetic CT (no data, no GPU needed)
# make test   set up, then pass the tests and the linter
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check

.PHONY: demo test clean

demo: $(VENV)/installed
	$(VENV)/bin/python reproduce.py --quick

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# The stamp files are written last, so an interrupted install is taken up again.
$(VENV)/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed')"
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.txt (PyTorch is large: this can take some minutes) ..."
	$(PIP) -r requirements.txt
	$(VENV)/bin/python -c "import torch, torchvision; torchvision.ops.nms"
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)
