"""Where things are: scripts, schema and default configuration in the clone; configuration, results and logs in the working
directory, whoever calls, from wherever, as a workflow or as a module of one."""

import copy
import importlib
import sys
import types
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.sourcecache import LocalSourceFile

IS_MODULE = not workflow.modifier.is_main_snakefile()
IS_HOSTED = not isinstance(workflow.current_basedir, LocalSourceFile)
WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))


class Refusal(WorkflowError):
    """One sentence for the user, without the lines of ours that Snakemake would list around it."""

    __traceback__ = property(lambda self: None, lambda self, value: None)  # whoever sets it


def refuse(problem):
    """Ends the call with one sentence for the user; of a module its caller has the last word on that."""
    if IS_MODULE:
        raise Refusal(str(problem))
    sys.exit(str(problem))


def of_clone(name):
    """A Python module below workflow/: this clone's, as another clone may be a module of the same workflow."""
    package = f"peft_{WORKFLOW.as_posix().encode().hex()}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(WORKFLOW)]
    return importlib.import_module(f"{package}.{name}")


if IS_HOSTED:
    refuse(
        f"{workflow.current_basedir}: a Snakefile from afar comes without the workflow's scripts."
        " Clone the repository, and name workflow/Snakefile in it by its path"
    )
if IS_MODULE:
    if not workflow.modifier.skip_configfile:
        refuse(f"module {__name__}: has no `config:`, without which it would read yours. Give it one: `config: config`")
    config = copy.deepcopy(config)  # to put in what is missing; the caller's stays as it is

CONFIGFILE = Path("config/config.yaml")
if not IS_MODULE and not CONFIGFILE.exists():
    CONFIGFILE = WORKFLOW.parent / CONFIGFILE
    if workflow.is_main_process:
        print(f"There is no config/config.yaml here: {CONFIGFILE} is taken.", file=sys.stderr)
if not IS_MODULE:  # before Snakemake reads it; a file of --configfile it has read already
    try:
        of_clone("planning.yaml_files").check(CONFIGFILE)
    except of_clone("planning").Problem as problem:
        refuse(problem)
