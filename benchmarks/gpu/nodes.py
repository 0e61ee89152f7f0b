"""LoRA training by one launcher on all GPUs of a machine, and by two with half of them each, as on two nodes. Prints a
table of docs/performance.md, after the workflow has made base and data:

python benchmarks/gpu/nodes.py --snapshot … --base results/base/mistral-7b
    --data results/data/pubmedqa/final_decision/fold0 --devices 4
"""

import socket
import subprocess
import tempfile
from pathlib import Path

import measure

NODES = 2
# no shared memory between the launchers' GPUs, as there is none between nodes
BY_TCP = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}


def train(args, name, nodes, **variables):
    """What measure.result() tells of a training on all devices; None where it failed."""
    devices = args.devices // nodes
    more = {"micro_batch_tokens": 4096, "max_steps": args.steps, "val_check_interval": args.steps}
    more |= {"nodes": nodes} if nodes > 1 else {}
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        places, commands = [Path(directory, name) for name in ("training", "adapter.nemo")], []
        for node in range(nodes):
            rendezvous = ["--nnodes", nodes, "--node-rank", node, "--master-port", port]
            commands.append(measure.training(args, *places, devices, 1, more, rendezvous))
        others = []
        args.logs.mkdir(parents=True, exist_ok=True)
        for node, command in enumerate(commands[1:], start=1):
            gpus = ",".join(str(node * devices + gpu) for gpu in range(devices))
            environment = measure.environment(args) | variables | {"CUDA_VISIBLE_DEVICES": gpus}
            with open(args.logs / f"{name}-node{node}.log", "w") as log:
                others.append(subprocess.Popen(map(str, command), env=environment, stdout=log, stderr=log))
        words = ["env", *(f"{key}={value}" for key, value in variables.items()), *commands[0]]
        *_, (_, last) = measure.follow(args, name, words, devices)
        for other in others:
            other.wait()
        return None if last is None else measure.result(places[1])


def main():
    parser = measure.arguments(__doc__)
    parser.add_argument("--devices", type=int, default=4, help="GPUs, or processes on a CPU, in all")
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()

    tokens = measure.tokens_of_step(measure.tokenize(args, args.data / "train.jsonl"))
    print(f"{measure.gpus()}; {tokens:,.0f} tokens a step, {args.steps} steps each\n", flush=True)
    measure.row("", "s/step", "tokens/s", "loss of first and last step")
    measure.row(*["---"] * 4)
    ways = {"one launcher": (1, {}), "two launchers": (NODES, {}), "two launchers, NCCL by TCP": (NODES, BY_TCP)}
    for words, (nodes, variables) in ways.items():
        found = train(args, words.replace(" ", "-"), nodes, **variables)
        if found:
            seconds, losses = found["seconds"], ", ".join(f"{loss:.4f}" for loss in found["losses"])
            measure.row(words, f"{seconds:.3f}", f"{tokens / seconds:,.0f}", losses)
    measure.end()


if __name__ == "__main__":
    main()
