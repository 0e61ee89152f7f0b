"""The download of a model by the real huggingface_hub from a local server."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common.files import read_json, sha256
from helpers import SCRIPTS, copy_workflow, environment, run_script
from hub import COMMIT, TOKEN, serve_hub
from model_formats.snapshot import Snapshot

FILES = {"config.json": b"{}", "model.safetensors": b"\x00" * 5000, "tokenizer.model": b"spm"}
LARGE = FILES | {"model.safetensors": bytes(range(256)) * 100_000}  # huggingface_hub writes 10 MiB at a time
INDEX = "model.safetensors.index.json"
CONTINUED = "GET /cdn/model.safetensors bytes=10485760-"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """Nothing of this machine's user is used."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def command(out, revision=COMMIT, repo="org/model"):
    return "download_model.py", "--repo", repo, "--revision", revision, "--output-dir", out


def is_whole(out, files):
    manifest = read_json(out / "manifest.json")
    assert manifest["source"] == "org/model" and manifest["revision"] == COMMIT
    described = {name: {"size": len(files[name]), "sha256": sha256(out / name)} for name in files}
    return manifest["files"] == described and all((out / name).read_bytes() == files[name] for name in files)


def is_refused(done, out, words):
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    return not (out / "manifest.json").exists()


def test_second_run_downloads_nothing(tmp_path):
    others = {"pytorch_model.bin": b"\x01" * 5000, "consolidated.safetensors": b"\x01" * 5000, "README.md": b"#"}
    with serve_hub("org/model", COMMIT, FILES | others) as (endpoint, seen):
        done = run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
        assert is_whole(tmp_path / "out", FILES) and done.stderr == ""
        assert sorted(request for request in seen if request.startswith("GET") and "/api/" not in request) == [
            "GET /cdn/model.safetensors",
            f"GET /org/model/resolve/{COMMIT}/config.json",
            f"GET /org/model/resolve/{COMMIT}/tokenizer.model",
        ]
        (tmp_path / "out/manifest.json").unlink()  # as Snakemake does before a rule runs again
        seen.clear()
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
        assert is_whole(tmp_path / "out", FILES) and not seen


@pytest.mark.parametrize(
    ("served", "asked", "variables", "words"),
    [
        ({}, {"revision": "f" * 40}, {}, f"org/model has no revision {'f' * 40}: see the commits on its page"),
        ({}, {"repo": "org/other"}, {}, "org/other: no such model on the Hub, or a private one: check the name"),
        ({}, {"repo": "org/other"}, {"HF_TOKEN": "hf_me"}, "org/other: no such model on the Hub"),
        ({}, {"repo": "org/a/b"}, {}, "org/a/b: no model on the Hub has such a name"),
        ({"private": "hf_me"}, {}, {}, "or a private one: check the name, or set HF_TOKEN or log in"),
        ({"private": "hf_me"}, {}, {"HF_TOKEN": "hf_you"}, "or a private one: check the name, or set HF_TOKEN"),
        ({"gated": "hf_me"}, {}, {}, "/org/model, then set HF_TOKEN or log in with hf auth"),
        ({"gated": "hf_me"}, {}, {"HF_TOKEN": "hf_you"}, "org/model is gated: accept its terms on http://127.0.0.1"),
        ({}, {}, {"HF_TOKEN": "revoked"}, "the Hub refuses the token (401): set HF_TOKEN"),
        ({}, {}, {"HF_TOKEN": "“hf_me”"}, "holds a character that no token has: set HF_TOKEN without quotation marks"),
        ({"faults": [("HEAD", "config.json", 403)]}, {}, {}, "the Hub refuses the token (403)"),
        ({"faults": [("GET", COMMIT, 429)] * 6}, {}, {}, "did not deliver: too many 429 error responses. Run again"),
        ({"faults": [("GET", "model.safetensors", "cut")] * 5}, {}, {}, "model.safetensors broke off five times."),
        ({"size": 10**18}, {}, {}, "B are free. Make room, or"),
        ({}, {}, {"HF_HUB_OFFLINE": "1"}, "org/model is not whole on this machine: unset HF_HUB_OFFLINE"),
    ],
)
def test_says_what_to_do(tmp_path, served, asked, variables, words):
    with serve_hub("org/model", COMMIT, FILES, **served) as (endpoint, seen):
        done = run_script(*command(tmp_path / "out", **asked), check=False, HF_ENDPOINT=endpoint, **variables)
    assert is_refused(done, tmp_path / "out", words)
    assert "size" not in served or not any("/resolve/" in request for request in seen)


OLD = {"config.json": b"{}", "tokenizer.model": b"spm", "pytorch_model.bin": b"\x01" * 5000}


