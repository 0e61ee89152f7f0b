"""What lets Snakemake plan 10,000 jobs in less time: benchmarks/dag.py measures it."""

import atexit
import gc
import inspect

# A plan is millions of objects that stay. Python would look for garbage among them again and again, and at the end.
gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)


def of_wildcards(function):
    """function(wildcards, *arguments) in two calls: the arguments from a rule, the wildcards from Snakemake.

    Snakemake asks for the signature, twice for each job; without a stored one Python works it out every time.
    """

    def of_arguments(*arguments):
        def of_job(wildcards):
            return function(wildcards, *arguments)

        of_job.__signature__ = inspect.signature(of_job)
        return of_job

    return of_arguments
