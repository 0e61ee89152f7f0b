"""What a person sees of a running step: a bar on a terminal, short lines with the expected end in a log."""

import datetime
import os
import sys
import time

from tqdm import tqdm

SECONDS = 5  # between two lines of a log


def say(step, text):
    print(f"{datetime.datetime.now():%H:%M:%S} {step}: {text}", flush=True)


class Progress:
    """Shows how much of `total` is done, in a unit such as "steps" or in "B", bytes."""

    def __init__(self, step, total, unit, done=0):
        self.step, self.total, self.unit, self.first = step, total, unit, done
        self.started, self.said = time.monotonic(), 0
        options = {"desc": step, "total": total, "initial": done, "unit": unit if unit == "B" else f" {unit}"}
        self.bar = tqdm(unit_scale=unit == "B", **options) if sys.stderr.isatty() else None

    def to(self, done, **values):
        """`done` are done; values, such as loss=1.2, are shown with it."""
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(done - self.bar.n)
        elif done == self.total or time.monotonic() - self.said >= SECONDS:
            self.said = time.monotonic()
            say(self.step, ", ".join([self.amount(done), *(f"{key} {value:.4g}" for key, value in values.items())]))

    def amount(self, done):
        of = f"{done} of {self.total} {self.unit}"
        if self.unit == "B":
            of = f"{done / 1e9:.2f} of {self.total / 1e9:.2f} GB"
        if not self.first < done < self.total:
            return of
        seconds = (self.said - self.started) / (done - self.first) * (self.total - done)
        return f"{of}, ends about {datetime.datetime.now() + datetime.timedelta(seconds=seconds):%d %b %H:%M}"

    def close(self):
        if self.bar is not None:
            self.bar.close()


def show_progress(trainer):
    """Says each step's loss and each validation's. Returns what gathers them, as `curve` and `seconds`, on rank 0; None
    on others."""
    from nemo.utils.exp_manager import Callback  # Lightning's, which lies elsewhere in older generations

    class ShowProgress(Callback):
        def __init__(self):
            self.curve = {}  # {step: its loss and learning rate, after some those of validation}
            self.seconds = []  # of this attempt's steps

        def state_dict(self):  # lies in the checkpoints: what is continued knows the steps before, each once
            return {"curve": self.curve}

        def load_state_dict(self, state):
            self.curve = state["curve"]

        def on_train_start(self, trainer, model):
            self.bar = Progress("train_lora", trainer.max_steps, "steps", trainer.global_step)

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.start = time.monotonic()

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            metrics = trainer.callback_metrics
            loss, lr = float(metrics["reduced_train_loss"]), float(metrics["lr"])  # waits for the GPU
            self.seconds.append(time.monotonic() - self.start)
            self.curve[trainer.global_step] = {"loss": loss, "learning_rate": lr}
            self.bar.to(trainer.global_step, loss=loss)

        def on_validation_end(self, trainer, model):
            found = {key: float(trainer.callback_metrics[key]) for key in ("validation_loss", "validation_accuracy")}
            if not trainer.sanity_checking:  # that one is of a few batches only
                self.curve.setdefault(trainer.global_step, {}).update(found)
            loss, accuracy = found.values()
            say("train_lora", f"validation loss {loss:.5f} after {trainer.global_step} steps, accuracy {accuracy:.1%}")

        def on_train_end(self, trainer, model):
            self.bar.close()

    if os.environ["RANK"] == "0":
        trainer.callbacks.append(shown := ShowProgress())
        return shown