def test_weights_in_another_format_are_not_fetched(tmp_path):
    with serve_hub("org/model", COMMIT, OLD) as (endpoint, seen):
        done = run_script(*command(tmp_path / "out"), check=False, HF_ENDPOINT=endpoint)
    words = "org/model: has no weights as model*.safetensors, only pytorch_model.bin. Take a repository or revision"
    assert is_refused(done, tmp_path / "out", words) and not any("/resolve/" in request for request in seen)


def test_local_weights_in_another_format(tmp_path):
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    arguments = ("download_model.py", "--snapshot", tmp_path, "--output-dir", tmp_path / "out")
    words = f"{tmp_path}: has no weights as model*.safetensors, only pytorch_model.bin."
    assert is_refused(run_script(*arguments, check=False), tmp_path / "out", words)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "as model*.safetensors. Take" in run_script(*arguments, check=False).stderr


def test_only_files_of_the_index_are_linked(tmp_path, tiny_mistral):
    snapshot = shutil.copytree(tiny_mistral, tmp_path / "snapshot")
    names = {file.name for file in snapshot.iterdir()}
    shutil.copyfile(snapshot / "model-00002-of-00003.safetensors", snapshot / "model-00009-of-00009.safetensors")
    for _ in range(2):
        run_script("download_model.py", "--snapshot", snapshot, "--output-dir", tmp_path / "out")
        assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"manifest.json"}
    (snapshot / "model.safetensors.index.json").write_text("{}")
    done = run_script("download_model.py", "--snapshot", snapshot, "--output-dir", tmp_path / "out", check=False)
    assert is_refused(done, tmp_path / "new", f"{snapshot}/model.safetensors.index.json: no index of weights.")


def test_model_safetensors_alone_is_linked(tmp_path, tiny_mistral):
    """As transformers takes it, beside an index and its shards, too; conversion reads it, whatever they hold."""
    from transformers import AutoModelForCausalLM

    snapshot, out = shutil.copytree(tiny_mistral, tmp_path / "snapshot"), tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    model.lm_head.weight.data.neg_()
    model.save_pretrained(tmp_path / "single")
    shutil.copyfile(tmp_path / "single/model.safetensors", snapshot / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(snapshot)
    assert loaded.lm_head.weight.equal(model.lm_head.weight)
    shards = [file.name for file in snapshot.glob("model-*.safetensors")]
    for _ in range(2):  # the second time the shards are gone, but not their index
        run_script("download_model.py", "--snapshot", snapshot, "--output-dir", out)
        assert {*read_json(out / "manifest.json")["files"]} == {file.name for file in out.iterdir()} - {"manifest.json"}
        assert [file.name for file in out.glob("model*")] == ["model.safetensors"]
        assert Snapshot(out).problem() is None and Snapshot(snapshot).problem() is None
        assert Snapshot(snapshot).tensors["lm_head.weight"].file == snapshot / "model.safetensors"
        for name in shards:
            (snapshot / name).unlink(missing_ok=True)


def test_what_counts_beside_model_safetensors(tmp_path):
    """From the Hub, and from its cache, its index and shards are not brought, and those of before are removed."""
    others = {INDEX: b'{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors": b"\x01" * 5000}
    out = tmp_path / "out"
    with serve_hub("org/model", COMMIT, FILES | others) as (endpoint, seen):
        for _ in range(2):
            run_script(*command(out), HF_ENDPOINT=endpoint)
            assert is_whole(out, FILES) and not any("model-1." in request for request in seen)
            for name, content in others.items():  # as an earlier version brought them
                (out / name).write_bytes(content)
        run_script(*command(out), HF_ENDPOINT=endpoint)
        assert not {*others} & {file.name for file in out.iterdir()}
        fill = [sys.executable, "-c", "import huggingface_hub as hub; hub.snapshot_download('org/model')"]
        subprocess.run(fill, check=True, env=environment(HF_ENDPOINT=endpoint), stderr=subprocess.DEVNULL)
    run_script(*command(tmp_path / "cached"), HF_HUB_OFFLINE="1")
    assert is_whole(tmp_path / "cached", FILES)
    (shard,) = (tmp_path / "home/hub").rglob("model-1.safetensors")
    shard.unlink()  # nobody asks for it
    run_script(*command(tmp_path / "again"), HF_HUB_OFFLINE="1")
    assert is_whole(tmp_path / "again", FILES)
    (single,) = (tmp_path / "home/hub").rglob("model.safetensors")
    single.unlink()
    done = run_script(*command(tmp_path / "part"), check=False, HF_HUB_OFFLINE="1")
    assert is_refused(done, tmp_path / "part", "org/model is not whole on this machine: unset HF_HUB_OFFLINE")


def test_hub_that_is_not_there(tmp_path):
    done = run_script(*command(tmp_path / "out"), check=False, HF_ENDPOINT="http://127.0.0.1:9")
    assert is_refused(done, tmp_path / "out", "org/model: the Hub did not deliver: ConnectionError. Run again")


@pytest.mark.parametrize("place", ["HF_TOKEN", "HF_HOME"])
@pytest.mark.parametrize("access", ["private", "gated"])
def test_token(tmp_path, access, place):
    (tmp_path / "home").mkdir()
    if place == "HF_HOME":
        (tmp_path / "home/token").write_text("hf_me")
    variables = {"HF_TOKEN": "hf_me"} if place == "HF_TOKEN" else {}
    with serve_hub("org/model", COMMIT, FILES, **{access: "hf_me"}) as (endpoint, _):
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint, **variables)
    assert is_whole(tmp_path / "out", FILES)


@pytest.mark.parametrize(
    "faults",
    [
        [("GET", COMMIT, 500)] * 2,
        [("HEAD", "config.json", 500)] * 2,
        [("GET", "/cdn/model.safetensors", 500)] * 2,
        [("GET", COMMIT, 429), ("HEAD", "model.safetensors", 429), ("GET", "/cdn/model.safetensors", 429)],
        [("GET", "config.json", "slow"), ("GET", "model.safetensors", "slow")],
    ],
)
def test_busy_and_slow_servers_are_waited_for(tmp_path, faults):
    with serve_hub("org/model", COMMIT, FILES, faults=faults) as (endpoint, _):
        done = run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
    assert is_whole(tmp_path / "out", FILES) and done.stderr == "" and not faults


@pytest.mark.parametrize(("fault", "variables"), [("cut", {}), ("slow", {"HF_HUB_DOWNLOAD_TIMEOUT": "1"})])
def test_broken_body_is_continued(tmp_path, fault, variables):
    with serve_hub("org/model", COMMIT, LARGE, faults=[("GET", "model.safetensors", fault)]) as (endpoint, seen):
        done = run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint, **variables)
    assert is_whole(tmp_path / "out", LARGE) and done.stderr == ""
    assert [request for request in seen if "/cdn/" in request] == ["GET /cdn/model.safetensors", CONTINUED]


