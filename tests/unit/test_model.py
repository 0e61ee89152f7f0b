"""Download and conversion."""

import pytest
from files import read_json, sha256
from helpers import run_script
from hub import serve_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_download_from_a_hub(tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"\x00" * 5000, "tokenizer.model": b"spm"}
    others = {"pytorch_model.bin": b"\x01" * 5000, "consolidated.safetensors": b"\x01" * 5000, "README.md": b"#"}
    with serve_hub("org/model", COMMIT, files | others) as (endpoint, seen):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        arguments = "--repo", "org/model", "--revision", COMMIT, "--output-dir", tmp_path / "out"
        run_script("download_model.py", *arguments, **hub)
        manifest = read_json(tmp_path / "out/manifest.json")
        assert manifest["source"] == "org/model" and manifest["revision"] == COMMIT
        assert {name: (tmp_path / "out" / name).read_bytes() for name in manifest["files"]} == files
        assert manifest["files"]["model.safetensors"]["sha256"] == sha256(tmp_path / "out/model.safetensors")
        assert not any("pytorch_model.bin" in request or "consolidated" in request for request in seen)
        seen.clear()
        run_script("download_model.py", *arguments, **hub)
        assert not any(request.startswith("GET /org/model/resolve") for request in seen)


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [("org/model", "f" * 40, "has no revision"), ("org/other", COMMIT, "no such model on the Hub")],
)
def test_download_says_what_is_not_there(tmp_path, repo, revision, words):
    with serve_hub("org/model", COMMIT, {"config.json": b"{}"}) as (endpoint, _):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        arguments = "--repo", repo, "--revision", revision, "--output-dir", tmp_path / "out"
        done = run_script("download_model.py", *arguments, check=False, **hub)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out/manifest.json").exists()


def test_gated_model_without_token(tmp_path):
    with serve_hub("org/model", COMMIT, {"config.json": b"{}"}, gated=True) as (endpoint, _):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        arguments = "--repo", "org/model", "--revision", COMMIT, "--output-dir", tmp_path / "out"
        done = run_script("download_model.py", *arguments, check=False, **hub)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert "org/model is gated: accept its terms on its page on the Hub, then set HF_TOKEN" in done.stderr
        assert not (tmp_path / "out/manifest.json").exists()
        assert run_script("download_model.py", *arguments, HF_TOKEN="hf_abc", **hub).returncode == 0


def test_download_that_the_disk_cannot_hold(tmp_path):
    with serve_hub("org/model", COMMIT, {"model.safetensors": b"1"}, size=10**18) as (endpoint, seen):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        arguments = "--repo", "org/model", "--revision", COMMIT, "--output-dir", tmp_path / "out"
        done = run_script("download_model.py", *arguments, check=False, **hub)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "out: needs 1000000000.0 GB of disk, " in done.stderr and "Make room" in done.stderr
    assert not any("/resolve/" in request for request in seen)


def test_snapshot_is_never_touched(tiny_mistral, tmp_path):
    """Another source under the same name replaces the links, not the files behind them."""
    before = {file.name: sha256(file) for file in tiny_mistral.iterdir()}
    output = tmp_path / "hf"
    run_script("download_model.py", "--snapshot", tiny_mistral, "--output-dir", output)
    files = {"config.json": b"{}", "model-00001-of-00003.safetensors": b"other", "tokenizer.model": b"spm"}
    with serve_hub("org/model", COMMIT, files) as (endpoint, _):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        run_script("download_model.py", "--repo", "org/model", "--revision", COMMIT, "--output-dir", output, **hub)
    assert set(read_json(output / "manifest.json")["files"]) == set(files)  # no shard of the other is left
    assert {file.name: sha256(file) for file in tiny_mistral.iterdir()} == before
    done = run_script("download_model.py", "--snapshot", output, "--output-dir", output, check=False)
    assert done.returncode == 1 and "move the snapshot to another directory" in done.stderr
    assert (output / "config.json").read_bytes() == b"{}"


def test_wrong_sha256_is_refused(tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"right"}
    with serve_hub("org/model", COMMIT, files) as (endpoint, _):
        arguments = "--repo", "org/model", "--revision", COMMIT, "--output-dir", tmp_path / "out"
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        run_script("download_model.py", *arguments, **hub)
        (tmp_path / "out/manifest.json").unlink()
        (tmp_path / "out/model.safetensors").write_bytes(b"wrong")
        done = run_script("download_model.py", *arguments, check=False, **hub)
        assert done.returncode == 1 and "model.safetensors arrived with a wrong sha256" in done.stderr
        assert not (tmp_path / "out/manifest.json").exists()
        run_script("download_model.py", *arguments, **hub)
        assert (tmp_path / "out/model.safetensors").read_bytes() == b"right"
