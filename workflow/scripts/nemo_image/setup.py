"""What the steps under torchrun do alike before NeMo is imported, and at their end. Needs only NeMo and its needs."""

import argparse
import ctypes
import gc
import importlib
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from common.base_files import refuse_damaged
from common.files import write_json
from common.progress import say
from common.provenance import versions
from nemo_image import checkpoint, lazy_imports

PATIENCE = 300  # seconds in which processes on several nodes must have found each other


def exit_all(problem):
    """Ends every rank, with one message: rank 0 says what all find, and torchrun ends the others while they wait. What
    rank 0 does not find is said by the first rank of another node, or by the one that does."""
    time.sleep(10 * (os.environ["RANK"] != "0") + 5 * (os.environ["LOCAL_RANK"] != "0"))
    sys.exit(problem)


def refuse_gpus(devices, precision, capabilities):
    """Exits where the GPUs here, of these compute capabilities [(major, minor), …], are too few or too old."""
    if len(capabilities) < devices:
        found = f"{len(capabilities)} GPU{'s' * (len(capabilities) != 1)}"
        seen = f"accelerator: gpu, devices: {devices}, but torch sees {found} here"
        exit_all(f"{seen}: ask for as many (SLURM's --gres, apptainer's --nv), or set fewer devices.")
    if precision == "bf16" and min(capabilities) < (8, 0):
        old = "precision: bf16, but a GPU here has no bf16 (compute capability {}.{}; 8.0 has)".format(
            *min(capabilities)
        )
        exit_all(f"{old}: set precision: 16 and megatron_amp_O2: false, or ask for another GPU.")


def describe_machine(step, accelerator, settings):
    """Says where a step runs, on one rank; exits where the GPUs are not those that the run's settings ask for."""
    devices, tensor_parallel = settings["devices"], settings["tensor_model_parallel_size"]
    hardware, capabilities = f"{devices} process{'es' * (devices != 1)} on the CPU", []
    if accelerator == "gpu":
        import torch

        gpus = range(torch.cuda.device_count())
        try:
            capabilities = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
        except RuntimeError as error:  # "The NVIDIA driver on your system is too old (found version 12020). Please …"
            why = str(error).split(". ")[0].splitlines()[0]
            exit_all(f"CUDA does not start on {platform.node()}: {why}. Take an older image or another node.")
        hardware = ", ".join(torch.cuda.get_device_name(gpu) for gpu in gpus) or "no GPU"
    if os.environ["LOCAL_RANK"] == "0":
        job = f" in SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        say(step, f"on {platform.node()}{job}, image {os.environ.get('APPTAINER_CONTAINER', 'none')}")
    if os.environ["RANK"] == "0":
        hardware += f", on each of {settings['nodes']} nodes" if "nodes" in settings else ""
        say(step, f"{hardware}; tensor parallelism {tensor_parallel}, precision {settings['precision']}")
        say(step, ", ".join(f"{package} {version}" for package, version in versions().items()))
    if accelerator == "gpu":
        refuse_gpus(devices, settings["precision"], capabilities)


def end_with_torchrun():
    """torchrun puts each rank into a session of its own: without this, they would outlive a killed torchrun."""
    if sys.platform == "linux" and "RANK" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if b"torch" not in Path("/proc", str(os.getppid()), "cmdline").read_bytes():  # it ended before that
            sys.exit("torchrun has ended.")


def arguments(description):
    """The parser of a step that runs under torchrun, with the arguments that all of them have. A step's first call."""
    end_with_torchrun()
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--accelerator", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--base", required=True, type=Path, help="unpacked .nemo directory, of convert_model.py")
    return parser


