"""The report of tests/chain.yaml in a real browser: a Chromium of this machine, driven by Playwright."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from common.files import read_json, read_jsonl, write_json, write_jsonl
from helpers import run_script, snakemake
from playwright.sync_api import sync_playwright
from sklearn.metrics import cohen_kappa_score

RUNS = ["base", "base-tp2", "base-dp2-tp2", "tutorial", "lora"]
SECTIONS = ["Runs", "Comparisons", "Confusion matrices", "Learning curves", "Calibration", "Examples of errors"]
SECTIONS += ["Prompt and settings", "Time and memory", "Provenance", "Limits", "Licences and citations"]
HOSTILE = '<script>console.error("ran")</script><img src="https://example.org/x.png"> {{ 7 * 7 }} & "'


@pytest.fixture(scope="module")
def browser():
    names = "chromium", "chromium-browser", "google-chrome"
    if not any(map(shutil.which, names)) and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run("apt-get update -qq && apt-get install -y -qq chromium", shell=True, check=True)
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, f"needs a browser: install one of {', '.join(names)}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """visit(file) opens a page as on a phone; at the end, it has said nothing on the console and fetched nothing."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, said, fetched = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))

    def visit(file):
        page.goto(file.as_uri(), wait_until="networkidle")
        return page

    yield visit
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [page.url]
    context.close()


def write_report(chain, output, runs=None, items=None, language="en", **entry):
    """Runs the script again, as the rule does; runs, items: other directories in place of the chain's; entry: more of
    the data set's."""
    metrics = [(runs or Path("results/runs")) / run / "fold0/seed0/metrics.json" for run in RUNS]
    files = "--table", chain / "results/accuracy.tsv", "--json", chain / "results/accuracy.json"
    items = "--test-items", (items or chain / "results/data") / "trials/items/test.json"
    sources = {"models": {"tiny": {"snapshot": "tiny"}}, "datasets": {"trials": {"sample": 24, "simulate": 0} | entry}}
    sources = "--sources", json.dumps(sources, sort_keys=True)
    options = "--metrics", *metrics, "--language", language, "--output", output
    with contextlib.chdir(chain):
        run_script("write_report.py", *files, *items, *sources, *options)
    return output


def cells(page, table):
    """The table's texts, by row, its head first."""
    return page.eval_on_selector(table, "table => [...table.rows].map(row => [...row.cells].map(c => c.textContent))")


def test_numbers_are_those_of_the_table(chain, visit):
    page = visit(chain / "results/report.html")
    with open(chain / "results/accuracy.tsv", newline="") as file:
        expected = list(csv.reader(file, delimiter="\t"))
    assert cells(page, "#accuracy-tsv table") == expected
    head, *rows = cells(page, "section table")
    columns = {"run": "run", "accuracy": "accuracy", "macro-F1": "macro_f1", "accuracy of text": "accuracy_text"}
    columns |= {"malformed": "malformed", "p vs. untuned": "p_base_holm", "p vs. majority": "p_majority_holm"}
    for row, line in zip(rows, expected[1:], strict=True):
        line = dict(zip(expected[0], line))
        assert {ours: row[head.index(ours)] for ours in columns} == {o: line[theirs] for o, theirs in columns.items()}
        intervals = [cell for name, cell in zip(head, row) if name == "95 % interval"]
        assert intervals == [f"{line[f'{key}_low']} to {line[f'{key}_high']}" for key in ("accuracy", "macro_f1")]
    findings = page.inner_text("#findings")
    assert "not significantly different from" in findings
    assert "The data set trials is simulated" in page.inner_text("header")
    for run in ("tutorial", "lora"):
        line = dict(zip(expected[0], next(row for row in expected if row[0] == run)))
        interval = f"95 % interval {line['accuracy_low']} to {line['accuracy_high']}"
        assert f"{run} has an accuracy of {line['accuracy']} % ({interval})" in findings
    assert "published" not in page.locator("body").text_content()


