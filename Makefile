SHELL := /usr/bin/env bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
# cargo is not a sub-make: without this, `make -j` makes it complain.
unexport MAKEFLAGS MFLAGS

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Install what this machine lacks (C compiler, Postgres binaries)
	@.ci/setup

.PHONY: setup-test
setup-test:
	@.ci/setup test

.PHONY: dev
dev: setup ## Run everything locally, with a Postgres of its own (ARGS=--reset starts afresh)
	@[ -x '$(TARGET_DIR)/debug/rowhouse' ] || echo 'The first build takes some minutes.'
	@cargo build
	@exec '$(TARGET_DIR)/debug/rowhouse' dev $(ARGS)

.PHONY: test
test: setup-test ## Run the tests (ARGS='name' runs some of them)
	@cargo test --locked $(ARGS)

.PHONY: check
check: check-fmt check-clippy check-openapi ## Check formatting, lints, and that openapi/ is up to date

.PHONY: check-fmt check-clippy check-openapi
check-fmt:
	@cargo fmt --check
check-clippy:
	@cargo clippy --all-targets --locked -- -D warnings
check-openapi:
	@cargo run --locked -- openapi --check

.PHONY: openapi
openapi: ## Write the OpenAPI documents to openapi/
	@cargo run -- openapi

.PHONY: release
release: ## Build the optimised binary
	@cargo build --release --locked

.PHONY: bench
bench: setup ## Measure the fleet and jobs, in 15 minutes (ARGS=fleet, jobs, lists, search, fairness, metering or sockets: that)
	@cargo bench --locked -- $(ARGS)
