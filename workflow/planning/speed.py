"""What lets Snakemake plan 10,000 jobs in less time: benchmarks/dag.py measures it."""

import atexit
import gc
import inspect


def collect_less_garbage():
    """A plan is millions of objects that stay. Python would look for garbage among them again and again."""
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)  # and at the end


def quickly(function):
    """The function, with its signature beside it: Snakemake asks for that twice a job, and Python would work it out."""
    function.__signature__ = inspect.signature(function)
    return function
