# Two commands on a fresh machine: `make demo` and `make test`. Each sets up all that it needs first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help set-up demo evidence evidence-full test lowest slow cluster-test demo-test faults soak check audit docs format bench zip wheel corpora clean

UV_VERSION := 0.13.9
VENV := .venv
LOWEST := .venv-lowest
STAMP := $(VENV)/.set-up
BENCH_PARTS := encode select dedup semantic leaks iconify filters train datacomp download
# PYTHON=/path/to/python3.11 overrides the search; PART, DEVICE, NAMES and ARGS are for bench, corpora and the rest.
PYTHON ?=
PART ?=
DEVICE ?=
NAMES ?=
ARGS ?=

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export UV_HTTP_TIMEOUT ?= 300
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
# An activated environment must not decide what runs here.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

set-up: ## install uv, the environment and Delta's jars; does nothing when they are there
	@fail() { printf 'set-up: wanted %s\n        found  %s\n        fix    %s\n' "$$@" >&2; exit 1; }

	java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"
	java_line=$$("$$java" -version 2>&1 | grep ' version ') || java_line="no working $$java"
	java_major=$$(sed -nE 's/.* version "([0-9]+).*/\1/p' <<<"$$java_line")
	[ "$${java_major:-0}" -ge 17 ] ||
	    fail "Java 17 or newer" "$$java_line" "apt-get install openjdk-17-jre-headless, or set JAVA_HOME to a newer one"

	# Contents, not times: a checkout that changes nothing installs nothing. The folder, because scripts name it.
	key=$$({ pwd -P; cat pyproject.toml uv.lock; } | sha256sum)
	if [ "$$(cat $(STAMP) 2>/dev/null)" = "$$key" ] && $(VENV)/bin/python -c '' 2>/dev/null; then exit 0; fi
	rm -f $(STAMP)

	found=""; python=""
	for name in $(or $(PYTHON),python3.11 python3.12 python3); do
	    version=$$("$$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
	    found="$$found$${found:+, }$$name is $$version"
	    case "$$version" in 3.11.*|3.12.*) python=$$(command -v "$$name"); break;; esac
	done
	[ -n "$$python" ] || fail "Python 3.11 or 3.12" "$${found:-none of $(or $(PYTHON),python3.11 python3.12 python3)}" \
	    "apt-get install python3.11 python3.11-venv, or: make PYTHON=/path/to/python3.11"

	if [[ "$$(.uv/bin/uv --version 2>/dev/null)" != "uv $(UV_VERSION)"* ]]; then
	    echo "set-up: installing uv $(UV_VERSION) in .uv"
	    rm -rf .uv
	    "$$python" -m venv .uv >&2 || { rm -rf .uv; fail "Python's venv module" "'$$python -m venv' failed, see above" \
	        "apt-get install python3-venv"; }
	    .uv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: uv==$(UV_VERSION)
	fi

	# Made anew when a killed sync may have left half a package, or when it was copied or moved here (scripts name it).
	if [ -e .uv/syncing ] || { [ -e $(VENV)/bin/dfn ] && ! grep -qF "$$(pwd -P)/$(VENV)/bin" $(VENV)/bin/dfn; }; then
	    rm -rf $(VENV)
	fi
	echo "set-up: installing the environment in $(VENV) (about 7 GB, 3-5 minutes the first time)"
	touch .uv/syncing
	.uv/bin/uv sync --quiet --frozen --all-extras --python "$$python"
	rm .uv/syncing
	echo "set-up: fetching Delta's jars, and keeping Spark's classes as Java has them in memory"
	$(VENV)/bin/python -m etl.jvm
	echo "$$key" > $(STAMP)
	echo "set-up: done in $$SECONDS s"

demo: set-up ## run the whole loop on public corpora, results in build/demo (ARGS="..." goes to dfn loop)
	@$(VENV)/bin/dfn loop --conf demo $(ARGS)

evidence: set-up ## does filtering work at this size? Table 1, sweep, scarce clean data; results in build/evidence
	@$(VENV)/bin/dfn evidence --only table1 --only sweep --only scarce $(ARGS)

evidence-full: set-up ## all claims of the paper, hours of two cores; run again after a kill, it goes on
	@$(VENV)/bin/dfn evidence $(ARGS)

