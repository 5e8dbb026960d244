# make compare     make compare FLAGS="--seeds 3"     make test     make base     make encoder     make readme     make clean
PYTHON ?= python3
FLAGS ?=
VENV := .venv/bin/python
INSTALL := $(VENV) -m pip install --quiet --disable-pip-version-check -c constraints.txt

compare: .venv/run
	$(VENV) compare.py $(FLAGS)

# a file of tests a core: what they share is made once; the host of GPT-2 (548 MB) is away, as it is offline
test: .venv/dev
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy .
	HF_ENDPOINT=http://127.0.0.1:9 OMP_NUM_THREADS=1 $(VENV) -m pytest --quiet --numprocesses auto --dist loadfile --nbmake --nbmake-timeout=300 tests notebooks

# the base model of data/builtin, trained anew into runs/base: a hundred minutes, more or less, on two cores that multiply
# in bf16; on others try PRECISION=fp32; called again, it goes on
PRECISION ?= bf16
PRETRAIN = $(VENV) train_pretrain.py --block-size 256 --batch-size 8 --precision $(PRECISION) --eval-every 1000 --save-minutes 5
RESUME = $(if $(wildcard runs/$(1)/config.json),--resume)
base: .venv/run
	test -e runs/world-1 || $(VENV) -m world --out runs/world-1 --documents 450000 --seed 1 --mixture first
	test -e runs/world-2 || $(VENV) -m world --out runs/world-2 --documents 450000 --seed 2 --mixture last
	test -e runs/base-0 || $(VENV) new_model.py --tokenizer data/builtin/tokenizer.tiktoken --block-size 256 --out runs/base-0
	test -e runs/base-1/sample.txt || $(PRETRAIN) --text runs/world-1/base.jsonl --init-from runs/base-0 --steps 30000 --out runs/base-1 $(call RESUME,base-1)
	$(PRETRAIN) --text runs/world-2/base.jsonl --init-from runs/base-1 --steps 24000 --learning-rate 1e-3 --out runs/base $(call RESUME,base)

# the encoder of data/builtin, trained anew into runs/encoder: the base learns to tell masked tokens from both sides; a
# quarter of an hour on two cores; called again, it goes on
encoder: .venv/run
	test -e runs/world-3 || $(VENV) -m world --out runs/world-3 --documents 130000 --seed 3 --mixture last
	$(VENV) train_mlm.py --block-size 256 --batch-size 8 --eval-every 1000 --save-minutes 5 --text runs/world-3/base.jsonl --init-from data/builtin/base --steps 6000 --learning-rate 2e-3 --out runs/encoder $(call RESUME,encoder)

# the diffs that README.md shows, made anew
readme:
	$(PYTHON) -c 'import re, subprocess as s; from pathlib import Path; page = Path("README.md"); page.write_text( \
	re.sub(r"(?s)(?<=\n\$$ )(diff -w -B .+?\n).*?(?=```)", \
	lambda m: m[1] + s.run(m[1].split(), stdout=s.PIPE, encoding="utf-8").stdout, page.read_text("utf-8")), "utf-8")'

.venv/run: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt matplotlib pygments
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .*_cache

.PHONY: compare test base encoder readme clean
