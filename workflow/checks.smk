"""Checks of the configuration, at once: a mistake ends the call before any job, in one sentence."""

import yaml
from snakemake.utils import validate

Problem = of_clone("planning").Problem
slurm, yaml_files = of_clone("planning.slurm"), of_clone("planning.yaml_files")
SCHEMA = yaml.safe_load((WORKFLOW / "schemas/config.schema.yaml").read_text())
PATHVARS, MODIFIER = workflow.pathvars, workflow.modifier  # this module's: later, they would be the caller's
FILES = [] if IS_MODULE else [CONFIGFILE]  # that the configuration is from, later ones over earlier ones
FILES += [Path(file) for file in workflow.configfiles if Path(file) not in FILES]
GPU_RULES = {
    name: MODIFIER.modify_rulename(name)
    for name in ("train_lora", "predict", "verify_model", "predict_for_export", "predict_questions")
}


def place(pattern):
    """A path with its path variables and the module's prefix put in."""
    return MODIFIER.modify_path(PATHVARS.apply(pattern))


try:
    if workflow.is_main_process and not IS_MODULE:
        of_clone("planning.places").check_here()
        of_clone("planning.targets").check_options(sys.argv)
        for file in yaml_files.profiles(sys.argv, os.environ):
            yaml_files.check(file)
    for file in FILES:
        if file != CONFIGFILE:  # that was checked before it was read
            yaml_files.check(file)
    given = {} if IS_MODULE else workflow.config_settings.config
    checks = of_clone("planning.config").Checks(config, FILES, __name__ if IS_MODULE else None, given)
    checks.check_schema(SCHEMA)
    of_clone("planning.places").tidy_up(PATHVARS)
    validate(config, str(WORKFLOW / "schemas/config.schema.yaml"))  # puts the schema's defaults into config
    targets = of_clone("planning.targets")
    asked = targets.asked_for(sys.argv[1:]) if workflow.is_main_process and not IS_MODULE else []
    of_asked = [targets.of_what(one, place("<results>"), place("<resources>")) for one in asked]
    nemo_keys = yaml.safe_load((WORKFLOW / "scripts/train_lora.yaml").read_text())
    checks.check_runs(nemo_keys, place("<resources>/hf"), filter(None, of_asked), place("<results>/runs"))
    for one in asked:
        targets.check(one, config["runs"], config["datasets"], place("<results>/runs"))
        of_clone("planning.questions").check_target(one, checks, place("<results>/answers"))
    # Not all, of a module; and not those that older profiles lack: onstart looks at what will run.
    used = [GPU_RULES[name] for name in ("train_lora", "predict", "verify_model") if MODIFIER.avail_rulename(name)]
    slurm.check_profile(workflow.resource_settings, used if config["accelerator"] == "gpu" else ())
    if workflow.is_main_process:  # a job reads them itself
        of_clone("planning.own_files").check_rows(checks)
except Problem as problem:
    refuse(problem)
except OSError as error:  # of a file that the configuration names
    refuse(f"{error.filename}: {error.strerror}")
