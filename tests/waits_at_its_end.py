"""train_lora.py, in which Lightning's end and Python's own wait, as for a GPU where NCCL waits for the other ranks."""

import atexit
import runpy
import sys
import threading
import time

from helpers import SCRIPTS
from lightning.pytorch.trainer import Trainer

Trainer._teardown = lambda trainer: time.sleep(600)
atexit.register(time.sleep, 600)
threading.Thread(target=time.sleep, args=[600]).start()
sys.argv[0] = str(SCRIPTS / "train_lora.py")
runpy.run_path(sys.argv[0], run_name="__main__")
