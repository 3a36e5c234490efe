# understudy: build, test and show. Every step says what it does and is skipped
# when there is nothing left to do.

SHELL   := /bin/bash
BIN     := $(CURDIR)/bin
TAGS    := noquic
VERSION ?= $(shell packaging/version)
DIST    ?= $(CURDIR)/dist
GO      := go
PACKAGES ?= ./...
BUILD   := $(GO) build -tags $(TAGS) -trimpath -ldflags '-X github.com/understudy-ha/understudy/node.Version=$(VERSION)'
export PATH := $(BIN):$(PATH)

PROGRAMS := understudy check-runner handler-runner consul-watcher file-sync postgres-helper

.PHONY: help setup build package test e2e lab vet sim sim-mutants demo bench bench-rejoin chaos clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages, and Consul from its Go module
	@packaging/setup

build: setup ## the binaries, into bin/
	@began=$$SECONDS; for p in $(PROGRAMS); do $(BUILD) -o $(BIN)/$$p ./cmd/$$p || exit 1; done; \
	$(BUILD) -o $(BIN)/notes ./example/notes && echo "built into bin/ ($$((SECONDS-began)) s)"

package: ## a .deb and a .rpm with all that a host needs beside PostgreSQL, Consul included, into dist/
	@packaging/setup package
	@began=$$SECONDS; rm -rf $(DIST)/bin; for p in $(PROGRAMS); do CGO_ENABLED=0 $(BUILD) -o $(DIST)/bin/$$p ./cmd/$$p || exit 1; done; \
	packaging/package $(DIST) $(VERSION) && echo "packed $(VERSION) ($$((SECONDS-began)) s)"

test: build vet ## all tests but those of "make e2e", with the race detector; PACKAGES=./config/... for some; and the simulator without, on 2,000 seeds of 3 and of 5 nodes
	@packaging/setup test
	@# Tested one package at a time: most raise clusters of their own, which share the machine as it is.
	$(GO) build -tags $(TAGS) -race $(PACKAGES)
	@# What failed is told once more at the end, below the logs of whole clusters.
	$(GO) test -tags $(TAGS) -race -p 1 -timeout 20m $$($(GO) list -tags $(TAGS) $(PACKAGES) | grep -v /hosts$$) 2>&1 | tee $(BIN)/test.txt; ended=$${PIPESTATUS[0]}; \
	if [ $$ended != 0 ]; then echo "what failed:"; grep -E '^ *--- FAIL|^ +[a-z0-9_]+_test\.go:[0-9]+: |^FAIL' $(BIN)/test.txt | cut -c 1-300; fi; exit $$ended
	@if [ "$(PACKAGES)" = ./... ]; then for n in 3 5; do $(MAKE) --no-print-directory sim SEEDS=2000 NODES=$$n || exit 1; done; fi

e2e: build ## the life of a cluster on whole machines, from git clone to purge, with what its clients saw (as root)
	@packaging/setup test
	$(GO) test -tags $(TAGS) -v -count=1 -timeout 35m ./hosts -report $(BIN)/e2e
	@cat $(BIN)/e2e.txt

lab: build ## three whole Debian machines with a cluster and a load balancer, to play with until Ctrl-C (as root)
	@packaging/setup test
	@$(GO) run -tags $(TAGS) ./lab/play

FIRST ?= 1
SEEDS ?= 2000
NODES ?= 3
JOBS  ?= $(shell nproc)
sim: ## play SEEDS=n seeds of NODES=n nodes in the simulator, from FIRST=n on; with SEED=n one, with its history
	@$(GO) test -c -tags $(TAGS) -o $(BIN)/simulator.test ./handlerrunner
ifdef SEED
	@$(BIN)/simulator.test -test.v -test.run '^TestSimulation$$' -sim.tell -sim.nodes $(NODES) -sim.first $(SEED) -sim.seeds 1
else
	@packaging/simulate $(BIN)/simulator.test $(JOBS) $(FIRST) $(SEEDS) $(NODES)
endif

MUTANT_SEEDS ?= 100000
sim-mutants: ## switch off one safety measure after the other: the simulator must notice
	$(GO) test -tags $(TAGS) -v -timeout 12h -run '^TestMutants$$' ./handlerrunner -sim.mutants=$(MUTANT_SEEDS)

vet:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'gofmt is not satisfied'; exit 1; }
	$(GO) vet -tags $(TAGS) $(PACKAGES)

demo: build ## a three-node cluster on this machine, failed over twice, with its timeline
	@$(BIN)/understudy dev demo

bench: build ## outages and overheads, as a table and as JSON
	@$(BIN)/understudy dev bench

bench-rejoin: build ## how a crashed node comes back to a database of 1 GB and of 10 GB; needs 52 GB of disk
	@$(BIN)/understudy dev bench --only rejoin-1gb,rejoin-10gb

MINUTES ?= 60
SEED    ?= 1
chaos: build ## a cluster that is hurt for MINUTES=60, drawn from SEED=1, and what its clients saw (as root)
	@$(BIN)/understudy dev chaos --minutes $(MINUTES) --seed $(SEED)

clean: ## remove what was built
	rm -rf $(BIN) $(DIST)
