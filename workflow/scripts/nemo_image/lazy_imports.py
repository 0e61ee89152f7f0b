"""Leaves out of NeMo's imports what no step uses: a package of UNUSED is imported when something of it is first used.

Importing one model of NeMo imports all of its collections and what those need, thousands of modules. After install()
`import pandas` gives an empty module and `from pandas import DataFrame` a name; what calls that, derives from it or
asks it for anything has pandas imported first.
"""

import importlib
import operator
import sys
import types
from importlib.machinery import PathFinder

# Those that take longest by `python -X importtime`, with all that is below them.
UNUSED = [
    "accelerate",
    "boto3",
    "datasets",
    "h5py",
    "joblib",
    "matplotlib",
    "multistorageclient",
    "nemo.collections.asr",
    "nemo.collections.multimodal",
    "nltk",
    "numba",
    "onnx",
    "pandas",
    "sacrebleu",
    "scipy",
    "sklearn",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "torchmetrics.functional.text.bert",
    "torchmetrics.functional.text.infolm",
    "torchmetrics.utilities.plot",
]
# What PyTorch's optimizers and torch.distributed ask of torch._dynamo, which takes a second to import, and its answers.
ASKED_OF_DYNAMO = {
    "disable": lambda function, *options, **more: function,
    "graph_break": lambda *options: None,
    "trace_rules.clear_lru_cache": lambda: None,
    "utils.get_optimize_ddp_mode": lambda: "no_optimization",
}
waiting = set()  # those that nothing has used yet


def is_in(module, package):
    return f"{module}.".startswith(f"{package}.")


def is_waiting(module):
    return any(is_in(module, package) for package in waiting)


class Module(types.ModuleType):
    """A module that waits to be imported."""

    def __getattr__(self, name):
        if is_waiting(self.__name__) and name not in ("__all__", "__version__"):
            if name.startswith("__"):  # Python and others ask every module for some
                raise AttributeError(f"{self.__name__} is not imported yet, see {__name__}")
            return Name(self.__name__, name)
        module = load(self.__name__)
        if name == "__all__":  # of from module import *
            return getattr(module, name, [name for name in vars(module) if not name.startswith("_")])
        return getattr(module, name)


class Name:
    """What such a module has under a name."""

    def __init__(self, module, name):
        self._place = module, name

    def _real(self):
        module, name = self._place
        try:
            return getattr(load(module), name)
        except AttributeError:
            return load(f"{module}.{name}")  # from package import module

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__qualname__"):
            raise AttributeError(name)  # by those that it has, typing tells annotations apart
        return getattr(self._real(), name)

    def __call__(self, *args, **options):
        return self._real()(*args, **options)

    def __eq__(self, other):
        # as typing does with each annotation; no class that is there is of a module that is not imported
        if is_waiting(self._place[0]) and (isinstance(other, type) or type(other).__module__ == "typing"):
            return False
        return self._real() == other

    __hash__ = object.__hash__

    def __mro_entries__(self, bases):
        return (self._real(),)

    def __instancecheck__(self, instance):
        # nothing that is there is of a class that is not imported
        return not is_waiting(self._place[0]) and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass):
        return issubclass(subclass, self._real())


def forward(operation):
    return lambda self, *args: operation(self._real(), *args)


for operation in (operator.getitem, operator.or_, iter, len, bool, str):
    setattr(Name, f"__{operation.__name__.strip('_')}__", forward(operation))


def load(module):
    """The real module. The packages that it is in are ordinary ones from now on."""
    for package in [package for package in waiting if is_in(module, package)]:
        waiting.remove(package)
        for name in [name for name, found in sys.modules.items() if type(found) is Module and is_in(name, package)]:
            del sys.modules[name]
    return importlib.import_module(module)


class Finder:
    """The finder and loader of waiting modules."""

    @staticmethod
    def find_spec(module, path=None, target=None):
        spec = is_waiting(module) and PathFinder.find_spec(module, path)
        if spec:
            spec.loader = Finder
        return spec or None

    @staticmethod
    def create_module(spec):
        return Module(spec.name)

    @staticmethod
    def exec_module(module):
        pass


def install():
    """Also turns torch.compile off, which would need torch._dynamo: what NeMo compiles are parts that no step uses."""
    import torch

    waiting.update(package for package in UNUSED if package not in sys.modules)
    sys.meta_path.insert(0, Finder)
    if "torch._dynamo" in waiting:
        torch.compile = lambda function=None, **options: function or (lambda function: function)
        for name, answer in ASKED_OF_DYNAMO.items():
            module, function = f"torch._dynamo.{name}".rsplit(".", 1)
            setattr(importlib.import_module(module), function, answer)
