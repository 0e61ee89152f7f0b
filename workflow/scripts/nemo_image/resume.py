"""Makes a NeMo training that was cut off continue to the bit as if it had not been.

NeMo 2.2.1 by itself resumes inexactly (its batch sampler counts what is left where Lightning counts everything, and no
random state is saved), stumbles over half-written checkpoints, and silently continues under changed settings.
"""

import hashlib
import json
import math
import shutil
import signal
from pathlib import Path

from common.files import sha256
from nemo_image.saved import leave_newest
from nemo_image.setup import exit_all


def fingerprint(settings, files):
    """One hash of what decides a training's result: settings (JSON values) and the contents of files."""
    parts = [json.dumps(settings, sort_keys=True), *map(sha256, files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prepare(work_dir, ranks, fingerprint, max_steps=math.inf):
    """Leaves in work_dir what training may continue from. Returns its step, 0 for none, as with another fingerprint."""
    mark = Path(work_dir) / "state/fingerprint"
    if mark.exists() and mark.read_text() == fingerprint:
        return leave_newest(Path(work_dir) / "checkpoints", ranks, max_steps)
    shutil.rmtree(work_dir, ignore_errors=True)
    mark.parent.mkdir(parents=True)
    mark.write_text(fingerprint)
    return 0


def refuse_unfinished(trainer):
    """NeMo may end a training early without an error, as by exp_manager.max_time_per_run. And a checkpoint that comes
    from elsewhere may be of the last step, and of no validation."""
    if trainer.global_step < trainer.max_steps:
        exit_all(f"NeMo stopped at step {trainer.global_step} of {trainer.max_steps}: run again to continue.")
    if trainer.checkpoint_callback.best_model_score is None:
        directory = trainer.checkpoint_callback.dirpath
        exit_all(f"{directory}: no checkpoint there is known as the best. Remove it and run Snakemake again.")


def moved(state, old, new):
    """A checkpoint callback's state with paths in the directory `new` for those in `old`: Lightning would forget the
    best checkpoint of a training whose directory was moved."""
    if isinstance(state, dict):
        return {moved(key, old, new): moved(value, old, new) for key, value in state.items()}
    if isinstance(state, str) and (state == old or state.startswith(f"{old}/")):
        return new + state.removeprefix(old)
    return state


def make_exact(trainer, seed):
    """Patches NeMo and adds a callback: a continued training does what an undisturbed one does, to its last step."""
    import random

    import numpy
    import torch
    from megatron.core import tensor_parallel
    from nemo.collections.nlp.data.language_modeling.megatron.megatron_batch_samplers import BaseMegatronBatchSampler
    from nemo.utils.exp_manager import Callback  # Lightning's, which lies elsewhere in older generations

    length_left = BaseMegatronBatchSampler.__len__

    def full_length(self):
        """All batches, not those that are left; training ends with its last step, which is then validated."""
        seen, self.consumed_samples = self.consumed_samples, 0
        length = length_left(self)
        self.consumed_samples = seen
        return min(length, trainer.max_steps) if self.drop_last else length

    BaseMegatronBatchSampler.__len__ = full_length

    class Exact(Callback):
        def on_load_checkpoint(self, trainer, model, checkpoint):
            for state in checkpoint["callbacks"].values():  # before each callback gets its own
                if "dirpath" in state:
                    state |= moved(state, str(state["dirpath"]), str(trainer.checkpoint_callback.dirpath))

        def on_train_start(self, trainer, model):
            # Where a rank dies, torchrun sends the others SIGTERM. Lightning's handler is Python's, which cannot run
            # while a rank waits in NCCL for the dead one: it would be there until torchrun's SIGKILL, 30 s later.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # a checkpoint that was written between two validations counts one batch too few
            progress = trainer.fit_loop.epoch_loop.batch_progress
            for counts in (progress.current, progress.total):
                counts.ready = counts.started = counts.processed = counts.completed = trainer.global_step

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            # NeMo leaves out the validation of a step that is the first after a restart: it takes it for done
            trainer.fit_loop.epoch_loop.restarting = False
            step_seed = (seed * 100003 + trainer.global_step) % 2**31
            random.seed(step_seed)
            numpy.random.seed(step_seed)
            torch.manual_seed(step_seed)
            tensor_parallel.model_parallel_cuda_manual_seed(step_seed)

        def on_train_end(self, trainer, model):
            refuse_unfinished(trainer)  # NeMo's own goes back to the best checkpoint, and the trainer's step with it

    trainer.callbacks.append(Exact())
