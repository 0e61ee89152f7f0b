"""Writes items as NeMo's JSON Lines, {"input": prompt, "output": answer, "pmid" or "id": …}, in the items' order.

Of PubMedQA, with --label, by the tutorial's prompt or another; of data of one's own, with --columns. An item without an
answer has no output. Where a column may be shortened, "truncate" says from where to where in the input its text goes.
"""

import argparse
import json
import random
from pathlib import Path

from common.ending import run
from common.files import read_json, write_jsonl
from common.pubmedqa import LABELS, PROMPT
from common.template import fill, place_of


def stratified_sample(items, size, seed, key="final_decision", labels=LABELS):
    """`size` of the items {id: item}, in their order, with each label's share of the answers `key` kept (largest
    remainders); labels: None for answers in free text, of which the draw is plain.

    A seeded draw, never the first ones: the official test order is grouped by label.
    """
    groups = {label: [name for name, item in items.items() if item.get(key) == label] for label in labels or ()}
    groups = {label: group for label, group in groups.items() if group} or {None: list(items)}
    shares = {label: len(group) * size / len(items) for label, group in groups.items()}
    counts = {label: int(share) for label, share in shares.items()}
    for label in sorted(groups, key=lambda label: counts[label] - shares[label])[: size - sum(counts.values())]:
        counts[label] += 1
    rng = random.Random(seed)
    chosen = {name for label, group in groups.items() for name in rng.sample(group, counts[label])}
    return {name: item for name, item in items.items() if name in chosen}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="{id: item}")
    parser.add_argument("--label", help="of PubMedQA: the items' key that is the answer, final_decision as a rule")
    parser.add_argument("--prompt", default=PROMPT, help="of PubMedQA: a template, the tutorial's by default")
    parser.add_argument("--truncate", help="the column that may be shortened, in training and prediction")
    help = 'of other data: JSON, {"prompt": template, "answer": column, "labels": […] if they are a closed set}'
    parser.add_argument("--columns", type=json.loads, help=help)
    parser.add_argument("--sample", type=int, default=0, help="so many items, stratified by label; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    help = "write every item whose answer is maybe so many times, one after the other"
    parser.add_argument("--repeat-maybe", type=int, default=1, help=help)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    items = read_json(args.json)
    if args.sample > len(items):
        raise SystemExit(f"{args.json} has {len(items)} items, fewer than --sample {args.sample}")
    if args.columns:
        prompt, answer, labels = (args.columns.get(key) for key in ("prompt", "answer", "labels"))
        gold, id_key = answer, "id"
    else:
        prompt, answer, labels, gold, id_key = args.prompt, args.label, LABELS, "final_decision", "pmid"
    if args.sample:
        items = stratified_sample(items, args.sample, args.seed, gold, labels)
    rows = []
    for name, item in items.items():
        output = {"output": item[answer]} if (item.get(answer) or "").strip() else {}
        row = {"input": fill(prompt, item), **output, id_key: name}
        if args.truncate:
            row["truncate"] = place_of(args.truncate, prompt, item)
        rows += [row] * (args.repeat_maybe if output.get("output") == "maybe" else 1)
    write_jsonl(args.output, rows)
    print(f"{args.output}: {len(items)} items in {len(rows)} lines, answers from {answer}")


if __name__ == "__main__":
    run(main)
