# make compare TEXT=a.txt DOMAIN=b.txt INSTRUCTIONS=c.json     make test     make clean
PYTHON ?= python3
OUT ?= runs/compare
VENV := .venv/bin/python
INSTALL := $(VENV) -m pip install --quiet --disable-pip-version-check -c constraints.txt

compare: .venv/run
	$(VENV) compare.py $(if $(TEXT),--text "$(TEXT)") $(if $(DOMAIN),--domain "$(DOMAIN)") \
		$(if $(INSTRUCTIONS),--instructions "$(INSTRUCTIONS)") --out "$(OUT)"

test: .venv/dev
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy .
	$(VENV) -m pytest --quiet

.venv/run: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .*_cache

.PHONY: compare test clean
