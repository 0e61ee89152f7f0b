"""A LoRA adapter for Mistral-7B on PubMedQA with NeMo: from a Hugging Face snapshot to an accuracy.

snapshot ─ download_model ─► convert_model ──────────┐
PubMedQA ─ download_pubmedqa ─► split_folds ─► write_jsonl ─► train_lora ─► predict ─► evaluate ─► compare_runs ─► write_report
"""

import json
import os
import subprocess

from snakemake.utils import min_version, validate

min_version("9.12")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/check_config.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/machine.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/verify.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/choose.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "<results>/accuracy.tsv",
        "<results>/report.html",
