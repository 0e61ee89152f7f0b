"""The report's pictures, as SVG to stand in a page: its words are text, and they take the page's colour and font."""

import io
import re
import unicodedata
import warnings

import matplotlib
from evaluation.metrics import MALFORMED
from evaluation.text_metrics import MAIN
from markupsafe import Markup, escape
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

INK, GREY, BLUE, ORANGE = "#111111", "#808080", "#3b82c4", "#d9772b"  # INK becomes the page's, the others read on both
SHADES = LinearSegmentedColormap.from_list("shades", [(0.23, 0.51, 0.77, 0), (0.23, 0.51, 0.77, 0.6)])
warnings.filterwarnings("ignore", "Glyph .* missing from font")  # labels in other scripts: the page's fonts have them
matplotlib.rcParams |= {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def svg(figure, told):
    """The figure as an element of HTML; told: what it shows, for those who don't see it."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": told}):  # ids of its own, and the same each time
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9A-Z.]+_\d+"', "", text)  # figure_1 and such: nothing refers to them
    text = text.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{escape(told)}" ', 1)
    return Markup(text)


def subplots(width, height, *shape, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, **options)


def forest(words, heading, key, lines, references, published):
    """A figure by its key with intervals, from above: lines, then published; references as vertical lines."""
    rows = [(line["run"], line, BLUE) for line in lines] + [(model["name"], model, GREY) for model in published]
    figure, axes = subplots(4.0, 0.9 + 0.24 * len(rows))
    for reference, style in zip(references, ("--", ":")):
        label = f"{reference['run']} {100 * reference[key]:.1f} %"
        axes.axvline(100 * reference[key], color=ORANGE, linestyle=style, label=label)
    for place, (_, line, colour) in enumerate(rows):
        axes.plot([100 * end for end in line[f"{key}_interval"]], [place, place], color=colour, linewidth=2)
        axes.plot(100 * line[key], place, "s", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(words.text("axis", figure=heading))
    if references:
        figure.legend(loc="outside upper right", ncols=2)
    told = []
    for name, line, _ in rows:
        value, low, high = (f"{share:.1%}" for share in (line[key], *line[f"{key}_interval"]))
        told.append(words.text("told_forest_row", name=name, value=value, low=low, high=high))
    return svg(figure, words.text("told_forest", figure=heading[0].upper() + heading[1:], rows=", ".join(told)))


def width(text):
    """In columns, of which a full-width character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "FW" else 1 for character in text)


