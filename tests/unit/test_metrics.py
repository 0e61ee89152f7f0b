"""Every figure against a library's or one by hand; on the real files, the published majority and human figures."""

import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from common.files import read_json, sha256, write_json
from common.pubmedqa import LABELS
from compare_runs import PUBLISHED, read_published
from evaluate import evaluate
from evaluation.answers import Task
from evaluation.metrics import calibration, figures, mean_macro_f1, score
from evaluation.significance import compare, mcnemar
from helpers import run_script
from scipy.stats import binom, binomtest, chi2, norm
from sklearn.metrics import f1_score
from split_folds import split
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from torchmetrics.functional.classification import multiclass_calibration_error

TASK = Task("final_decision", list(LABELS), "reasoning_required_pred")
REAL = json.dumps({"models": {}, "datasets": {"d": {"revision": 40 * "0"}}})

# Gold, what the scores say, what the text says.
ANSWERS = [
    ("yes", "yes", "yes"),
    ("yes", "no", "Yes."),
    ("no", "no", "not sure"),
    ("maybe", "yes", "maybe"),
    ("yes", "yes", "no"),
]


@pytest.fixture
def data():
    """(predictions, test, items) of ANSWERS."""
    items = {
        str(i): {"final_decision": gold, "reasoning_required_pred": "no"} for i, (gold, _, _) in enumerate(ANSWERS)
    }
    test = [{"pmid": pmid, "output": item["final_decision"]} for pmid, item in items.items()]
    predictions = [
        {"pmid": pmid, "pred": text, "logprob": {label: -1.0 if label == scored else -2.0 for label in LABELS}}
        for pmid, (_, scored, text) in zip(items, ANSWERS)
    ]
    return predictions, test, items


