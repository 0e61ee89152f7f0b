"""Which keys of train_lora.yaml a run's `nemo:` may set. Most are free; some the run's own keys set, and some must stay
as they are, as the workflow rests on them."""

import re

import yaml

FORM = re.compile(r"\+?\w+(\.\w+)*=.*", re.DOTALL)
REFERENCE = re.compile(r"\$\{(\w[\w.]*)\}")  # of one key to another
ALPHA = "model.peft.lora_tuning.alpha"  # the rank, where a run has no adapter_alpha
OF_WORKFLOW = "accelerator", "base", "train", "val", "work_dir", "seed"  # settings that no key under train: has

# Keys, or what they begin with, and why they stay.
KEPT = (
    ("settings", "these are the run's own keys; set them there"),
    ("later_keys", "it is no key of NeMo"),
    ("fused_kernels.", "it is true or false"),
    ("transformer_engine.", "it is true or false"),
    ("exp_manager.explicit_log_dir", "the workflow finds its trainings there"),
    ("exp_manager.exp_dir", "the workflow finds its trainings there"),
    ("exp_manager.create_checkpoint_callback", "the adapter comes from its checkpoints"),
    ("exp_manager.checkpoint_callback_params", "the adapter comes from its checkpoints"),
    ("exp_manager.resume", "what was cut off goes on by it"),
    ("exp_manager.create_preemption_callback", "a killed rank would no longer end its job"),
    ("exp_manager.create_early_stopping_callback", "it would publish an unfinished adapter; lower max_steps"),
    ("trainer.enable_checkpointing", "exp_manager makes the checkpoints"),
    ("trainer.use_distributed_sampler", "the workflow shares out the items"),
    ("trainer.num_nodes", "write nodes: in the run"),
    ("trainer.max_epochs", "max_steps says how long to train"),
    ("trainer.limit_train_batches", "max_steps says how long to train"),
    ("trainer.limit_val_batches", "each validation item counts"),
    ("trainer.accumulate_grad_batches", "global_batch_size says how many items a step has"),
    ("model.pipeline_model_parallel_size", "the devices share one copy by tensor_model_parallel_size"),
    ("model.context_parallel_size", "the devices share one copy by tensor_model_parallel_size"),
    ("model.virtual_pipeline_model_parallel_size", "the devices share one copy by tensor_model_parallel_size"),
    ("model.resume_from_checkpoint", "the workflow finds the checkpoint to go on from"),
    ("model.answer_only_loss", "the loss is that of the answers"),
    ("model.peft.peft_scheme", "the workflow reads LoRA's adapters only"),
    ("model.peft.restore_from_path", "to begin with another run's adapter, set start_from: RUN under train"),
    ("model.peft.lora_tuning.variant", "the workflow reads adapters of NeMo's own variant only"),
    ("model.peft.lora_tuning.weight_tying", "the workflow reads adapters without it only"),
)
OF_GPUS = "transformer_engine", "model.fp8", "model.apply_rope_fusion", "model.ub_tp_comm_overlap"
# Prediction would go on without them. Where the run or its data set has a key that holds for both, it is named.
OF_PROMPT = re.compile(
    r"model\.data\.(chat\w*|(train|validation)_ds\."
    r"(add_bos|add_eos|add_sep|label_key|prompt_template|truncation_\w+|answer_only_loss))"
)
INSTEAD = (
    ("add_bos", "add_bos: true in the run"),
    ("chat", "chat_template: true in the run"),
    ("prompt_template", "prompt: in the data set, or chat_template: true in the run"),
    ("add_sep", "prompt: in the data set, or chat_template: true in the run"),
    ("label_key", "answer: in the data set"),
    ("truncation_", "truncate: in the data set"),
)


def setting_of(values, path):
    """The setting that a key's value is taken from, over other keys where it is; None of a value of its own."""
    while found := REFERENCE.search(str(leaf(values, path))):
        path = found[1].split(".")
        if path[0] == "settings":
            return path[1]
    return None


def leaf(tree, path):
    """The value at a path in train_lora.yaml; None where it has no such key."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def problem(override, values):
    """Why an override, as "model.optim.weight_decay=0.1", can't be made, or None. values: train_lora.yaml's."""
    if not FORM.fullmatch(override):
        return f"{override}: write key=value, as model.optim.weight_decay=0.1"
    key, text = override.removeprefix("+").split("=", 1)
    for kept, why in KEPT:
        if key.startswith(kept):
            return f"{key} stays as it is: {why}"
    if OF_PROMPT.fullmatch(key):
        name = key.split(".")[-1]
        instead = next((f"; write {words}" for start, words in INSTEAD if name.startswith(start)), "")
        return f"{key} stays as it is: prediction would go on without it{instead}"
    path = key.split(".")
    setting = setting_of(values, path)
    if setting in OF_WORKFLOW:
        return f"{key} stays as it is: the workflow sets it"
    if setting:
        return f"{key} is set by the run's {setting}: write {setting}: instead"
    parents = [leaf(values, path[:length]) for length in range(1, len(path))]
    if any(parent is not None and not isinstance(parent, dict) for parent in parents):
        return f"{key}: train_lora.yaml has a value, no section, above it"
    if not override.startswith("+") and not has(values, path):
        return f"train_lora.yaml has no {key}; to add it, write +{override}"
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{override}: the value is no YAML; quote it"
    return None


def problem_of_all(train, values):
    """The same of all overrides of a run's `train:`; a key may stand once, and alpha not beside adapter_alpha."""
    seen = {}
    for override in train["nemo"]:
        if found := problem(override, values):
            return found
        key = override.removeprefix("+").split("=", 1)[0]
        if key in seen:
            return f"{seen[key]} and {override} set the same key: remove one of them"
        if key == ALPHA and "adapter_alpha" in train:
            return f"{key} is set by the run's adapter_alpha: remove one of them"
        seen[key] = override
    return None


def needs_gpus(override):
    """Whether an override that can be made asks for what only GPUs have."""
    key, text = override.removeprefix("+").split("=", 1)
    return key in OF_GPUS and bool(yaml.safe_load(text))


def has(tree, path):
    return not path or (isinstance(tree, dict) and path[0] in tree and has(tree[path[0]], path[1:]))
