"""What a finished training is worth: accuracy with its interval, confusion, calibration; as numbers and as a figure."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from scipy import special, stats
from sklearn.metrics import confusion_matrix

from nnopt.lab import plots

BINS = 15  # of the confidence, in the calibration
LARGEST_CONFUSION = 100  # classes, above which the matrix is left out


def softmax(logits):
    """Returns probabilities in float64, (examples, classes)."""
    return special.softmax(np.asarray(logits, dtype="float64"), axis=-1)


def measure(logits, labels, class_names):
    """Returns what a test says of a classifier, as numbers and lists that JSON can hold.

    Args:
        logits: (examples, classes).
        labels: The right classes, integers of shape (examples,).
        class_names: One name for each class.

    Returns:
        A dict of examples, top_1, top_1_interval (Wilson's, 95 %), top_5, loss (mean cross-entropy in nats),
        calibration_error (the mean distance of confidence and accuracy over bins, weighted by their examples),
        calibration (for each bin that is not empty [mean confidence, accuracy, examples]), confusion (rows: right
        classes; None above 100 classes), class_names.

    Example:

    >>> result = measure([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1], ["cat", "dog"])
    >>> result["examples"], round(result["top_1"], 3), result["confusion"]
    (3, 0.667, [[1, 0], [1, 1]])

    Reference: Wilson 1927, "Probable inference"; Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    logits, labels = np.asarray(logits, dtype="float64"), np.asarray(labels).reshape(-1)
    right = int(np.sum(np.argmax(logits, axis=1) == labels))
    interval = stats.binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    bins = calibration(softmax(logits), labels)
    classes = range(logits.shape[1])
    return {
        "examples": len(labels),
        "top_1": right / len(labels),
        "top_1_interval": [float(interval.low), float(interval.high)],
        "top_5": float(np.mean(np.sum(logits > own, axis=1) < 5)),
        "loss": float(np.mean(special.logsumexp(logits, axis=1) - own[:, 0])),
        "calibration_error": sum(count * abs(sure - share) for sure, share, count in bins) / len(labels),
        "calibration": bins,
        "confusion": confusion_matrix(labels, np.argmax(logits, axis=1), labels=classes).tolist()
        if len(classes) <= LARGEST_CONFUSION
        else None,
        "class_names": list(class_names),
    }


def calibration(probabilities, labels):
    """Returns [mean confidence, accuracy, examples] of each bin of confidence that is not empty.

    Args:
        probabilities: (examples, classes).
        labels: (examples,).
    """
    confidence = np.max(probabilities, axis=1)
    right = np.argmax(probabilities, axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        [float(confidence[place == k].mean()), float(right[place == k].mean()), int(np.sum(place == k))]
        for k in np.unique(place)
    ]


def summary(report):
    """Returns the report's main numbers in a few lines."""
    low, high = report["top_1_interval"]
    training = report["training"]
    lines = [
        f"top-1 {report['top_1']:.2%} (95 % interval {low:.2%} to {high:.2%}), top-5 {report['top_5']:.2%}, "
        f"on {report['examples']:,} test examples",
        f"loss {report['loss']:.4f} nats, calibration error {report['calibration_error']:.2%}",
        f"{report['parameters']:,} parameters, {training['epochs']} epochs, {training['steps']:,} steps",
        f"{training['seconds']:.0f} s of training, {training['examples_per_second'] or float('nan'):.0f} examples/s, "
        f"{training['peak_memory_mb']:,} MB",
    ]
    return "\n".join(lines)


def draw(report, history, folder):
    """Writes report.png: learning curves, confusion and calibration.

    Args:
        report: The report.
        history: Lists of one value for each epoch, by name.
        folder: Where to.
    """
    with mpl.rc_context():
        plots.use_style()
        figure, panels = plots.small_multiples(2 + (report["confusion"] is not None), height=2.6, share_x=False,
                                               share_y=False)  # fmt: skip
        _curves(panels[0], history, report)
        _reliability(panels[1], report)
        if report["confusion"] is not None:
            _confusion(panels[2], report)
        plots.save(figure, "report", folder)
        plt.close(figure)


def _curves(ax, history, report):
    epochs = np.arange(1, len(history["accuracy"]) + 1)
    for name, part in (("accuracy", "train"), ("val_accuracy", "validation")):
        ax.plot(epochs, 100 * np.asarray(history[name]), label=part, color=plots.color(part), marker=".")
    ax.set(xlabel="epoch", ylabel="accuracy (%)", title=f"Test accuracy {report['top_1']:.1%}")
    ax.legend()


def _reliability(ax, report):
    sure, share, _ = np.transpose(report["calibration"])
    ax.plot([0, 1], [0, 1], color=plots.GREY, linewidth=1)
    ax.plot(sure, share, "o-", color=plots.color("test"))
    title = f"Confidence is off by {report['calibration_error']:.1%}"
    ax.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title=title)


def _confusion(ax, report):
    matrix, names = np.asarray(report["confusion"]), report["class_names"]
    ax.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        ax.set_yticks(range(len(names)), names, fontsize=5)
    ax.set(xlabel="predicted", ylabel="right", title="Confusion")
    ax.grid(visible=False)
