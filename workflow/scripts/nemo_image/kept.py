"""Trainings are kept, each in a directory that is named after its fingerprint: what decides the adapter's numbers.

The fingerprint is of NeMo's configuration and of the contents of base and data. No path is in it, no code and nothing
of Snakemake: a training that is started again after a moved project, an upgrade or a mistyped and corrected setting is
taken over. Nothing is removed here; tools/trainings.py lists and removes.
"""

import io
import json
import shlex
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import yaml
from common.base_files import convert_again
from common.files import read_json, replacing, sha256, size_of, write_json, write_jsonl
from common.later_keys import without_later_keys
from common.provenance import START, with_base_files
from nemo_image.resume import fingerprint, prepare
from nemo_image.setup import exit_all
from omegaconf import OmegaConf

LOSS = "mean over items"  # what is lowered; before it was called so, it was a mean over the tokens of micro batches
MANIFEST = "snapshot_manifest_sha256"
TOOL = Path(__file__).resolve().parents[2] / "tools/trainings.py"


def model_config(base, has_manifest):
    """A base's configuration. Exits where it is empty or cut off. has_manifest: had the snapshot one?"""
    file, config = base / "model_config.yaml", None
    content = file.read_bytes()
    with suppress(yaml.YAMLError, ValueError, OSError):  # OmegaConf's OSError: it holds a single word
        config = OmegaConf.to_container(OmegaConf.load(io.StringIO(content.decode())))
    of_convert_model = (base / "manifest.json").is_file()
    cut_off = of_convert_model and not content.endswith(b"\n")
    if cut_off or not isinstance(config, dict) or not config or (has_manifest and MANIFEST not in config):
        exit_all(convert_again(f"{file}: is damaged", base))
    return config


def base_by_content(base):
    """What tells one converted base from another: its configuration, and the snapshot's files by their sha256. And a
    problem, or None: why the latter are not known, though convert_model tells of them.

    Its own snapshot_manifest_sha256 would do, but a manifest names the snapshot's place.
    """
    provenance, snapshot = base.with_name(f"{base.name}.provenance.json"), None
    problem = "is missing" if (base / "manifest.json").is_file() else None  # older versions wrote neither
    with suppress(FileNotFoundError):
        try:
            snapshot = json.loads(provenance.read_text())["snapshot"]
            problem = None
        except (ValueError, TypeError, LookupError):
            problem = "is damaged"
    config = model_config(base, bool(snapshot))
    if problem:
        why = "by which the trainings of this model are found"
        problem = convert_again(f"{provenance}: {problem}, {why}", base)
    if not snapshot:
        return sha256(base / "model_config.yaml"), problem
    del config[MANIFEST]
    return fingerprint([config, snapshot], []), None


