# `make up` sets everything up and runs Greylag; `make test` sets everything up and tests it.
# HOST, PORT and DATA may be given: make up PORT=9000
BIN := .venv/bin
# Blanks in its name are escaped, unless whoever gave it has quoted them already.
QUOTED := $(findstring \,$(DATA))$(findstring ',$(DATA))$(findstring ",$(DATA))
FOLDER := $(if $(QUOTED),$(DATA),$(subst $() ,\ ,$(DATA)))
UP_ARGS := $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(if $(DATA),--data $(FOLDER))
TEST_ARGS ?=

.PHONY: up setup test setup-dev lint typecheck pytest format bench lighthouse lock image greylag-image judges sbom css clean

up: setup ## Set up and run Greylag; prints its address
	@$(BIN)/greylag up $(UP_ARGS)

setup: ## Put everything that running needs into .venv
	@tools/setup.sh runtime

test: setup-dev lint ## Set up, check and test everything
	@$(MAKE) --no-print-directory -j2 typecheck pytest

# Most of the time tests wait for programs, so more of them run at once than there are cores. Their modules are
# compiled once for all, not by each of those that run them.
pytest: export PYTHONDONTWRITEBYTECODE =
pytest:
	@[ -n "$$(find tests -name '*-pytest-*.pyc' -print -quit)" ] || $(BIN)/pytest -qq --collect-only $(TEST_ARGS) >/dev/null || :
	@$(BIN)/pytest -n 6 --dist worksteal $(TEST_ARGS)

setup-dev:
	@tools/setup.sh dev

lint:
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@PYTHONPATH=src $(BIN)/lint-imports --no-logo 2>/dev/null || PYTHONPATH=src $(BIN)/lint-imports

typecheck:
	@$(BIN)/mypy

format: ## Format and mend what can be mended
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: setup-dev ## Measure speed and memory as ratios against peers
	@$(BIN)/python -m benchmarks.run

lighthouse: setup-dev ## Have Lighthouse judge the pages (needs Node and Chromium; fetches Lighthouse)
	@$(BIN)/python -m benchmarks.lighthouse

lock: ## Renew the lock files (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/runtime.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml -c requirements/runtime.lock -o requirements/dev.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements/agentd.in -c requirements/runtime.lock -o requirements/agentd.lock
	printf 'hatchling>=1.27\neditables\n' | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -o requirements/build.lock

image: ## Build build/goose-api-server.tar, the environments' image, without a registry (Debian, as root)
	@tools/image.sh goose-api-server

greylag-image: ## Build build/greylag.tar, the image of web and worker, in the same way
	@tools/image.sh greylag

judges: ## Install what judges the manifests (needs Go); tests then run it: tests/deploy/test_manifests_judged.py
	GOBIN=$(CURDIR)/build/judges/bin go install github.com/zegl/kube-score/cmd/kube-score@v1.20.0
	GOBIN=$(CURDIR)/build/judges/bin go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
	GOEXPERIMENT=jsonv2 GOBIN=$(CURDIR)/build/judges/bin go install github.com/aquasecurity/trivy/cmd/trivy@v0.74.0
	python3 -m venv build/judges/checkov
	build/judges/checkov/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30
	ln -sf ../checkov/bin/checkov build/judges/bin/checkov

sbom: image greylag-image ## Write build/sbom: what the wheel and both images are made of, as CycloneDX (needs Go)
	GOBIN=$(CURDIR)/build/judges/bin go install github.com/anchore/syft/cmd/syft@v1.57.1
	python3 -m venv build/judges/cyclonedx
	build/judges/cyclonedx/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	@mkdir -p build/sbom
	build/judges/cyclonedx/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom/wheel.cdx.json requirements/runtime.lock
	@for name in goose-api-server greylag; do \
		SYFT_CHECK_FOR_APP_UPDATE=false build/judges/bin/syft scan --quiet --select-catalogers=-file \
			--output cyclonedx-json=build/sbom/$$name.cdx.json oci-archive:build/$$name.tar || exit; \
	done

css: ## Build the dashboard's style sheet and scripts (needs Node)
	npm ci --prefix frontend --no-progress
	npm run --prefix frontend build

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
