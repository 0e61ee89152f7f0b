"""train_lora.py, in which a Ctrl-C reaches what started it at the moment in MOMENT: "train 3", in the third step, or
"validate 2", in the validation after the second."""

import os
import runpy
import signal
import sys
import time

import psutil
from helpers import SCRIPTS
from nemo_image import resume

make_exact = resume.make_exact
KIND, STEP = os.environ["MOMENT"].split()


def interrupt():
    """Sends the signal, and waits until it has become a request: each run stops at the same step."""
    if os.environ["RANK"] == "0":
        above = psutil.Process().parents()
        launchers = [process for process in above if any("run_on_nodes.py" in word for word in process.cmdline())]
        os.killpg(
            (launchers or above[1:])[0].pid, signal.SIGINT
        )  # its or torchrun's parent's group, as a terminal does
        while not os.stat(os.environ["STOP_REQUEST"]).st_size:
            time.sleep(0.01)


def make_exact_and_interrupt(trainer, seed):
    from nemo.utils.exp_manager import Callback

    make_exact(trainer, seed)

    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, *_):
            if KIND == "train" and trainer.global_step == int(STEP) - 1:
                interrupt()

        def on_validation_batch_start(self, trainer, *_):
            if KIND == "validate" and trainer.global_step == int(STEP):
                interrupt()

    trainer.callbacks.append(Interrupt())


resume.make_exact = make_exact_and_interrupt
sys.argv[0] = str(SCRIPTS / "train_lora.py")
runpy.run_path(sys.argv[0], run_name="__main__")
