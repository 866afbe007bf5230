"""Softmax cross-entropy and its gradient in one pass over the rows."""

from __future__ import annotations

import numpy as np

from ...spec import ClassGeometry, Request
from ...spec.sentences import bad_label
from .common import geometry, row, store, wide
from .indices import first_outside


def softmax_cross_entropy(request: Request, inputs: tuple, outputs: tuple) -> None:
    """Mean over rows of log(sum exp(x - max)) - (x_label - max); gradient (softmax - target) / rows.

    With smoothing e the target is (1 - e) onehot + e / classes and the loss weighs the classes alike. The mean over no
    rows is NaN.
    """
    logits, labels = inputs
    loss, grad_logits = outputs
    g = geometry(request, ClassGeometry)
    _check_labels(request, labels)
    if g.rows == 0:
        store(loss, np.array(np.nan))
        return
    smoothing = request.option("label_smoothing")
    x = wide(logits)
    shifted = x - x.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    log_softmax = shifted - np.log(total)
    every_row = np.arange(g.rows)
    row_loss = -(1 - smoothing) * log_softmax[every_row, labels]
    grad = exponentials / total
    grad[every_row, labels] -= 1 - smoothing
    if smoothing:  # without it, a logit of -inf at another class must not meet a weight of 0
        row_loss -= smoothing * log_softmax.mean(axis=1)
        grad -= smoothing / g.classes
    store(loss, row_loss.mean())
    store(grad_logits, grad / g.rows)


def _check_labels(request: Request, labels: np.ndarray) -> None:
    classes = geometry(request, ClassGeometry).classes
    place = first_outside((labels < 0) | (labels >= classes))
    if place is not None:
        raise bad_label(request, int(labels[place]), place[0])


ROWS = (row("softmax_cross_entropy", softmax_cross_entropy),)
