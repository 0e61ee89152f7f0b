"""The checkpoints that a training has saved: from which of them it may go on. Standard library only."""

import math
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

from common.progress import say

KEPT = re.compile("[0-9a-f]{12}")  # the name of a training's directory, see kept.py
NAME = re.compile(r"step=(?P<step>\d+).*?consumed_samples=(?P<seen>\d+)")  # as train_lora.yaml has NeMo name them


def intact(checkpoint):
    """Is this checkpoint file of one rank there and whole?"""
    try:
        return zipfile.ZipFile(checkpoint).testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


class Outline(pickle.Unpickler):
    """Reads the plain values of a checkpoint; others are made hollow, so that no code is run and NeMo not imported."""

    class Hollow(dict):
        def __new__(cls, *_, **__):
            return super().__new__(cls)

        def __init__(self, *_, **__):
            pass

        __hash__ = object.__hash__
        __setstate__ = append = extend = add = lambda self, *_: None

    def find_class(self, module, name):
        return self.Hollow

    def persistent_load(self, key):  # a tensor's numbers
        return None


def outline(checkpoint):
    """What a whole checkpoint file says of itself: its step, the name of the best checkpoint until then and that of the
    training's directory, each "" where there is none. None where it says nothing."""
    with zipfile.ZipFile(checkpoint) as file:
        try:
            (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
            content = Outline(file.open(name)).load()
            (state,) = (state for state in content["callbacks"].values() if "best_model_path" in state)
            step, training = int(content["global_step"]), Path(state.get("dirpath", "")).parent.name
            return step, Path(state["best_model_path"]).name, training
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError):
            return None


def whole_checkpoints(directory, places):
    """[(step, is it a "-last" one?, name)] of those that are whole in all places; removes NeMo's other ones. A user's
    own file is left alone, and refused where NeMo would take it for a checkpoint to begin with."""
    whole = []
    for name in {file.name for place in places for file in place.glob("*.ckpt")}:
        if not (match := NAME.search(name)):
            if name.endswith(("last.ckpt", "end.ckpt")):
                file = next(place / name for place in places if (place / name).exists())
                sys.exit(f"{file}: NeMo would take it for this training's checkpoint. Move it away and run again.")
            continue
        unfinished = directory / f"{name.removesuffix('.ckpt')}-unfinished"
        if unfinished.exists() or not int(match["seen"]) or not all(intact(place / name) for place in places):
            for place in places:
                (place / name).unlink(missing_ok=True)
        else:
            whole.append((int(match["step"]), "-last" in name, name))
    return whole


def newest_of(whole, directory, places, max_steps):
    """Of whole checkpoints the newest that leads to the result of an undisturbed training, or None: the best checkpoint
    until then is needed, too. Those that are newer are removed. Exits where one is another training's."""
    for named, last, name in sorted(whole, reverse=True):
        step, best, training = outline(places[0] / name) or (named, "", "")
        ours = directory.parent.name
        if max(step, named) > max_steps or (training != ours and KEPT.fullmatch(training) and KEPT.fullmatch(ours)):
            sys.exit(f"{places[0] / name}: is another training's, of step {step}. Move it away and run again.")
        if best and best not in (known for *_, known in whole):
            match = NAME.search(best)
            if not match or int(match["step"]) != step:
                lost = f"{places[0] / best}, the best until then, is missing or damaged"
                say("train_lora", f"does not continue after step {step}, as {lost}")
                for place in places:
                    (place / name).unlink()
                continue
            for place in places:  # it is of the same step: the same weights
                shutil.copyfile(place / name, place / best)
        return named, last, name


def leave_newest(directory, ranks, max_steps=math.inf):
    """Leaves in a directory of checkpoints what training may continue from, as NeMo's exp_manager expects it: at most
    one "-last" checkpoint, the newest that is whole on all `ranks` of tensor parallelism and whose best one is, too.
    Returns its step, 0 for none.

    NeMo names them …-step=S-consumed_samples=C[-last][-vN].ckpt, in mp_rank_00, mp_rank_01, … where there are several
    ranks, and marks one that is being written by …-unfinished.
    """
    places = [directory] if ranks == 1 else [directory / f"mp_rank_{rank:02d}" for rank in range(ranks)]
    whole = whole_checkpoints(directory, places)
    for leftover in (*directory.glob("*-unfinished"), *directory.glob("*.nemo")):
        leftover.unlink()
    if not (newest := newest_of(whole, directory, places, max_steps)):
        return 0
    for found in whole:
        _, last, name = found
        as_last = re.sub(r"(-last)?(-v\d+)?\.ckpt$", "-last.ckpt", name)
        for place in places:
            if found == newest and name != as_last:
                (shutil.move if last else shutil.copyfile)(place / name, place / as_last)
            elif last and found < newest:
                (place / name).unlink()
    return newest[0]
