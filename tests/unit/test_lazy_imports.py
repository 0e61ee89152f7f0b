"""What nemo_image.lazy_imports leaves out of the imports is there when it is used after all."""

import subprocess
import sys

import pytest
from helpers import environment

FILES = {
    "unused/__init__.py": "__version__ = '2.0'\nITEMS = [1, 2]\nclass Base: pass\n",
    "unused/part/__init__.py": "from unused import Base\n",
    "unused/part/leaf.py": "def double(x): return 2 * x\n",
    "unused/broken.py": "raise ImportError('a library is missing')\n",
}
LAZY = """
import sys
from typing import Optional
from nemo_image import lazy_imports
lazy_imports.UNUSED = ["unused"]
lazy_imports.install()
{}
assert all(type(found) is lazy_imports.Module for name, found in sys.modules.items() if name.startswith("unused"))
{}
assert type(sys.modules["unused"]) is not lazy_imports.Module
"""
FAILS = "try: {}\nexcept ImportError as error: assert {!r} in str(error)\nelse: assert False"


@pytest.mark.parametrize(
    "imports, use",
    [
        ("from unused.part.leaf import double", "assert double(2) == 4"),
        ("import unused", "assert unused.ITEMS == [1, 2]"),
        ("import unused.part.leaf as leaf", "assert leaf.double(2) == 4 and leaf.double(3) == 6"),
        ("from unused.part import leaf", "assert leaf.double(2) == 4"),
        ("import unused", "assert unused.__version__ == '2.0'"),
        ("import unused", "from unused import *; assert ITEMS[0] == 1"),
        ("from unused import ITEMS", "assert [*ITEMS] == [1, ITEMS[1]] and len(ITEMS) == 2 and str(ITEMS) == '[1, 2]'"),
        ("from unused import Base", "assert isinstance(Base(), Base) and not isinstance(1, Base)"),
        ("from unused.part import Base", "class C(Base): pass\nassert issubclass(C, Base)"),
        ("from unused import Base; Optional[Base]", "assert (Base | None) == Optional[sys.modules['unused'].Base]"),
        ("from unused.broken import name", FAILS.format("name()", "a library is missing")),
        ("from unused import other", FAILS.format("other()", "unused.other")),
    ],
)
def test_use(imports, use, tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'packages')!r})" + LAZY.format(imports, use)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def test_nemo():
    """NeMo needs none of them for its models, and they work afterwards."""
    code = """
import sys
from nemo_image import lazy_imports, setup
setup.prepare_nemo("cpu")
assert lazy_imports.waiting == {*lazy_imports.UNUSED}
import scipy.stats, pandas
from sklearn.metrics import f1_score
assert scipy.stats.norm.cdf(0) == 0.5 and pandas.DataFrame({"a": [1]}).a[0] == f1_score([1], [1]) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def test_torch():
    """A step of an optimizer and of distributed training needs none of them either."""
    code = """
import tempfile
import torch
from nemo_image import lazy_imports
lazy_imports.install()
with tempfile.TemporaryDirectory() as directory:
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.distributed.destroy_process_group()
assert {"torch._dynamo", "torch.fx.experimental.symbolic_shapes"} <= lazy_imports.waiting
assert torch._dynamo.list_backends()
import torch._dynamo.utils
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"  # the real one's
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
