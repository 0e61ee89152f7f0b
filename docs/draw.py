"""Draws the workflow for the documentation: `make docs`. With --check, only says what is stale, and needs no graphviz.

docs/rulegraph.svg shows the rules, docs/dag.svg the jobs of two runs on two folds.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def snakemake(*arguments):
    """What Snakemake prints, the same each time: by hash seed, and with --forceall also beside finished results."""
    command = ["snakemake", "--forceall", *arguments]
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "env": {**os.environ, "PYTHONHASHSEED": "0"}}
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


def legible(dot):
    """On light and on dark: dark words on light boxes, grey lines on whatever is behind."""
    dot = dot.replace("bgcolor=white", "bgcolor=transparent").replace("color=grey", 'color="#808080"')
    return re.sub('style="(rounded[^"]*)"', r'style="\1,filled", fillcolor="#f6f8fa"', dot)


def picture(dot):
    """dot's SVG, with a note of what it was made from."""
    svg = subprocess.run(["dot", "-Tsvg"], input=dot, capture_output=True, text=True, check=True).stdout
    return svg.replace("<svg ", f"<!-- {source_of(dot)} -->\n<svg ", 1)


def source_of(dot):
    return f"made by docs/draw.py, source {hashlib.sha256(dot.encode()).hexdigest()}"


def main():
    example = ROOT / "docs/dag.yaml"
    graphs = {
        ROOT / "docs/rulegraph.svg": legible(snakemake("--rulegraph", "dot")),
        ROOT / "docs/dag.svg": legible(snakemake("--dag", "dot", "--configfile", str(example))),
    }
    if "--check" in sys.argv:
        stale = [str(svg) for svg, dot in graphs.items() if not svg.exists() or source_of(dot) not in svg.read_text()]
        sys.exit(f"stale: {', '.join(stale)}; run make docs" if stale else 0)
    if not shutil.which("dot"):
        sys.exit("graphviz is missing: install it, as by apt install graphviz.")
    for svg, dot in graphs.items():
        svg.write_text(picture(dot))


if __name__ == "__main__":
    main()