def test_metrics_by_hand(data):
    predictions, test, items = data
    learnt = [row | {"output": items[row["pmid"]]["reasoning_required_pred"]} for row in test]
    metrics = evaluate(predictions, learnt, items, TASK, "reasoning_required_pred", {"yes": 2, "no": 2, "maybe": 2})
    assert metrics["accuracy"] == 3 / 5
    # yes: precision 2/3, recall 2/3; no: 1/2 and 1; maybe: none
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert metrics["accuracy_text"] == 3 / 5 and metrics["malformed"] == 1
    # yes: 1 and 2/3; no: none right of one; maybe: 1
    assert metrics["macro_f1_text"] == pytest.approx((4 / 5 + 0 + 1) / 3)
    assert metrics["macro_f1_official"] == pytest.approx((4 / 5 + 0 + 1 + 0) / 4)  # a fourth label, "malformed"
    assert metrics["by_label"]["no"] == {"precision": 1 / 2, "recall": 1, "f1": pytest.approx(2 / 3), "items": 1}
    assert metrics["confusion"]["yes"] == {"yes": 2, "no": 1, "maybe": 0, "malformed": 0}
    assert metrics["confusion_text"]["no"] == {"yes": 0, "no": 0, "maybe": 0, "malformed": 1}
    e = np.exp(1)  # one log-probability is higher by 1 than the other two
    assert metrics["answers"]["0"]["probability"] == pytest.approx([e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    assert metrics["agreement_reasoning_required_pred"] == 2 / 5
    assert metrics["test_set"] == "all 5" and metrics["labels"] == ["yes", "no", "maybe"]
    assert not [key for key in metrics if "per_token" in key]


def test_order_of_predictions_does_not_matter(data):
    predictions, test, items = data
    shuffled = random.Random(0).sample(predictions, len(predictions))
    assert shuffled != predictions
    assert evaluate(shuffled, test, items, TASK, "final_decision") == evaluate(*data, TASK, "final_decision")


def test_what_does_not_fit_is_refused_by_name(data):
    predictions, test, items = data
    first, *others = predictions
    for wrong, words in (
        (others, "has no prediction of 0, one of the 5 test items"),
        ([*predictions, first], "has 2 predictions of 0"),
        ([*predictions, first | {"pmid": "17"}], "17 is none of the 5 test items"),
        ([first | {"logprob": first["logprob"] | {"perhaps": -3.0}}, *others], "yes, no, maybe, perhaps instead of"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(wrong, test, items, TASK, "final_decision")
    items["3"]["final_decision"] = "perhaps"
    with pytest.raises(ValueError, match="final_decision of 3 is 'perhaps', none of yes, no, maybe"):
        evaluate(predictions, test, items, TASK, "final_decision")


def test_part_of_the_test_set_is_said(data):
    predictions, test, items = data
    assert evaluate(predictions[:3], test[:3], items, TASK, "final_decision")["test_set"] == "3 of 5, stratified"


def test_mcnemar_by_hand():
    # right alone: 8 and 1; of 9 differing items, P(at most 1) by fair coin, two-sided: 2 * (1 + 9) / 2**9
    assert mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(31, 19) == pytest.approx(mcnemar_of_statsmodels([[400, 31], [19, 50]], exact=True).pvalue)


def test_comparison():
    right, other = [1.0] * 9 + [0.0] * 3, [0.0] * 8 + [1.0] * 2 + [0.0] * 2
    single = compare(right, other, single=True)
    assert single["p"] == pytest.approx(20 / 512) and single["difference"] == pytest.approx(7 / 12)
    # better on 3 of 10 items: 2 of the 2**3 signs lie as far from 0
    several = compare([1.0] * 8 + [0.0] * 2, [0.0] * 3 + [1.0] * 5 + [0.0] * 2, single=False)
    assert several["p"] == 2 / 8
    assert several["interval"] == [0.0, binom.ppf(0.975, 10, 0.3) / 10]
    assert compare(right, right, single=False)["p"] == 1.0
    # of one answer an item it is McNemar's test; of halves, 1.5 of 0.5, 0.5, 0.5: 2 of the 2**3 signs
    assert compare(right, other, single=False)["p"] == pytest.approx(single["p"])
    assert compare([0.5, 0.5, 0.5, 0.0], [0.0] * 4, single=False)["p"] == 2 / 8
    # many items: the signs' mean is nearly normal
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 4, (2, 500)) / 3
    z = (one - two).sum() / np.sqrt(((one - two) ** 2).sum())
    assert compare(one, two, single=False)["p"] == pytest.approx(2 * norm.sf(abs(z)), abs=0.03)


@pytest.fixture
def answers():
    """Gold labels of 200 items, and the answers, some malformed, of three models."""
    rng = np.random.default_rng(0)
    gold = rng.choice(LABELS, 200, p=[0.55, 0.34, 0.11])
    models = [np.where(rng.random(200) < 0.7, gold, rng.choice([*LABELS, None], 200)) for _ in range(3)]
    return gold.tolist(), [model.tolist() for model in models]


def test_intervals(answers):
    gold, models = answers
    one = figures(gold, models[:1], LABELS)
    right = sum(a == b for a, b in zip(gold, models[0]))
    assert one["accuracy_interval"] == pytest.approx(list(binomtest(right, 200).proportion_ci(method="wilson")))
    # of models that answer alike, the items that are right in a resample are binomial
    alike = figures(gold, models[:1] * 2, LABELS)["accuracy_interval"]
    assert alike == pytest.approx(binom.ppf([0.025, 0.975], 200, right / 200) / 200, abs=0.006)
    codes = np.array([[[*LABELS, None].index(answer) for answer in answers] for answers in (gold, *models)])
    places = np.random.default_rng(1).integers(200, size=(5000, 200))
    drawn = codes[:, places]  # [gold and models, resamples, items]
    resampled = mean_macro_f1(codes[0], codes[1:], 3)(places)
    options = {"labels": range(3), "average": "macro", "zero_division": 0}
    for number in range(20):
        expected = [f1_score(drawn[0, number], answers, **options) for answers in drawn[1:, number]]
        assert resampled[number] == pytest.approx(np.mean(expected))
    assert figures(gold, models, LABELS)["macro_f1_interval"] == pytest.approx(
        np.quantile(resampled, [0.025, 0.975]), abs=5e-3
    )


def test_models_are_given_by_their_mean(answers):
    gold, models = answers
    several, alone = figures(gold, models, LABELS), [figures(gold, [model], LABELS) for model in models]
    for key in ("accuracy", "macro_f1"):
        assert several[key] == pytest.approx(np.mean([figures[key] for figures in alone]))
    assert several["confusion"]["no"]["yes"] == sum(figures["confusion"]["no"]["yes"] for figures in alone)


def test_calibration():
    rng = np.random.default_rng(0)
    probabilities, gold = rng.dirichlet([1, 1, 1], 500), rng.choice(LABELS, 500)
    codes = np.array([LABELS.index(label) for label in gold])
    found = calibration(gold, probabilities, LABELS)
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(codes), num_classes=3, n_bins=10)
    assert found["ece"] == pytest.approx(float(ece), abs=1e-6)
    assert found["brier"] == pytest.approx(((probabilities - np.eye(3)[codes]) ** 2).sum(axis=1).mean())
    by_hand = calibration(["yes", "yes", "no"], [[0.9, 0.1, 0.0], [0.2, 0.75, 0.05], [0.22, 0.78, 0.0]], LABELS)
    low, high = by_hand["reliability_diagram"]
    assert (low["items"], low["accuracy"], low["probability"]) == (2, 0.5, pytest.approx(0.765))
    assert (high["from"], high["to"], high["items"], high["accuracy"]) == (0.9, 1.0, 1, 1.0)
    assert by_hand["ece"] == pytest.approx((2 * 0.265 + 0.1) / 3)


def test_published_figures():
    published = read_published(PUBLISHED)
    nvidias = published["models"][-1]
    assert [round(100 * end, 1) for end in nvidias["accuracy_interval"]] == [75.4, 82.5]
    assert nvidias["accuracy"] == 0.792 and all(model["source"].startswith("https://") for model in published["models"])
    right = [model["accuracy"] * 500 for model in published["models"]]
    mean = sum(right) / len(right)
    statistic = sum((r - mean) ** 2 / mean + (r - mean) ** 2 / (500 - mean) for r in right)
    assert published["p_equal_accuracy"] == pytest.approx(chi2.sf(statistic, len(right) - 1))


def test_published_reference_figures(pubmedqa_dir):
    _, test = split(read_json(pubmedqa_dir / "ori_pqal.json"), 2, random.Random(0))
    gold = [item["final_decision"] for item in test.values()]
    human = [item["reasoning_required_pred"] for item in test.values()]
    for answers, accuracy, macro_f1 in (human, 78.0, 72.19), (["yes"] * 500, 55.2, 23.71):
        found = score(gold, answers, LABELS)
        assert (round(100 * found["accuracy"], 2), round(100 * found["macro_f1"], 2)) == (accuracy, macro_f1)


def test_scores_must_be_finite(data):
    predictions, test, items = data
    predictions[2]["logprob"]["no"] = float("nan")
    with pytest.raises(ValueError, match="log-probabilities of 2 are not finite"):
        evaluate(predictions, test, items, TASK, "final_decision")


def model(data, run, answers=None, **more):
    """What evaluate.py writes for a run, with other answers by score where given."""
    metrics = evaluate(*data, TASK, "final_decision")
    for answer, given in zip(metrics["answers"].values(), answers or []):
        answer |= {"score": given, "probability": [0.8 if label == given else 0.1 for label in LABELS]}
    metrics |= score(*zip(*((answer["gold"], answer["score"]) for answer in metrics["answers"].values())), LABELS)
    names = {"run": run, "model": "m", "dataset": "d", "label": "final_decision", "base": run == "base"}
    return metrics | names | {"fold": "0", "seed": "0", "validation_loss": None, "chosen": None} | more


def compare_runs(directory, metrics, **options):
    """(the table, the JSON, the finished process)"""
    files = []
    for number, content in enumerate(metrics):
        files.append(directory / f"metrics{number}.json")
        write_json(files[-1], content)
    outputs = "--output", directory / "accuracy.tsv", "--json", directory / "accuracy.json", "--sources", REAL
    done = run_script("compare_runs.py", "--metrics", *files, *outputs, **options)
    if done.returncode:
        return None, None, done
    table = pd.read_csv(directory / "accuracy.tsv", sep="\t").set_index("run")
    return table, read_json(directory / "accuracy.json"), done


def test_table(data, tmp_path):
    gold = [gold for gold, _, _ in ANSWERS]
    seeds = [
        model(data, "lora", ["yes", "yes", "no", "yes", "yes"], validation_loss=0.3),
        model(data, "lora", ["yes", "no", "no", "yes", "yes"], seed="1", validation_loss=0.4),
    ]
    best = model(data, "best", gold, chosen={"run": "good", "validation_losses": {"good": 0.2, "worse": 0.3}})
    # the base comes last, but its line first
    table, all_of_it, done = compare_runs(tmp_path, [*seeds, best, model(data, "base")])
    assert list(table.index) == ["majority", "human", "base", "lora", "lora (ensemble)", "best"]
    assert table.accuracy.to_list() == [60.0, 20.0, 60.0, 70.0, 80.0, 100.0]
    assert table.loc["lora", "accuracy_sd"] == 14.1  # of 80 and 60
    assert table.models.to_list()[2:] == [1, 2, 2, 1] and (table.test_set == "all 5").all()
    assert table.configurations.to_list()[2:] == [1, 1, 1, 2] and table.loc["lora", "validation_loss"] == 0.35
    assert "best was chosen from 2 configurations by validation loss, before test was read." in done.stdout
    assert "These cannot be told apart at n = 500" in done.stdout
    # best is right alone on two items, base on none: 2 * (1/2)**2
    assert table.loc["best", "p_base"] == 0.5 and table.loc["base", "p_majority"] == 1.0
    tests = {(pair["run"], pair["other"]): pair for pair in all_of_it["comparisons"]}
    assert len(tests) == 10 and tests["best", "lora"]["test"] == "paired permutation"
    assert tests["lora (ensemble)", "base"]["test"] == "exact McNemar"
    ordered = sorted(all_of_it["comparisons"], key=lambda pair: pair["p"])
    holm = np.maximum.accumulate([pair["p"] * (10 - place) for place, pair in enumerate(ordered)]).clip(max=1)
    assert [pair["p_holm"] for pair in ordered] == pytest.approx(holm)
    assert table.loc["lora", "p_base_holm"] == pytest.approx(tests["lora", "base"]["p_holm"], rel=0.05)
    lora = next(line for line in all_of_it["runs"] if line["run"] == "lora")
    assert [one["accuracy"] for one in lora["by_model"]] == [0.8, 0.6] and lora["accuracy"] == pytest.approx(0.7)


def test_ensemble_answers_by_mean_probability(data, tmp_path):
    sure, unsure = model(data, "lora", ["yes"] * 5), model(data, "lora", ["no"] * 5, seed="1")
    for answer in unsure["answers"].values():
        answer["probability"] = [0.4, 0.6, 0.0]
    _, all_of_it, _ = compare_runs(tmp_path, [sure, unsure])
    ensemble = all_of_it["runs"][1]
    assert ensemble["run"] == "lora (ensemble)" and ensemble["confusion"]["yes"]["yes"] == 3
    assert ensemble["reliability_diagram"][0]["probability"] == pytest.approx(0.6)  # of 0.8 and 0.4


def test_other_items_are_not_compared(data, tmp_path):
    predictions, test, items = data
    part = model((predictions[:3], test[:3], items), "part")
    _, _, done = compare_runs(tmp_path, [model(data, "base"), part], check=False)
    assert done.returncode == 1
    assert f"metrics1.json: has not the test items of {tmp_path}/metrics0.json: evaluate both again." in done.stderr


def test_a_copied_file_stands_for_no_other_run(data, tmp_path):
    """Of another run, fold or seed: the table would lack one, and nobody would see it."""
    files = [tmp_path / f"{model}/metrics.json" for model in ("a/fold0/seed0", "b/fold0/seed0", "b/fold0/seed12")]
    made = [model(data, file.parts[-4], seed=file.parts[-2][4:]) for file in files]
    outputs = "--output", tmp_path / "accuracy.tsv", "--json", tmp_path / "accuracy.json", "--sources", REAL
    for wrong, content in (None, None), (1, 0), (2, 1), (1, 2):
        for number, file in enumerate(files):
            write_json(file, made[content if number == wrong else number])
        done = run_script("compare_runs.py", "--metrics", *files, *outputs, check=False)
        if wrong is None:
            assert done.returncode == 0, done.stderr
            continue
        of = files[content].parent.relative_to(tmp_path)
        said = f"is of another model, {of}, as a copy is. Remove it and run Snakemake again, which makes it anew."
        assert (done.returncode, done.stderr) == (1, f"{files[wrong]}: {said}\n")


def test_choice(tmp_path):
    losses = {"a/fold0/seed0": 0.5, "a/fold1/seed0": 0.4, "b/fold0/seed0": 0.3, "b/fold1/seed0": 0.5}
    files = [tmp_path / model / "adapter.provenance.json" for model in losses]
    for file, loss in zip(files, losses.values()):
        file.parent.mkdir(parents=True)
        file.with_name("adapter.nemo").write_text(str(loss))
        write_json(file, {"sha256": {"result": sha256(file.with_name("adapter.nemo"))}, "validation_loss": loss})
    model = "--fold", 1, "--seed", 0, "--output", tmp_path / "best/adapter.nemo"
    run_script("choose_run.py", "--provenance", *files, *model)
    assert (tmp_path / "best/adapter.nemo").read_text() == "0.5"
    means = {"a": pytest.approx(0.45), "b": pytest.approx(0.4)}
    provenance = read_json(tmp_path / "best/adapter.provenance.json")
    assert provenance == read_json(files[3]) | {"chosen": {"run": "b", "validation_losses": means}}
    (tmp_path / "best/adapter.nemo").unlink()
    for damage in (lambda file: file.write_text("0.6"), lambda file: file.unlink()):
        damage(files[3].with_name("adapter.nemo"))
        done = run_script("choose_run.py", "--provenance", *files, *model, check=False)
        said = f"{tmp_path}/b/fold1/seed0/adapter.nemo: is not the adapter that adapter.provenance.json tells of."
        assert done.returncode == 1
        assert done.stderr == f"{said} Remove it and run Snakemake again, which makes it anew.\n"
        assert not (tmp_path / "best/adapter.nemo").exists()
    write_json(
        files[1], {"sha256": {}, "validation_loss": 0.4, "loss": "mean over items"}
    )  # fold 1 of a was trained anew
    done = run_script("choose_run.py", "--provenance", *files, *model, check=False)
    assert done.returncode == 1 and f"{files[0]}: its loss is an older version's" in done.stderr
    write_json(files[0], {"sha256": {}, "validation_loss": math.inf})
    done = run_script("choose_run.py", "--provenance", *files, *model, check=False)
    assert done.returncode == 1 and f"{files[0]}: the validation loss is inf, the training has diverged" in done.stderr
    write_json(files[0], {"sha256": {}})
    done = run_script("choose_run.py", "--provenance", *files, *model, check=False)
    assert done.returncode == 1 and f"{files[0]}: has no validation_loss" in done.stderr