def confusion(words, title, counts):
    """(title, picture). counts: {gold label: {answer: count}}."""
    rows = counts.values()
    answers = [answer for answer in next(iter(rows)) if answer in counts or any(row[answer] for row in rows)]
    wide = max(0, len(answers) - 4) / 4  # of many labels each keeps its room
    figure, axes = subplots(2.5 + wide, 2.3 + wide)
    table = [[row[answer] for answer in answers] for row in rows]
    shares = [[count / max(1, sum(row)) for count in row] for row in table]
    axes.pcolormesh(shares, cmap=SHADES, vmin=0, vmax=1)
    for y, row in enumerate(table):
        for x, count in enumerate(row):
            if count or not wide:
                axes.text(x + 0.5, y + 0.5, count, ha="center", va="center")
    labels = [words.text("malformed_short") if answer == MALFORMED else answer for answer in answers]
    long = len(answers) > 4 or max(width(line) for label in labels for line in label.split("\n")) > 6
    turned = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"} if long else {}
    axes.set_xticks([x + 0.5 for x in range(len(answers))], labels, parse_math=False, **turned)
    axes.set_yticks([y + 0.5 for y in range(len(counts))], counts, parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set(xlabel=words.text("answer"), ylabel=words.text("gold"))
    given = {gold: ", ".join(f"{number} {answer}" for answer, number in row.items()) for gold, row in counts.items()}
    told = (words.text("told_confusion_row", gold=gold, answers=answers) for gold, answers in given.items())
    return title, svg(figure, words.text("told_confusion", title=title, rows="; ".join(told)))


def learning_curve(words, title, curves):
    """(title, picture). curves: each model's [{step, loss, learning_rate, validation_loss, validation_accuracy}], where
    it has them; an older version's have no accuracy."""
    steps = [step for curve in curves for step in curve]
    heights = [3, 1.5, 1] if any("validation_accuracy" in step for step in steps) else [3, 1]
    size = 4.0, 0.8 * sum(heights)
    figure, (above, *between, below) = subplots(*size, len(heights), 1, sharex=True, height_ratios=heights)
    drawn = [("loss", above, BLUE, "-"), ("validation_loss", above, ORANGE, "o-"), ("learning_rate", below, GREY, "-")]
    drawn += [("validation_accuracy", axes, ORANGE, "o-") for axes in between]
    for key, axes, colour, style in drawn:
        for number, curve in enumerate(curves):
            having = [step for step in curve if key in step]
            label = None if number else words.text(key)
            values = [step["step"] for step in having], [step[key] for step in having]
            axes.plot(*values, style, color=colour, label=label, markersize=3, alpha=max(0.3, 1 / len(curves)))
    above.set(ylabel=words.text("loss"))
    above.legend()
    for axes in between:
        axes.set(ylabel=words.text("validation_accuracy_axis"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    below.set(xlabel=words.text("step"), ylabel=words.text("learning_rate"))
    below.ticklabel_format(axis="y", scilimits=(0, 0))
    told = []
    for key, form in ("validation_loss", "{:.3g}"), ("validation_accuracy", "{:.1%}"):
        found = [(form.format(step[key]), step["step"]) for step in steps if key in step]
        values = ", ".join(words.text("told_curve_value", value=value, step=step) for value, step in found)
        told += [f"{words.text(key)}{words.text('colon')}{values}"] * bool(found)
    return title, svg(figure, words.text("told_curve", title=title, values="; ".join(told)))


def reliability(words, title, bins):
    """(title, picture). bins: as of metrics.calibration; a point's area grows with the bin's items."""
    figure, axes = subplots(2.5, 2.4)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    of = sum(bin["items"] for bin in bins)
    values = [bin["probability"] for bin in bins], [bin["accuracy"] for bin in bins]
    sizes = [10 + 150 * bin["items"] / of for bin in bins]
    axes.scatter(*values, sizes, color=BLUE, alpha=0.7, linewidths=0, zorder=2, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=words.text("probability"), ylabel=words.text("share_right"))
    shares = [{key: f"{bin[key]:.0%}" for key in ("accuracy", "probability")} for bin in bins]
    told = (words.text("told_reliability_bin", items=bin["items"], **share) for bin, share in zip(bins, shares))
    return title, svg(figure, words.text("told_reliability", title=title, bins=", ".join(told)))


def draw(words, headings, result, curves, official):
    """All pictures, by section. result: accuracy.json; curves: {run: each model's}; official: data sets that are
    PubMedQA itself."""
    forests = []
    for dataset in dict.fromkeys(line["dataset"] for line in result["runs"]):
        lines, references = (
            [line for line in result[key] if line["dataset"] == dataset] for key in ("runs", "references")
        )
        published = result["published"]["models"] if dataset in official else []
        key = "accuracy" if "accuracy" in lines[0] else MAIN
        picture = forest(words, headings[key], key, lines, references, published)
        forests.append((dataset, headings[key], picture))
    return {
        "forests": forests,
        "confusions": [
            confusion(words, words.text(reading, run=line["run"]), line[key])
            for line in result["runs"]
            for key, reading in (("confusion", "reading_score"), ("confusion_text", "reading_text"))
            if key in line
        ],
        "curves": [
            learning_curve(words, run, list(filter(None, found))) for run, found in curves.items() if any(found)
        ],
        "reliability": [
            reliability(
                words, words.text("ece", run=line["run"], ece=f"{line['ece']:.4g}"), line["reliability_diagram"]
            )
            for line in result["runs"]
            if "ece" in line
        ],
    }
