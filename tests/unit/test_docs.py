from helpers import run_script


def test_pictures_in_the_documentation_are_current():
    """README.md's rule graph, docs/rulegraph.svg and docs/dag.svg; `make docs` draws them."""
    done = run_script("../../docs/draw.py", "--check", check=False)
    assert done.returncode == 0, done.stderr
