"""The table of lines as accuracy.tsv and the log have it, and the words at the head of its columns."""

import pandas as pd
from evaluation.metrics import METRICS, PROBABILITY_METRICS, TEXT_METRICS
from evaluation.text_metrics import FREE_TEXT_METRICS

ALL = METRICS | TEXT_METRICS | PROBABILITY_METRICS | FREE_TEXT_METRICS
PERCENT = tuple(name for name, metric in ALL.items() if metric.percent)
HEADINGS = {name + suffix: words for name, metric in ALL.items() for suffix, words in metric.headings.items()}
NAMES = ("run", "model", "dataset", "test_set", "label")
PRINTED = {"run", "models", *HEADINGS, "p_majority_holm", "p_base_holm"} - {f"{name}_sd" for name in ALL}
PRINTED |= {"accuracy_low", "accuracy_high", "token_f1_low", "token_f1_high"}


def tabulate(lines, comparisons):
    """The lines' main figures as a data frame, in percent where they are shares; what no line has is no column."""
    bases = {(line["model"], line["dataset"]): line["run"] for line in lines if line.get("base")}
    had = {key for line in lines for key in line}
    main = [key for key in (*METRICS, *FREE_TEXT_METRICS) if key in had]
    others = [f"{key}_{reading}" for reading in ("text", "per_token") for key in METRICS]
    others += [*TEXT_METRICS, "validation_loss", *PROBABILITY_METRICS]
    others = [key for key in others if key in had]
    names = [*NAMES, *["adapter"] * ("adapter" in had)]
    references = ["majority"] if any(line["run"] == "majority" for line in lines) else []
    rows = []
    for line in lines:
        row = {key: line.get(key) for key in (*names, "models", "configurations")}
        for key in main:
            row[key] = line.get(key)
            if f"{key}_interval" in had:
                row[f"{key}_low"], row[f"{key}_high"] = line.get(f"{key}_interval", (None, None))
            row[f"{key}_sd"] = line.get(f"{key}_sd")
        row |= {key: line.get(key) for key in others}
        row |= {key: value for key, value in line.items() if key.startswith("agreement_")}
        base = bases.get((line.get("model"), line["dataset"]))
        for key, other in (*zip(references, references), ("base", base)):
            pair = {"dataset": line["dataset"], "run": line["run"], "other": other}
            comparison = next((c for c in comparisons if pair.items() <= c.items()), {})
            row |= {f"p_{key}": comparison.get("p"), f"p_{key}_holm": comparison.get("p_holm")}
        rows.append(row)
    table = pd.DataFrame(rows)
    for key in table:
        if key.startswith(("agreement_", *PERCENT)):
            table[key] = (100 * table[key].astype(float)).round(1)
        elif key not in names:
            form = "{:.2g}" if key[:2] == "p_" else "{:.0f}" if key == "models" else "{:.4g}"
            table[key] = table[key].map(form.format, na_action="ignore")
    return table


def show(table):
    print(table.astype(object).where(table.notna(), "").to_string(index=False), end="\n\n")


def show_all(table, comparisons, published):
    """What is read in the log."""
    dataset = {"dataset"} if table["dataset"].nunique() > 1 else set()
    show(table[[key for key in table if key in PRINTED | dataset]])
    if comparisons:
        print(
            "Differences on the same items, run minus other, with 95 % intervals; p_holm is p with Holm's correction:"
        )
        pairs = pd.DataFrame(comparisons)
        pairs["difference"] = pairs["difference"].map("{:+.1%}".format)
        pairs[["low", "high"]] = [[f"{end:+.1%}" for end in ends] for ends in pairs["interval"]]
        pairs[["p", "p_holm"]] = pairs[["p", "p_holm"]].map("{:.2g}".format)
        show(pairs[[*dataset, "run", "other", "difference", "low", "high", "test", "p", "p_holm"]])
    for run, tried in zip(table["run"], table["configurations"]):
        if pd.notna(tried) and tried != "1":
            print(f"{run} was chosen from {tried} configurations by validation loss, before test was read.\n")
    for run, adapter in table.get("adapter", pd.Series()).dropna().items():
        print(f"{table.loc[run, 'run']} is {adapter}, which was trained elsewhere.\n")
    if not published:
        return
    for model in published["models"]:
        low, high = model["accuracy_interval"]
        print(f"published: {model['accuracy']:.1%} ({low:.1%} to {high:.1%}) {model['name']}, {model['setting']}")
    alike = "cannot be told apart" if published["p_equal_accuracy"] > 0.05 else "differ"
    items = published["models"][0]["items"]
    print(f"These {alike} at n = {items} (chi-squared test: p = {published['p_equal_accuracy']:.2g}).")
