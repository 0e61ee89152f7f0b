"""How the tests run the workflow and its scripts."""

import contextlib
import io
import json
import math
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import termios
from pathlib import Path

from model_formats.config_json import expected_shapes

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "workflow/scripts"
MODEL = {"architectures": ["MistralForCausalLM"], "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
MODEL |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 400, "max_position_embeddings": 1024}
MODEL |= {"rms_norm_eps": 1e-5}
BPE = {"type": "BPE", "vocab": {}, "merges": []}


def weights(shapes):
    """A safetensors file of tensors, {name: shape}, all zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def write_snapshot(directory, model=MODEL):
    """What can be planned with: its tokenizer knows no word."""
    directory.mkdir(exist_ok=True)
    tokenizer = {"version": "1.0", "added_tokens": [], "model": BPE}
    for name, content in ("config.json", model), ("tokenizer.json", tokenizer):
        (directory / name).write_text(json.dumps(content))
    (directory / "model.safetensors").write_bytes(weights(expected_shapes(model)))


def environment(**variables):
    """This process's environment for a child that imports the scripts."""
    return {**os.environ, "PYTHONPATH": f"{SCRIPTS}:{ROOT / 'tests'}", **variables}


def of_slurm(**variables):
    """The same in a job of SLURM's, in which tests/slurm/srun starts what several nodes do, on this machine."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_NTASKS": "1", "SLURMD_NODENAME": "node1"}
    return environment(PATH=f"{ROOT / 'tests/slurm'}:{os.environ['PATH']}", **job, **variables)


def run_script(name, *arguments, check=True, **variables):
    """Runs a script of the workflow; returns the finished process with its output as text."""
    command = [sys.executable, SCRIPTS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables))
    if check:
        assert done.returncode == 0, done.stderr
    return done


def on_terminal(*command):
    """Runs a command on a terminal of its own; returns its exit code and what it showed there."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 120))
    process = subprocess.Popen(list(map(str, command)), stdin=its, stdout=its, stderr=its, env=environment())
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # of the end, on Linux
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    return process.wait(), shown.decode()


def torchrun(script, *arguments, processes=1):
    """Runs a script under torchrun, as the rules do."""
    command = ["torchrun", "--standalone", "--nproc-per-node", str(processes), script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def adapter_weights(file, rank="."):
    """{name: tensor} of an adapter; rank: "mp_rank_00", … of one with tensor parallelism."""
    import torch

    with tarfile.open(file) as adapter:
        (name,) = (name for name in adapter.getnames() if name.endswith(f"{rank}/model_weights.ckpt"))
        return torch.load(io.BytesIO(adapter.extractfile(name).read()))


def copy_workflow(directory):
    """Copies the workflow to an empty directory to run in, so that a test leaves nothing in the project."""
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", directory / "Snakefile")


def snakemake(directory, *arguments, timeout=None, cores="all"):
    """Runs Snakemake there; returns the finished process with its output, both streams together, as text."""
    command = ["snakemake", *map(str, arguments), *(["--cores", cores] if cores else [])]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": timeout}
    return subprocess.run(command, cwd=directory, **options)


# Kills itself at the nth of the calls on which a step's safety rests.
KILLED = """
import os, pathlib, runpy, shutil, signal, sys
moment, calls = int(sys.argv[1]), 0
def dying(function):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call
os.fsync, shutil.rmtree, pathlib.Path.rename = dying(os.fsync), dying(shutil.rmtree), dying(pathlib.Path.rename)
sys.argv[:3] = sys.argv[2:3]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def change_weights(directory, change):
    """Applies change(name, tensor), which returns the new tensor or None for none, to each tensor of a directory's."""
    from safetensors.torch import load_file, save_file

    for file in directory.glob("*.safetensors"):
        changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        kept = {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}
        save_file(kept, file, metadata={"format": "pt"})