@pytest.mark.parametrize("name", ["HF_HUB_ENABLE_HF_TRANSFER", "HF_XET_HIGH_PERFORMANCE"])
def test_other_ways_to_download_are_not_used(tmp_path, name):
    """hf_transfer is asked for and not installed: huggingface_hub would end with a traceback."""
    with serve_hub("org/model", COMMIT, FILES) as (endpoint, _):
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint, **{name: "1"})
    assert is_whole(tmp_path / "out", FILES)


def test_interrupted_download_continues_at_its_commit(tmp_path):
    out = tmp_path / "out"
    script, *arguments = command(out, revision="main")
    with serve_hub("org/model", COMMIT, LARGE, faults=[("GET", "model.safetensors", "slow")]) as (endpoint, seen):
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / script, *arguments],
            env=environment(HF_ENDPOINT=endpoint),
            stderr=subprocess.PIPE,
        )
        while not any(half.stat().st_size == 10 << 20 for half in out.rglob("*.incomplete")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b"" and process.returncode == -signal.SIGINT
        assert not (out / "model.safetensors").exists() and not (out / "manifest.json").exists()
        seen.clear()
        run_script(*command(out, revision="main"), HF_ENDPOINT=endpoint)
    assert is_whole(out, LARGE) and CONTINUED in seen
    assert not any("/api/" in request for request in seen)  # main may be another commit by now


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("fault", "words"), [("wrong", "{} arrived with wrong bytes and was removed"), ("short", "size {} but has size")]
)
def test_wrong_bytes_are_fetched_again(tmp_path, name, fault, words):
    words = words.format(name if fault == "wrong" else len(FILES[name]))
    with serve_hub("org/model", COMMIT, FILES, faults=[("GET", name, fault)]) as (endpoint, _):
        done = run_script(*command(tmp_path / "out"), check=False, HF_ENDPOINT=endpoint)
        assert is_refused(done, tmp_path / "out", words) and not (tmp_path / "out" / name).exists()
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
        assert is_whole(tmp_path / "out", FILES)
        (tmp_path / "out" / name).write_bytes(FILES[name][:-1] + b"?")
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
    assert is_whole(tmp_path / "out", FILES)


