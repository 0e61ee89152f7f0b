"""Simulates 1,000 short trial reports in PubMedQA's format, for a demonstration that needs no download.

The schema and the proportions of the labels are PubMedQA's. The answer follows from the text: a difference between the
groups (yes), none (no), or a trial that could not tell (maybe). The reports are made up; nothing medical is in them.
"""

import argparse
import random
from pathlib import Path

from common.ending import run
from common.files import write_json
from split_folds import split

LABEL_COUNTS = {"yes": 552, "no": 338, "maybe": 110}  # PubMedQA's, of 1,000
# How often PubMedQA's two annotators agree with the final decision: with the abstract's conclusion and without.
AGREEMENT = {"reasoning_free_pred": 0.90, "reasoning_required_pred": 0.78}

DRUGS = ["abrolol", "bentazine", "corvastat", "dilumab", "enoprazole", "fentoril", "gavotide", "helimycin", "ibradine"]
OUTCOMES = ["pain", "fever", "cough", "relapse", "bleeding", "fatigue", "nausea", "mortality"]
PATIENTS = ["adults with asthma", "children with otitis", "smokers", "older adults", "women with migraine", "runners"]
RESULTS = {
    "yes": [
        "{outcome} was significantly lower with {drug} ({a}% against {b}%).",
        "{drug} significantly reduced {outcome}, from {b}% to {a}%.",
        "With {drug}, {outcome} fell from {b}% to {a}%, a significant difference.",
    ],
    "no": [
        "{outcome} did not differ between the groups ({a}% against {a2}%).",
        "There was no difference in {outcome} ({a}% with {drug}, {a2}% with placebo).",
        "{drug} had no effect on {outcome}: {a}% against {a2}%.",
    ],
    "maybe": [
        "{outcome} was {a}% against {b}%, but the trial was stopped early and the result is inconclusive.",
        "The effect on {outcome} remains uncertain: few patients finished, and the groups differed at entry.",
        "{outcome} was lower in one centre and higher in the other; the findings are inconclusive.",
    ],
}


def simulate(rng):
    """{pmid: item}, 1,000 items in random order; pmids are "trial0001" and so on."""
    labels = [label for label, count in LABEL_COUNTS.items() for _ in range(count)]
    rng.shuffle(labels)
    items = {}
    for number, label in enumerate(labels, start=1):
        drug, outcome, patients = rng.choice(DRUGS), rng.choice(OUTCOMES), rng.choice(PATIENTS)
        a = rng.randint(5, 30)
        numbers = {"a": a, "b": a + rng.randint(10, 30), "a2": max(1, a + rng.randint(-1, 1))}
        result = rng.choice(RESULTS[label]).format(drug=drug, outcome=outcome, **numbers)
        item = {
            "QUESTION": f"Does {drug} reduce {outcome} in {patients}?",
            "CONTEXTS": [f"We gave {patients} {drug} or placebo.", result[0].upper() + result[1:]],
            "LABELS": ["METHODS", "RESULTS"],
            "MESHES": [],
            "YEAR": None,
        }
        for annotator, agreement in AGREEMENT.items():
            others = [other for other in LABEL_COUNTS if other != label]
            item[annotator] = label if rng.random() < agreement else rng.choice(others)
        items[f"trial{number:04}"] = item | {"final_decision": label, "LONG_ANSWER": ""}
    return items


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", type=int, default=0, metavar="SEED")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()
    items = simulate(random.Random(args.simulate))
    test = split(items, 2, random.Random(0))[1]
    write_json(args.output_dir / "test_ground_truth.json", {p: item["final_decision"] for p, item in test.items()})
    write_json(args.output_dir / "ori_pqal.json", items, indent=1)
    print(f"{args.output_dir}: {len(items)} simulated reports, seed {args.simulate}")


if __name__ == "__main__":
    run(main)
