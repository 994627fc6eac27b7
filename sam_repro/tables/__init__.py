"""The papers' tables and figures: declared in ``experiments/``, filled from the store of runs, rendered into ``results/``."""
