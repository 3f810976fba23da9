# Everything runs in .venv, made here with python3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow report bundle clean

demo: $(VENV)/installed  ## draw a bird on a tree with the shipped bundle
	$(BIN)/python infer.py "bird on a tree" --out out

test: $(VENV)/installed-dev  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

slow: $(VENV)/installed-dev  ## the long proofs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/python -m pytest -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

report: $(VENV)/installed  ## score the shipped bundle in all suites of scenes, into docs/report: ten minutes
	$(BIN)/ar-t2i evaluate --count 100 --pictures 2000 --out runs/report --suite scenes/basic scenes/geneval \
		scenes/binding scenes/spatial scenes/multigen scenes/optigen distribution
	mkdir -p docs/report
	cp runs/report/report.json runs/report/report.md runs/report/report.html docs/report

bundle: $(VENV)/installed  ## train everything in ar_t2i/bundle again, from seeds: hours on two cores
	$(BIN)/ar-t2i tokenizer train --config configs/tokenizer-scenes.yaml
	$(BIN)/ar-t2i scenes --out data/scenes --count 60000 --seed 1
	$(BIN)/ar-t2i scenes --out data/scenes --count 1000 --seed 1 --split validation
	$(BIN)/ar-t2i preprocess 'data/scenes/scenes-train-*.tar' --out data/scenes-tokens \
		--image-tokenizer runs/tokenizer-scenes/tokenizer --vocabulary tokenizer
	$(BIN)/ar-t2i preprocess 'data/scenes/scenes-validation-*.tar' --split validation --out data/scenes-tokens \
		--image-tokenizer runs/tokenizer-scenes/tokenizer --vocabulary tokenizer
	$(BIN)/ar-t2i train --config configs/scenes.yaml image_tokenizer=runs/tokenizer-scenes/tokenizer
	$(BIN)/python -c "from ar_t2i.config import load; from ar_t2i.evaluation.reader_training import *; \
		train_reader(load(ReaderTrainingConfig, 'configs/verifier.yaml'))"
	rm runs/scenes/bundle/README.md
	cp -r runs/scenes/bundle/. ar_t2i/bundle
	cp runs/verifier/config.json runs/verifier/model.safetensors ar_t2i/bundle/verifier

clean:
	rm -rf $(VENV) build dist *.egg-info