test: set-up ## run the fast tests, in two processes (ARGS="-k word" goes to pytest)
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: set-up ## run the slow tests, hours of two cores: kills, Spark Connect, takedowns (ARGS="--begin-within SECONDS")
	@$(VENV)/bin/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lowest: set-up ## run the fast tests with the lowest version that each range in pyproject.toml allows, in .venv-lowest
	@mkdir -p build/lowest
	# In a folder of its own, where uv does not see what constrains to the tried versions.
	sed '/^constraint-dependencies = \[/,/^\]/d' pyproject.toml >build/lowest/pyproject.toml
	cd build/lowest
	uv="$(CURDIR)/.uv/bin/uv"; env="$(CURDIR)/$(LOWEST)"
	"$$uv" pip compile --quiet --resolution lowest-direct --all-extras --no-annotate -o versions.txt pyproject.toml
	"$$uv" venv --quiet --allow-existing --python "$(CURDIR)/$(VENV)/bin/python" "$$env"
	"$$uv" pip install --quiet --python "$$env/bin/python" -r versions.txt
	"$$uv" pip install --quiet --no-deps --python "$$env/bin/python" --editable "$(CURDIR)"
	cd "$(CURDIR)"
	$(LOWEST)/bin/python -m etl.jvm
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

cluster-test: set-up ## run the tests on a standalone cluster whose GPUs are addresses only
	@$(VENV)/bin/python -m pytest -m cluster $(ARGS)

demo-test: set-up ## run the demo in a folder of its own, twice, and open its card (a quarter of an hour of two cores)
	@$(VENV)/bin/python -m pytest -m demo -n 0 -s $(ARGS)

faults: set-up ## run every proof that a fault costs nothing, and print a row for each fault (an hour of two cores)
	@$(VENV)/bin/python -m pytest -m fault -n 2 --dist loadfile $(ARGS)

soak: set-up ## kill 50 times at random in repeated rounds, and compare the tables with those of a round that nobody killed
	@DFN_SOAK_KILLS=$${DFN_SOAK_KILLS:-50} $(VENV)/bin/python -m pytest -m soak -n 0 -s tests/test_soak.py $(ARGS)

check: set-up ## ruff, format, mypy, and that uv.lock fits pyproject.toml
	@status=0
	run() { echo "check: $$*"; "$$@" || status=1; }
	run $(VENV)/bin/python -m ruff check .
	run $(VENV)/bin/python -m ruff format --check .
	run $(VENV)/bin/python -m mypy
	run .uv/bin/uv lock --check --quiet --python $(VENV)/bin/python
	exit $$status

audit: set-up ## known vulnerabilities of what uv.lock has, where pip-audit reaches their database
	@mkdir -p build
	.uv/bin/uv export --quiet --frozen --all-extras --no-emit-project --no-hashes -o build/locked.txt
	.uv/bin/uv tool run --quiet pip-audit --disable-pip --no-deps --progress-spinner off -r build/locked.txt

docs: set-up ## the documentation as pages, in build/docs/index.html; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	echo "docs: build/docs/index.html"

format: set-up ## let ruff format and fix what it can
	@$(VENV)/bin/python -m ruff format .
	$(VENV)/bin/python -m ruff check --fix .

bench: set-up ## measure all parts, or one: make bench PART=encode (DEVICE=cuda for a GPU, ARGS="--quick")
	@parts="$(or $(PART),$(BENCH_PARTS))"
	for part in $$parts; do
	    [ -f "tests/bench/$$part.py" ] && [[ " $(BENCH_PARTS) " == *" $$part "* ]] && continue
	    printf 'bench: wanted PART=NAME\n       found  PART=%s\n       fix    one of: %s\n' "$$part" "$(BENCH_PARTS)" >&2
	    exit 2
	done
	# --inexact: adds the peers, removes nothing.
	.uv/bin/uv sync --quiet --frozen --all-extras --group bench --inexact --python $(VENV)/bin/python
	for part in $$parts; do
	    $(VENV)/bin/python -m tests.bench.$$part $(if $(DEVICE),--device $(DEVICE)) $(ARGS)
	done

define ZIP
import pathlib, sys, zipfile
out = pathlib.Path(sys.argv[1])
out.parent.mkdir(parents=True, exist_ok=True)
paths = sorted(p for d in ("etl", "models") for p in pathlib.Path(d).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
files = {path.as_posix(): path for path in paths}
files |= {f"etl/{path.as_posix()}": path for path in sorted(pathlib.Path("conf").rglob("*.yaml"))}  # where the wheel has it
with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # stored, in order, one date: same code, same bytes
    for name, path in files.items():
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), path.read_bytes())
print(f"zip: {out}, {len(files)} files, {out.stat().st_size} bytes")
endef
export ZIP

zip: ## dist/dfn_etl.zip for spark-submit --py-files (executors cannot import from a wheel)
	@$(or $(PYTHON),python3) -c "$$ZIP" dist/dfn_etl.zip

wheel: set-up ## the wheel, in dist/
	@.uv/bin/uv build --quiet --wheel --out-dir dist --python $(VENV)/bin/python
	ls dist/*.whl

corpora: set-up ## download the public corpora into the cache (NAMES="..." for some of them)
	@$(VENV)/bin/dfn corpora $(NAMES)

clean: ## remove results and caches in this folder; .venv, .uv and the corpora stay
	@rm -rf build dist spark-warehouse metastore_db derby.log .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find etl models tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
