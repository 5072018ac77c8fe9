# Every target sets up what it needs: a virtual environment in .venv and the package in it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run test slow lint app lab notebooks hooks lock fuzz kill clean help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

run: $(READY)  ## the whole pipeline on the generated stand-in, then where the report is
	$(BIN)/fakeface run --profile demo

test: $(READY) lint  ## pytest, then every notebook as a test
	$(BIN)/python -m pytest -q -m 'not slow' --durations 20 tests
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 1 --timing

slow: $(READY)  ## what takes long to prove: killed runs, load, several processes, long walks through the demo
	$(BIN)/python -m pytest -q -m slow --durations 20 tests

lint: $(READY)  ## width, names that are not used, one statement a line; notebooks too
	$(BIN)/ruff check -q --isolated --line-length 100 --select E501,E702,E703,F --ignore F403,F405,F811 nbs app.py benchmarks setup.py

app: $(READY)  ## the demo in a browser
	$(BIN)/fakeface app

lab: $(READY) hooks  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir nbs

# Kept outputs come from here: run in order, without progress bars, cleaned of what differs by machine.
notebooks: $(READY)  ## run all notebooks in place and export the package
	$(BIN)/nbdev_export
	TQDM_DISABLE=1 PYTHONWARNINGS=ignore $(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/*.ipynb nbs/lib/*.ipynb
	$(BIN)/python docs/pictures.py nbs/*.ipynb nbs/lib/*.ipynb
	$(BIN)/nbdev_clean

hooks: $(READY)  ## let git clean and merge notebooks
	git config --local include.path ../.gitconfig

lock: $(READY)  ## write constraints.txt and docs/licences.md from what is installed
	$(BIN)/python docs/dependencies.py

kill: $(READY)  ## kill a small run thirty times, at other moments with SEED=n
	$(BIN)/python tests/kill_runs.py 30 $(or $(SEED),0)

fuzz: $(READY)  ## open 10,000 broken images; SEED=n for others
	$(BIN)/python tests/fuzz_images.py 10000 $(or $(SEED),0)

clean:  ## remove the environment, the runs and the generated data
	rm -rf .venv runs data/standin* build *.egg-info

$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fakeface needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": run make PYTHON=python3.x")'
	@echo 'installing into .venv: several minutes, up to 7 GB'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -C editable_mode=compat -e '.[dev]'
	@touch $@
