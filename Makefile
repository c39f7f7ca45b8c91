# Sets up what it needs in .venv. Needs python3 (3.10 to 3.12), make and a compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For `make demo`: an image folder, or an archive of one. Empty: what is at hand, else the public CIFAR-10 archive.
DATA ?=

.PHONY: setup demo test test-slow test-engines check format proto clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Classify real images end to end, defended and undefended, and print where the time goes
	$(BIN)/python tools/demo.py $(if $(DATA),"$(DATA)")

test: setup  ## The fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup  ## The slow ones: trainings, whole data sets
	$(BIN)/python -m pytest -m slow

test-engines: setup  ## Ray, NVIDIA's Triton and the page in a browser, without skips; wants Chromium on the PATH
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/pip install --quiet --no-compile --no-deps nvidia-pytriton
	EDGESDK_REQUIRE_ENGINES=all $(BIN)/python -m pytest -m 'not gpu' $(addprefix tests/cloud/test_,ray.py triton.py status_page.py)

check: setup  ## Lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint tools/docker/*.Dockerfile

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto:  ## The messages of gRPC from their .proto; an old generator, because its output needs a protobuf at least as new
	$(PYTHON) -m venv $(VENV)-proto
	$(VENV)-proto/bin/pip install --quiet grpcio-tools==1.66.2 'setuptools<81'
	$(VENV)-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. cloud/protobuf/open_inference.proto

clean:
	rm -rf $(VENV) $(VENV)-proto demo
