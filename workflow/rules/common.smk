"""What the rules share: the wildcards' forms, and how a rule reads the configuration, in workflow/planning."""

# The steps that an edit of their code alone does not repeat: they take long, or their result is checked by its sha256.
# `snakemake -n` says so where it was edited since (hooks.smk). An edit of any other step's code repeats that step.
NOT_REPEATED = ("download_model", "convert_model", "train_lora")

parameters = of_clone("planning.parameters").Parameters(
    workflow, config, SCHEMA, WORKFLOW / "scripts", NOT_REPEATED, place("<resources>/images")
)
script, code, origin = parameters.script, parameters.code, parameters.origin
flags, state_of, having = parameters.flags, parameters.state_of, parameters.having
of_run, of_trained, of_candidates = parameters.of_run, parameters.of_trained, parameters.of_candidates
settings, own_settings = parameters.settings, parameters.own_settings
train_jsonl, train_yaml, start_adapter = parameters.train_jsonl, parameters.train_yaml, parameters.start_adapter
sources_of_run = parameters.sources_of_run
table = of_clone("planning.table").Table(config)
of_targets, of_table = table.of_targets, table.of_table
names_of_targets, sources = table.names_of_targets, table.sources
nodes = of_clone("planning.nodes").Nodes(workflow, config, WORKFLOW / "tools")
adapters = of_clone("planning.adapters").Adapters(config)
data_sets = of_clone("planning.datasets").DataSets(config)
task = data_sets.task
questions = of_clone("planning.questions").Questions(config)
prompts = of_clone("planning.prompts").Prompts(config)
anew = of_clone("planning.forced").anew(workflow, GPU_RULES["train_lora"])
flags_of_training = of_clone("planning.forced").flags_of_training


wildcard_constraints:
    model=r"[\w.-]+",
    dataset=r"[\w.-]+",
    run=r"[\w.-]+",
    label="final_decision|reasoning_required_pred|reasoning_free_pred|answer",
    fold=r"\d",
    seed=r"0|[1-9]\d*",
    split=r"test|fold\d/(train|train-maybe\d|val)",
