"""What a translation training is worth: BLEU and chrF with their signatures, as numbers and as a figure."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from nnopt.lab import plots

BOOTSTRAP = 1000  # resamplings of the test sentences for the interval


def measure(translations, references):
    """Returns what a test says of a translator, as numbers and strings that JSON can hold.

    Args:
        translations: Strings.
        references: One string for each.

    Returns:
        A dict of examples; bleu (cased, 13a), bleu_interval (bootstrap over sentences, 95 %), bleu_lowercase (for
        older papers), chrf, all 0 to 100; length_ratio (length of the translations / that of the references), and the
        signatures of sacreBLEU.

    Example:

    >>> found = measure(["ein Mann fährt Rad ."], ["ein Mann fährt Rad ."])
    >>> round(found["bleu"]), found["length_ratio"]
    (100, 1.0)

    Reference: Papineni et al. 2002, "BLEU"; Post 2018, "A call for clarity in reporting BLEU scores"; Popović 2015,
    "chrF"; Koehn 2004, "Statistical significance tests for machine translation evaluation".
    """
    from sacrebleu.metrics import BLEU, CHRF

    translations, references = list(translations), [list(references)]
    cased, lower, chrf = BLEU(force=True), BLEU(lowercase=True, force=True), CHRF()  # force: no warning of spaces
    found = cased.corpus_score(translations, references, n_bootstrap=BOOTSTRAP)
    resampled = json.loads(found.format(width=4, signature=str(cased.get_signature()), is_json=True))
    middle, half = (resampled.get(f"confidence_{name}", 0.0) for name in ("mean", "var"))  # absent where all are 0
    return {
        "examples": len(translations),
        "bleu": found.score,
        "bleu_interval": [middle - half, middle + half],
        "bleu_lowercase": lower.corpus_score(translations, references).score,
        "chrf": chrf.corpus_score(translations, references).score,
        "length_ratio": found.sys_len / found.ref_len,
        "signatures": [str(metric.get_signature()) for metric in (cased, lower, chrf)],
    }


def summary(report):
    """Returns the report's main numbers in a few lines."""
    low, high = report["bleu_interval"]
    training, validation, width = report["training"], report["validation_bleu"], report["recipe"]["beam_width"]
    lines = [
        f"BLEU {report['bleu']:.2f} (95 % interval {low:.1f} to {high:.1f}) with a beam of {width}, "
        f"{report['bleu_greedy']:.2f} greedy, on {report['examples']:,} test sentences",
        f"  {report['signatures'][0]}",
        f"lowercased {report['bleu_lowercase']:.2f}, chrF {report['chrf']:.2f}, "
        f"length {report['length_ratio']:.3f} of the references'",
        f"validation: BLEU {validation['beam']:.2f} with the beam, {validation['greedy']:.2f} greedy",
        f"{report['parameters']:,} parameters, {training['epochs']} epochs, {training['steps']:,} steps",
        f"{training['seconds']:.0f} s of training, {training['examples_per_second'] or float('nan'):.0f} pairs/s, "
        f"{training['peak_memory_mb']:,} MB; {report['sentences_per_second']:.0f} sentences/s of beam search",
    ]
    return "\n".join(lines)


def draw(report, history, attentions, folder):
    """Writes report.png: learning curves, and the attention of some test sentences.

    Args:
        report: The report.
        history: Lists of one value for each epoch, by name.
        attentions: For each sentence (weights, target pieces, source pieces).
        folder: Where to.
    """
    with mpl.rc_context():
        plots.use_style()
        figure, panels = plots.small_multiples(2 + len(attentions), height=2.8, share_x=False, share_y=False)
        epochs = np.arange(1, len(history["loss"]) + 1)
        for name, part in (("loss", "train"), ("val_loss", "validation")):
            panels[0].plot(epochs, history[name], label=part, color=plots.color(part), marker=".")
        panels[0].set(xlabel="epoch", ylabel="smoothed loss (nats)", title="Loss")
        panels[0].legend()
        panels[1].plot(epochs, history["val_bleu"], color=plots.color("validation"), marker=".")
        panels[1].set(xlabel="epoch", ylabel="BLEU of greedy search", title=f"Test: {report['bleu']:.1f} with the beam")
        for panel, picture in zip(panels[2:], attentions):
            draw_attention(panel, *picture)
        plots.save(figure, "report", folder)
        plt.close(figure)


def draw_attention(ax, weights, target, source):
    """Draws attention weights: a row for each target piece, a column for each source piece.

    Args:
        ax: Axes.
        weights: (target, source).
        target: Names of the rows.
        source: Names of the columns.
    """
    ax.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(source)), source, rotation=90, fontsize=5)
    ax.set_yticks(range(len(target)), target, fontsize=5)
    ax.grid(visible=False)
    ax.set_title("Attention")
