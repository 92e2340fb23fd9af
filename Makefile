# `make` or `make help` lists the targets. All of them expect an activated virtual environment.
.DEFAULT_GOAL := help
.PHONY: help install test lint format types quickstart smoke smoke-2 study cards ci

help:  ## list the targets
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*## /\t/' | expand -t 14

install:  ## the package with test and lint tools, at the tested versions
	pip install -e ".[dev]" -c constraints.txt

test:  ## every test
	pytest -n 2 --dist loadfile

lint:  ## what .ci/run checks before the tests
	ruff check .
	ruff format --check .

format:  ## let ruff write the format and the safe fixes
	ruff check --fix .
	ruff format .

types:  ## pyright, basic mode; needs `pip install -e . --no-deps --config-settings editable_mode=strict`
	pyright

quickstart:  ## train, evaluate and report on the embedded phantom corpus
	accelerate launch train/pretrain.py

smoke:  ## a run of at most 30 steps, one process
	accelerate launch --config_file train/accelerate/cpu.yaml train/pretrain.py --recipe train/recipes/smoke.yaml

smoke-2:  ## the same with two CPU processes
	ACCELERATE_USE_CPU=true accelerate launch --config_file train/accelerate/cpu_2_processes.yaml train/pretrain.py --recipe train/recipes/smoke.yaml

study:  ## the controlled study: full, RoIAlign-only, plain-clip; phantoms, and DATA=FOLDER of real sources where given
	python -m regionmed_clip.eval.studies.controlled --output runs/study/phantom --jobs 2
	test -z "$(DATA)" || python -m regionmed_clip.eval.studies.controlled --output runs/study/real --jobs 2 \
		--recipe train/recipes/real_small.yaml --data jsonl:$(DATA)

cards:  ## fill the tables of README.md and docs from model_cards/results
	python -m regionmed_clip.model_cards.readme

ci:  ## what runs on every submission, in an environment of its own
	bash .ci/run
