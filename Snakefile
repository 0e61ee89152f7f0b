"""What `snakemake` finds here. The workflow itself is workflow/Snakefile."""

workflow.include("workflow/Snakefile", overwrite_default_target=True)  # `include:` takes no default target from it
