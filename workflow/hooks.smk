"""Around the jobs: GPUs and binds at once; checks and signals before the first job; at the end results, or explanations.
Of a module the last ones do not run by themselves: `onstart: peft.onstart()` runs the first of them, and so on."""

import atexit

binds, start, stop = map(of_clone, ("planning.container", "planning.start", "planning.stop"))
terminal = of_clone("planning.terminal")
gpus_here = 0

if config["accelerator"] == "gpu" and workflow.is_main_process:  # no more jobs at once than there are GPUs for
    gpus_here = of_clone("scripts.common.gpus").count_gpus(os.environ)
    workflow.global_resources.setdefault("gpus", gpus_here)
    gpus_here = min(gpus_here, workflow.global_resources["gpus"].value)  # the user's --resources gpus=2
if config["image"]:
    try:
        binds.bind(workflow.deployment_settings, config, WORKFLOW.parent, place)
    except Problem as problem:
        refuse(problem)
if workflow.is_main_process:
    for line in parameters.edited_code(place):
        print(line, file=sys.stderr)
    if config["image"] or not IS_MODULE:
        atexit.register(start.warn_at_end, workflow, checks, GPU_RULES)
else:
    stop.pass_sigterm_on()
if not IS_MODULE:
    for variable, cache in {"TRITON_CACHE_DIR": "triton", "MPLCONFIGDIR": "matplotlib"}.items():
        os.environ.setdefault(variable, os.path.abspath(f".snakemake/cache/{cache}"))  # where ~ is full, or not there
    slurm.plan_as_submitted(workflow)
    of_clone("planning.speed").collect_less_garbage()
    targets.explain(workflow, config, place("<results>"))


onstart:
    if not IS_MODULE:
        terminal.show_lines(workflow)
    slurm.keep_token_to_this_process()
    try:
        start.check_jobs(workflow, checks, GPU_RULES, place("<resources>/images"), gpus_here)
    except Problem as problem:
        refuse(problem)
    start.repeat_what_failed(workflow.persistence)
    stop.heed_signals()


onsuccess:
    if workflow.is_main_process:
        rules_of_results = [*map(MODIFIER.modify_rulename, ("compare_runs", "write_report", "write_model_card"))]
        # after Snakemake's last line
        atexit.register(terminal.show_results, workflow, config, rules_of_results, WORKFLOW / "tools/ask.py")


onerror:
    if workflow.is_main_process:  # and not in each job's log on a cluster again
        slurm.explain_failures(workflow, log)
        stop.tell_where(workflow)