def test_offline_from_what_is_there(tmp_path):
    """Also what any other Hub user's program has put into HF_HOME."""
    with serve_hub("org/model", COMMIT, FILES) as (endpoint, _):
        run_script(*command(tmp_path / "out"), HF_ENDPOINT=endpoint)
        fill = [sys.executable, "-c", "import huggingface_hub as hub; hub.snapshot_download('org/model')"]
        subprocess.run(fill, check=True, env=environment(HF_ENDPOINT=endpoint), stderr=subprocess.DEVNULL)
    (tmp_path / "out/manifest.json").unlink()
    run_script(*command(tmp_path / "out"), HF_HUB_OFFLINE="1")
    assert is_whole(tmp_path / "out", FILES)
    for revision in (COMMIT, "main"):
        run_script(*command(tmp_path / revision, revision=revision), HF_HUB_OFFLINE="1")
        assert is_whole(tmp_path / revision, FILES)
    (cached,) = (tmp_path / "home/hub").rglob("model.safetensors")
    cached.unlink()
    done = run_script(*command(tmp_path / "part"), check=False, HF_HUB_OFFLINE="1")
    assert is_refused(done, tmp_path / "part", "org/model is not whole on this machine: unset HF_HUB_OFFLINE")


def test_token_is_nowhere(tmp_path):
    """The model is gated: the download had the token. No file of the run and no command line has it."""
    run = tmp_path / "run"
    run.mkdir()
    copy_workflow(run)
    (run / "hub.yaml").write_text(f"models: {{mistral-7b: {{repo: org/model, revision: {COMMIT}}}}}\n")
    target = "resources/hf/mistral-7b/manifest.json"
    snakemake = ["snakemake", target, "--configfile", "hub.yaml", "--cores", "1", "--verbose"]
    faults = [("GET", "model.safetensors", "slow")]
    with serve_hub("org/model", COMMIT, FILES, gated=TOKEN, faults=faults) as (endpoint, _):
        env, command_lines = environment(HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN), set()
        with open(run / "said", "w") as said:
            process = subprocess.Popen(snakemake, cwd=run, env=env, stdout=said, stderr=said)
            while process.poll() is None:
                for file in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        command_lines.add(file.read_bytes())
                    except (FileNotFoundError, ProcessLookupError):
                        continue  # it has ended
                time.sleep(0.1)
    assert process.returncode == 0 and is_whole((run / target).parent, FILES), (run / "said").read_text()
    subprocess.run([*snakemake, "--report", "report.html"], cwd=run, env=env, check=True, capture_output=True)
    assert any(b"download_model.py" in line for line in command_lines)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"report.html", "mistral-7b.log"} <= {file.name for file in files}
    assert any(".snakemake/metadata" in str(file) for file in files)
    assert not [line for line in command_lines if TOKEN.encode() in line]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 100_000}


def of_adapter(out):
    return "download_model.py", "--adapter", "org/model", "--revision", COMMIT, "--output-dir", out


def test_adapter(tmp_path):
    """Its two files and nothing else; cut off and continued; then from what is there, and from the Hub's cache."""
    others = {"adapter_model.bin": b"\x01", "config.json": b"{}", "model.safetensors": b"\x01", "tokenizer.model": b"1"}
    faults = [("GET", "adapter_model.safetensors", "cut")]
    files = ADAPTER | others | {"checkpoint-9/adapter_config.json": b"{}"}
    with serve_hub("org/model", COMMIT, files, gated=TOKEN, faults=faults) as (endpoint, seen):
        run_script(*of_adapter(tmp_path / "out"), HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN)
        assert is_whole(tmp_path / "out", ADAPTER)
        assert [request for request in seen if "/cdn/" in request] == [
            "GET /cdn/adapter_model.safetensors",
            "GET /cdn/adapter_model.safetensors bytes=10485760-",
        ]
        assert {file.name for file in (tmp_path / "out").iterdir()} - {".cache"} == {
            *ADAPTER,
            "hub.json",
            "manifest.json",
        }
        fill = [sys.executable, "-c", "import huggingface_hub as hub; hub.snapshot_download('org/model')"]
        env = environment(HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN)
        subprocess.run(fill, check=True, env=env, stderr=subprocess.DEVNULL)
    (tmp_path / "out/manifest.json").unlink()
    for out in ("out", "cached"):
        run_script(*of_adapter(tmp_path / out), HF_HUB_OFFLINE="1")
        assert is_whole(tmp_path / out, ADAPTER)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["adapter_config.json", "adapter_model.bin"],
            "has no weights as adapter_model.safetensors, only adapter_model.bin, which may run any code. Take",
        ),
        (["adapter_config.json"], "org/model: has no weights as adapter_model.safetensors, none. Take"),
        (["adapter_model.safetensors", "config.json"], "org/model: holds no adapter_config.json, it is no adapter"),
    ],
)
def test_what_is_no_safe_adapter(tmp_path, files, words):
    """Nothing of it is fetched."""
    with serve_hub("org/model", COMMIT, dict.fromkeys(files, b"{}")) as (endpoint, seen):
        done = run_script(*of_adapter(tmp_path / "out"), check=False, HF_ENDPOINT=endpoint)
    assert is_refused(done, tmp_path / "out", words) and not [request for request in seen if "/resolve/" in request]
    assert not list((tmp_path / "out").iterdir())