class Training:
    """One training in work_dir/{fingerprint}. config_for(**paths) is NeMo's configuration; paths: those of base, train,
    val and work_dir; inputs: {name: file}, with start_from where it begins with an adapter."""

    def __init__(self, work_dir, output, config_for, paths, inputs):
        self.work_dir, self.output, self.inputs = work_dir, output, inputs
        config = without_later_keys(OmegaConf.to_container(config_for(**{name: name for name in paths})))
        del config["settings"]  # they are in it where they belong
        config["trainer"]["devices"] *= config["trainer"]["num_nodes"]  # how they lie on nodes changes no number
        config["trainer"]["num_nodes"] = 1
        base, self.problem = base_by_content(inputs["base"].parent)
        files = [file for name, file in inputs.items() if name != "base"]
        self.fingerprint = fingerprint([config, base], files)
        self.take_loss_of_now()
        self.max_steps = config["trainer"]["max_steps"]
        self.directory = work_dir / self.fingerprint[:12]
        self.attempts = self.directory / "state/attempts.jsonl"
        self.adapter = self.directory / "adapter.nemo"
        self.provenance = self.directory / "adapter.provenance.json"
        # of before trainings were kept: with paths and settings, of which one came later that changes rounding only
        config = without_later_keys(OmegaConf.to_container(config_for(**paths)))
        del config["settings"]["micro_batch_tokens"]
        self.former = fingerprint(config, inputs.values())

    def take_loss_of_now(self):
        self.loss, self.mark = LOSS, f"{self.fingerprint} {LOSS}"  # what is begun goes on only with the same loss

    def find(self, anew):
        """Brings the training to its directory, if it lies where it once did; or away, if it is to be made anew."""
        if self.problem and not self.directory.exists():
            sys.exit(self.problem)
        if (mark := self.work_dir / "state/fingerprint").exists():  # it was one training's, before trainings were kept
            place = self.work_dir / mark.read_text()[:12]
            place.mkdir(exist_ok=True)
            # entry by entry: work_dir may be a link, and bound into a container; the mark last, should this be cut off
            for entry in sorted(self.work_dir.iterdir(), key=lambda entry: entry == mark.parent):
                if entry != place:
                    entry.rename(place / entry.name)
        if (former := self.work_dir / self.former[:12]).exists() and not self.directory.exists():
            (former / "state/fingerprint").write_text(self.fingerprint)
            former.rename(self.directory)
        mark, saved = self.directory / "state/fingerprint", self.directory.glob("checkpoints/**/*.ckpt")
        if self.directory.exists() and not (mark.exists() and self.fingerprint.encode() in mark.read_bytes()):
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(self.mark)  # it was lost or damaged: the directory's name says the same
        with_loss_of_before = mark.exists() and mark.read_text() == self.fingerprint
        if with_loss_of_before and any(f"-step={self.max_steps}-" in file.name for file in saved):  # none is left to do
            self.loss, self.mark = None, self.fingerprint
        begun_by = self.directory / "state/anew"
        if anew and not (begun_by.exists() and begun_by.read_text() == anew):
            self.take_loss_of_now()
            new = self.work_dir / ".new"  # first, as the disk may be full
            (new / "state").mkdir(parents=True, exist_ok=True)
            (new / "state/anew").write_text(anew)
            (new / "state/fingerprint").write_text(self.mark)
            if self.directory.exists():
                self.directory.rename(self.work_dir / f"{self.directory.name}-before-{anew}")
            new.rename(self.directory)

    def prepare(self, ranks):
        """Leaves in its directory what it may continue from, and notes this attempt; returns the step, 0 for none."""
        step = prepare(self.directory, ranks, self.mark, self.max_steps)
        if self.loss is None and step < self.max_steps:  # of its checkpoints the best is lost
            self.take_loss_of_now()
            step = prepare(self.directory, ranks, self.mark, self.max_steps)
        attempts = []
        if self.attempts.exists():
            for line in self.attempts.read_text(errors="replace").splitlines():
                with suppress(ValueError):  # half a line, where a process was killed
                    attempts.append(json.loads(line))
        attempt = {"started": START.isoformat(timespec="seconds"), "host": socket.gethostname(), "after_step": step}
        write_jsonl(self.attempts, [*attempts, attempt])
        return step

    def is_finished(self):
        """Is the adapter there, with what was recorded of it?"""
        if not self.adapter.exists() or not self.provenance.exists():
            return False
        return read_json(self.provenance, "sha256")["sha256"]["result"] == sha256(self.adapter)

    def made(self):
        """When and where it was made, in words: an image is not in the fingerprint."""
        provenance = read_json(self.provenance)
        return f"made on {provenance['started'][:10]}, image {provenance['image'] or 'none'}"

    def take_over(self):
        """Puts the adapter where it is wanted, and returns its provenance, in which the inputs are as they lie now."""
        with replacing(self.output) as partial:
            shutil.copyfile(self.adapter, partial)
        provenance = read_json(self.provenance)
        provenance["sha256"] |= {name: sha256(file) for name, file in with_base_files(self.inputs).items()}
        write_json(self.output.with_suffix(".provenance.json"), provenance, indent=1)
        return provenance

    def disk(self):
        """What the trainings that are kept here take, in words."""
        places = [place for place in self.work_dir.iterdir() if place.is_dir()]
        size = sum(map(size_of, places))
        kept = f"{len(places)} training{'s are' if len(places) > 1 else ' is'} kept here, {size / 1e9:.2f} GB"
        return f"{kept}; to list and remove: {shlex.join(['python', str(TOOL), str(self.work_dir)])}"
