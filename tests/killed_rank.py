"""train_lora.py, in which rank 1 is killed after the first step while rank 0 waits in a call of C, as it would in NCCL;
gloo notices that the other is gone. Where NeMo decides on a handler of signals, it is told that there are GPUs."""

import ctypes
import os
import runpy
import signal
import sys
import time
from unittest import mock

from helpers import SCRIPTS
from nemo_image import resume

make_exact = resume.make_exact


def wait_in_c():
    """For ever: it locks a mutex twice, which no signal interrupts that has a handler."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def make_exact_and_kill(trainer, seed):
    from nemo.utils import exp_manager

    make_exact(trainer, seed)
    configure = exp_manager.configure_checkpointing

    def configure_with_gpus(*args, **options):
        with mock.patch("torch.cuda.is_available", return_value=True):
            configure(*args, **options)

    exp_manager.configure_checkpointing = configure_with_gpus

    class Killed(exp_manager.Callback):
        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            if os.environ["RANK"] == "0":
                wait_in_c()
            print(f"killed at {time.time()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.callbacks.append(Killed())


resume.make_exact = make_exact_and_kill
sys.argv[0] = str(SCRIPTS / "train_lora.py")
runpy.run_path(sys.argv[0], run_name="__main__")