def test_everything_is_there_and_fits_a_phone(chain, visit):
    page = visit(chain / "results/report.html")
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    pictures = page.eval_on_selector_all("svg", "all => all.map(svg => svg.getAttribute('aria-label'))")
    assert len(pictures) == 1 + 2 * len(RUNS) + 2 + len(RUNS)  # forest, confusions, learning curves, calibration
    assert all(pictures) and page.locator("svg").first.text_content().count("base-dp2-tp2") == 1
    ids = page.eval_on_selector_all("[id]", "all => all.map(element => element.id)")
    assert len(ids) == len(set(ids))
    first = read_jsonl(chain / "results/runs/base/fold0/seed0/predictions.jsonl")[0]
    assert page.locator("#prompt").text_content() == first["input"]
    text = page.locator("body").text_content()
    adapter = read_json(chain / "results/runs/lora/fold0/seed0/provenance.json")["train_lora"]
    assert adapter["sha256"]["result"] in text and adapter["workflow"] in text and "nemo_toolkit2.2.1" in text


def test_the_head_answers_what_one_asks_first(chain, visit):
    page = visit(chain / "results/report.html")
    asked, told = (page.locator(f".summary > {tag}").all_inner_texts() for tag in ("dt", "dd"))
    believe, where, use, which = told[1:]
    assert "Can I believe it?" in asked and "No training here has seen them." in believe and "tutorial, lora" in believe
    adapters = [f"results/runs/{run}/fold0/seed0/adapter.nemo" for run in ("tutorial", "lora")]
    assert [line.split(": ")[1] for line in where.split("\n\n")] == adapters
    assert all((chain / adapter).exists() for adapter in adapters)
    assert (
        "results/runs/tutorial/fold0/seed0/peft" in use and f": {', '.join(RUNS)}. A call with other targets" in which
    )


def test_japanese(chain, tmp_path, visit):
    page = visit(write_report(chain, tmp_path / "report.html", language="ja"))
    assert page.evaluate("document.documentElement.lang") == "ja" and page.locator("h2").count() == len(SECTIONS)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    pictures = page.eval_on_selector_all("svg", "all => all.map(svg => svg.textContent + svg.ariaLabel)")
    assert all("正解" in words or "損失" in words or "確率" in words for words in pictures)


def test_curve_is_in_the_provenance(chain):
    train = read_json(chain / "results/runs/lora/fold0/seed0/provenance.json")["train_lora"]
    assert [step["step"] for step in train["curve"]] == [1, 2, 3, 4]
    validated = {step["step"]: step["validation_loss"] for step in train["curve"] if "validation_loss" in step}
    assert list(validated) == [2, 4] and train["validation_loss"] == min(validated[2], validated[4])
    accuracies = [step["validation_accuracy"] for step in train["curve"] if "validation_loss" in step]
    assert len(accuracies) == 2 and all(accuracy * 50 == pytest.approx(round(accuracy * 50)) for accuracy in accuracies)
    told = ", ".join(f"{accuracy:.1%} after step {step}" for accuracy, step in zip(accuracies, (2, 4)))
    assert f"; validation accuracy: {told}." in (chain / "results/report.html").read_text()
    rates = [step["learning_rate"] for step in train["curve"]]
    assert rates[1] == pytest.approx(1e-4) and rates[-1] < 1e-4 and all(step["loss"] > 0 for step in train["curve"])


