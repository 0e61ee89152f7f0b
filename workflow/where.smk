"""Where things are: scripts, schema and default configuration in the clone; configuration, results and logs in the working
directory, whoever calls, from wherever, as a workflow or as a module of one."""

import importlib
import sys
import types
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.sourcecache import LocalSourceFile

IS_MODULE = not workflow.modifier.is_main_snakefile()
IS_HOSTED = not isinstance(workflow.current_basedir, LocalSourceFile)
WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))


def refuse(problem):
    """Ends the call with one sentence for the user."""
    if IS_MODULE:
        raise WorkflowError(problem)
    sys.exit(str(problem))  # a WorkflowError would name a line of ours before it


def of_clone(name):
    """A Python module below workflow/: this clone's, as another clone may be a module of the same workflow."""
    package = f"peft_{WORKFLOW.as_posix().encode().hex()}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(WORKFLOW)]
    return importlib.import_module(f"{package}.{name}")


if IS_HOSTED:
    refuse(
        f"{WORKFLOW}: only this file came along, not the workflow's scripts. Clone the repository and give `snakefile:` the path of its workflow/Snakefile"
    )
if IS_MODULE and not workflow.modifier.skip_configfile:
    refuse(f"module {__name__}: has no `config:`, without which it would read yours. Give it one, as `config: config`")

CONFIGFILE = Path("config/config.yaml")
if not IS_MODULE and not CONFIGFILE.exists():
    CONFIGFILE = WORKFLOW.parent / CONFIGFILE
    if workflow.is_main_process:
        print(f"There is no config/config.yaml here: {CONFIGFILE} is taken.", file=sys.stderr)
