"""A training stops after a step: with a checkpoint in time before its limit, or as it is asked to; without one where
its loss is no number."""

import math
import os
import time
from pathlib import Path

from nemo_image.setup import exit_all

REQUEST = os.environ.get("STOP_REQUEST")  # a file of tools/stop_after_step.py: not empty once a stop is asked for


def refuse_divergence(trainer, kind, loss):
    """Exits where a loss is no number: no later step mends such weights, and no validation can choose among them."""
    if not math.isfinite(loss):
        steps = f"{trainer.global_step} of {trainer.max_steps} steps"
        exit_all(
            f"The {kind} loss is {loss:g} after {steps}: the training has diverged. Lower lr, or raise warmup_steps."
        )


def stop_after_step(trainer, end, val_check_interval):
    """Adds a callback that writes a checkpoint and exits before `end`, in seconds of time.time(), or when asked. It
    exits without one where the training has diverged.

    The signal of SLURM's time limit does not reach a program in a container. Not NeMo's exp_manager.max_time_per_run:
    it counts from the first step and would leave out the validation of the step at which it stops.
    """
    import torch
    from nemo.utils.exp_manager import Callback

    class Stop(Callback):
        unvalidated = False  # is the validation of the last step still to come? Whoever goes on begins with it

        def state_dict(self):
            return {"unvalidated": self.unvalidated}

        def load_state_dict(self, state):
            self.unvalidated = state["unvalidated"]

        def on_train_start(self, trainer, model):
            self.last, self.longest = time.time(), 0.0

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            # With fp16, a batch that overflows leaves the weights as they were. Rank 0 alone knows the mean of all.
            if trainer.is_global_zero and not str(trainer.precision).startswith("16"):
                refuse_divergence(trainer, "training", float(trainer.callback_metrics["reduced_train_loss"]))
            self.longest, self.last = max(self.longest, time.time() - self.last), time.time()
            self.unvalidated = trainer.global_step % val_check_interval == 0 or trainer.global_step >= trainer.max_steps
            # a step as long as the longest so far, a validation among them, and the checkpoint must still fit
            self.stop_if(near=not self.unvalidated and self.last + 2 * self.longest > end)

        def on_validation_batch_end(self, *_):
            if self.unvalidated and REQUEST:  # not the check before the first step
                self.stop_if(near=False)

        def on_validation_end(self, trainer, model):  # before the checkpoint's callback, which is the last
            refuse_divergence(trainer, "validation", float(trainer.callback_metrics["validation_loss"]))
            self.unvalidated = False

        def on_exception(self, trainer, model, error):
            trainer._teardown = lambda: None  # waits for the GPU: see common.ending.leave

        def stop_if(self, near):
            asked = bool(REQUEST) and trainer.is_global_zero and Path(REQUEST).stat().st_size > 0
            if why := trainer.strategy.broadcast("requested" if asked else "the time limit is near" if near else None):
                callback = trainer.checkpoint_callback
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
                trainer.strategy.barrier()
                done = f"{trainer.global_step} of {trainer.max_steps} steps"
                exit_all(f"Stopped after {done}, as {why}. Run again to continue.")

    trainer.callbacks.append(stop := Stop())
    run = trainer.fit_loop.run

    def run_after_validation():
        if REQUEST and trainer.local_rank == 0:
            Path(REQUEST).touch()  # from now on it is read; of several nodes each has one, and the first node's counts
        if stop.unvalidated:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # not from the batch that it had come to
            seen = float(trainer.lightning_module.init_consumed_samples)
            trainer.callback_metrics["consumed_samples"] = torch.tensor(seen)  # NeMo names the checkpoint by it
            trainer.validating = True
            validation.run()
            trainer.training = True
        run()

    trainer.fit_loop.run = run_after_validation
