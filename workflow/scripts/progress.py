"""What a person sees of a running step: a bar on a terminal, short lines with the expected end in a log."""

import datetime
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