def meet(accelerator):
    """On several nodes: exits where the processes don't find each other. NCCL and gloo would wait for half an hour."""
    import torch

    rank, nodes = int(os.environ["RANK"]), os.environ["GROUP_WORLD_SIZE"]
    told = f"The processes on {nodes} nodes do not meet: name the network between them, by NCCL_SOCKET_IFNAME and"
    told += " GLOO_SOCKET_IFNAME in the profile's apptainer-args."

    def give_up():  # a thread: the process itself waits in a library
        if rank == 0:
            print(f"{told} {PATIENCE} seconds have passed.", file=sys.stderr, flush=True)
            os._exit(1)

    timer = threading.Timer(PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    if accelerator == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    # under a name of its own, as what is written into it stays there
    store, backend = torch.distributed.PrefixStore("meet", store), "nccl" if accelerator == "gpu" else "gloo"
    try:
        world = {"rank": rank, "world_size": int(os.environ["WORLD_SIZE"])}
        torch.distributed.init_process_group(backend, store=store, **world)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except RuntimeError as error:
        exit_all(f"{told} {str(error).splitlines()[0]}")
    timer.cancel()


def parts_to_supply(transformer_engine):
    """Of TransformerEngine and apex, those in whose place torch_parts.py stands on a GPU: both, unless they are asked
    for. What is not installed, in any case."""
    # torch_parts.py knows megatron-core since 0.9, which has this directory
    known = Path(find_spec("megatron.core").submodule_search_locations[0], "extensions").exists()
    packages = "transformer_engine", "apex"
    return {name for name in packages if (known and not transformer_engine) or find_spec(name) is None}


def prepare_nemo(accelerator, base=None, transformer_engine=False):
    """Imports NeMo; with TransformerEngine and apex only where they are asked for, or where an old NeMo needs them.
    Before any other import of nemo or megatron."""
    if base and os.environ["RANK"] == "0":
        refuse_damaged(base)
    if base and os.environ["LOCAL_RANK"] == "0":
        checkpoint.read_ahead(base)
    logging.raiseExceptions = False  # a full disk, of which the step tells, fails each line of NeMo's own log, too
    lazy_imports.install()
    gc.disable()  # nothing of the modules is garbage, and looking for it takes a quarter of their imports' time
    if accelerator == "cpu":
        from nemo_image import cpu

        cpu.install()
    elif missing := parts_to_supply(transformer_engine):
        from nemo_image import torch_parts

        torch_parts.install(missing)
    import torch

    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        meet(accelerator)
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):  # it makes a plan for each length: slow where lengths vary
        torch.backends.cuda.enable_cudnn_sdp(False)
    importlib.import_module("nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model")
    checkpoint.read_quickly()
    gc.freeze()  # nor will it be later
    gc.enable()


def on_first_rank(work, ready):
    """Does work() on rank 0 and returns there and on the others what it returned, a JSON value. They wait for it, with
    this launch's id, in `ready`, as torch.distributed is not there yet; another node may see other files late."""
    launch = [os.environ["TORCHELASTIC_RUN_ID"], os.environ["TORCHELASTIC_RESTART_COUNT"]]
    if os.environ["RANK"] == "0":
        found = work()
        write_json(ready, [launch, found])
        return found
    while True:  # where rank 0 fails, torchrun ends the others
        with suppress(OSError, ValueError, TypeError):  # not there yet, or of an earlier launch
            told, found = json.loads(ready.read_text())
            if told == launch:
                return found
        time.sleep(0.1)


def describe_nodes():
    """What to record of several nodes: each one's name, and the GPUs of all. Nothing of one. On all ranks together."""
    import torch

    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = [None] * int(os.environ["WORLD_SIZE"])
    torch.distributed.all_gather_object(found, (platform.node(), gpu))
    hosts = list(dict.fromkeys(host for host, _ in found))
    return {"hosts": hosts, "gpus": [gpu for _, gpu in found if gpu]}


def wait_for_all(end=False):
    """A barrier; a rank that ended before it has said why. end: ends torch.distributed on all ranks together."""
    from torch import distributed

    try:
        distributed.barrier()
    except RuntimeError:  # no traceback beside the other's words
        exit_all("Another process of this job has ended; what it said stands above.")
    if end:  # a process that ends with gloo's threads in it may abort
        distributed.destroy_process_group()