def test_losses_of_an_older_version_are_named(chain, tmp_path, visit):
    """And have no accuracies. Of what was shortened, how many are told where the data set has `truncate`."""
    before = (chain / "results/report.html").read_text()
    assert (
        "This does not apply to" not in before and "shortened" not in before and "The validation accuracy is" in before
    )
    shutil.copytree(chain / "results/runs", tmp_path / "runs", ignore=shutil.ignore_patterns("training", "*.nemo"))
    provenance = tmp_path / "runs/lora/fold0/seed0/provenance.json"
    steps = read_json(provenance)
    assert steps["train_lora"].pop("loss") == "mean over items"
    steps["train_lora"]["shortened"] = {"train": 3, "val": 0}
    for step in steps["train_lora"]["curve"]:
        step.pop("validation_accuracy", None)
    write_json(provenance, steps)
    provenance = tmp_path / "runs/tutorial/fold0/seed0/provenance.json"  # finished before, and adopted by this version
    steps = read_json(provenance)
    steps["train_lora"]["loss"] = None
    steps["predict"]["shortened"] = {"test": 2}
    del steps["train_lora"]["curve"]
    write_json(provenance, steps)
    page = visit(write_report(chain, tmp_path / "report.html", tmp_path / "runs", truncate="CONTEXTS"))
    (_, *rows) = cells(page, "section[aria-labelledby=settings] [aria-label^=Items] table")
    assert rows[-2:] == [["tutorial", "0", "0", "2"], ["lora", "3", "0", "0"]]
    assert rows[:-2] == [[run, "–", "–", "0"] for run in RUNS[:-2]]
    assert "validation accuracy" not in page.content() and "lora, validation loss: " in page.content()
    told = page.locator("section[aria-labelledby=learning]").text_content()
    told = " ".join(told.split())
    assert (
        "each counted once." in told
        and "This does not apply to tutorial, fold 0, seed 0, lora, fold 0, seed 0, trained by an older version" in told
    )


def test_what_models_write_is_text(chain, tmp_path, visit):
    shutil.copytree(chain / "results/runs", tmp_path / "runs", ignore=shutil.ignore_patterns("training", "*.nemo"))
    predictions = tmp_path / "runs/lora/fold0/seed0/predictions.jsonl"
    write_jsonl(predictions, [row | {"pred": HOSTILE} for row in read_jsonl(predictions)])
    items = tmp_path / "data/trials/items/test.json"
    items.parent.mkdir(parents=True)
    test = read_json(chain / "results/data/trials/items/test.json")
    write_json(items, {pmid: item | {"QUESTION": HOSTILE} for pmid, item in test.items()})
    page = visit(write_report(chain, tmp_path / "report.html", tmp_path / "runs", tmp_path / "data"))
    assert page.locator("article").last.locator("code").text_content() == HOSTILE
    assert page.locator("article").last.locator("strong").first.text_content() == HOSTILE
    assert page.locator("script, img").count() == 0


def test_same_input_gives_the_same_bytes(chain, tmp_path):
    assert write_report(chain, tmp_path / "report.html").read_bytes() == (chain / "results/report.html").read_bytes()


def test_a_metric_is_one_entry(chain, tmp_path, visit):
    """As CONTRIBUTING.md says: all that comes of METRICS has it, and no model is asked again."""
    copy = shutil.copytree(chain, tmp_path / "chain", symlinks=True)
    metrics = copy / "workflow/scripts/evaluation/metrics.py"
    entry = '    "kappa": Metric(cohen_kappa_score, {"": "kappa", "_text": "kappa of text"}, percent=False),\n'
    head, table, rest = metrics.read_text().partition('    "macro_f1": ')
    imported = head.replace("import accuracy_score,", "import accuracy_score, cohen_kappa_score,")
    metrics.write_text(imported + entry + table + rest)
    done = snakemake(copy, "--configfile", "chain.yaml")
    assert done.returncode == 0 and "evaluate (run=lora" in done.stdout and "predict (" not in done.stdout, done.stdout
    answers = read_json(copy / "results/runs/lora/fold0/seed0/metrics.json")["answers"].values()
    kappa = cohen_kappa_score([answer["gold"] for answer in answers], [answer["score"] for answer in answers])
    head, *rows = cells(visit(copy / "results/report.html"), "section table")
    (shown,) = (row[head.index("kappa")] for row in rows if row[0] == "lora")
    assert shown == f"{kappa:.4g}" and "kappa of text" in head
    assert [line["kappa"] for line in read_json(copy / "results/accuracy.json")["runs"]][-1] == pytest.approx(kappa)
    shown = (copy / "logs/compare_runs.log").read_text()
    assert "kappa" in shown and done.stdout.count(shown.splitlines()[0]) == 1
    assert done.stdout.endswith("\nReport: results/report.html\n")
