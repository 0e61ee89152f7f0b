"""Writes PubMedQA items as NeMo's JSON Lines: {"input": prompt, "output": answer, "pmid": …}, in the items' order."""

import argparse
import random
from pathlib import Path

from common.files import read_json, write_jsonl
from common.pubmedqa import LABELS, prompt


def stratified_sample(items, size, seed):
    """`size` of the items {pmid: item}, in their order, with each gold label's share kept (largest remainders).

    A seeded draw, never the first ones: the official test order is grouped by label.
    """
    groups = {label: [pmid for pmid, item in items.items() if item["final_decision"] == label] for label in LABELS}
    shares = {label: len(group) * size / len(items) for label, group in groups.items()}
    counts = {label: int(share) for label, share in shares.items()}
    for label in sorted(LABELS, key=lambda label: counts[label] - shares[label])[: size - sum(counts.values())]:
        counts[label] += 1
    rng = random.Random(seed)
    chosen = {pmid for label, group in groups.items() for pmid in rng.sample(group, counts[label])}
    return {pmid: item for pmid, item in items.items() if pmid in chosen}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True, type=Path, help="{pmid: item}")
    parser.add_argument("--label", required=True, help="the item's key that is the answer, final_decision as a rule")
    parser.add_argument("--sample", type=int, default=0, help="so many items, stratified by gold label; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    help = "write every item whose answer is maybe so many times, one after the other"
    parser.add_argument("--repeat-maybe", type=int, default=1, help=help)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    items = read_json(args.json)
    if args.sample > len(items):
        raise SystemExit(f"{args.json} has {len(items)} items, fewer than --sample {args.sample}")
    if args.sample:
        items = stratified_sample(items, args.sample, args.seed)
    rows = [{"input": prompt(item), "output": item[args.label], "pmid": pmid} for pmid, item in items.items()]
    rows = [row for row in rows for _ in range(args.repeat_maybe if row["output"] == "maybe" else 1)]
    write_jsonl(args.output, rows)
    print(f"{args.output}: {len(items)} items in {len(rows)} lines, answers from {args.label}")


if __name__ == "__main__":
    main()
