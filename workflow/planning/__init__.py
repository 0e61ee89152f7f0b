"""What runs in the process of Snakemake: checks and plans. Rules call it by a few lines in checks.smk and hooks.smk.

Functions get what they need as arguments and keep nothing, as two modules of one workflow may use them side by side.
"""


class Problem(Exception):
    """What ends the call, as one sentence for the user: file and key, what is wrong, what to do."""
