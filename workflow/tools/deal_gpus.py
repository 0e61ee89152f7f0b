"""Gives a command GPUs of its own on this machine, waits for them where it must, and becomes that command:

    python deal_gpus.py --devices 2 torchrun --standalone --nproc-per-node 2 …

The command gets them in CUDA_VISIBLE_DEVICES, and holds their locks as long as it runs; its own children do not, as
Python's subprocess closes what they would inherit. Cards that other processes use are left alone, unless
CUDA_VISIBLE_DEVICES names them already: then those are dealt out, and no others. Where there is no nvidia-smi, the
command runs as it is, and says itself what it misses.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from common import gpus


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, required=True, help="how many GPUs the command gets")
    parser.add_argument("command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback, like SIGTERM
    if shutil.which("nvidia-smi"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.deal(args.devices, os.environ))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
    try:
        os.execvp(args.command, [args.command, *args.arguments])
    except OSError as error:
        sys.exit(f"deal_gpus: {args.command}: {error.strerror}")


if __name__ == "__main__":
    main()
