"""What a model says where it is graded, and how good that is, by the measures of classification (SLP3, ch. 4)."""

from collections.abc import Sequence

import numpy as np
import torch

from data.batches import in_order
from data.examples import Example
from model.gpt import GPT, evaluating
from model.head import Classes


@torch.no_grad()
def predicted(model: GPT, examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """The likeliest class, or token, at each graded position: a list an example. The model's mode is as before
    afterwards."""
    device, said = model.wte.weight.device, []
    with evaluating(model):
        for batch in in_order(examples, batch_size):
            inputs, _, graded, positions = (tensor.to(device) for tensor in batch)
            likeliest = model(inputs, graded, positions).argmax(-1)  # (N,)
            said += [row.tolist() for row in likeliest.split(graded.sum(-1).tolist())]
    return said


def told_right(model: GPT, examples: Sequence[Example], batch_size: int) -> float:
    """The share of what is graded whose likeliest class, or token, is the target."""
    truth = [int(target) for example in examples for target in example.targets[example.graded]]
    said = [answer for answers in predicted(model, examples, batch_size) for answer in answers]
    return sum(one == other for one, other in zip(truth, said, strict=True)) / len(truth)


def confusion(truth: Sequence[int], said: Sequence[int], classes: int) -> np.ndarray:
    """How often each class, a row, was taken for each class, a column: (classes, classes)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.array(truth), np.array(said)), 1)
    return counts


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class: the share of those taken for it that are it, the share of it that was found, and their harmonic
    mean (SLP3, ch. 4); 0 where it would be 0 / 0. (classes,) each, from a confusion."""
    right, taken, there = counts.diagonal(), counts.sum(0), counts.sum(1)
    return right / np.maximum(taken, 1), right / np.maximum(there, 1), 2 * right / np.maximum(taken + there, 1)


def accuracy(counts: np.ndarray) -> float:
    """The share that was told right."""
    return float(counts.trace() / counts.sum())


def macro_f1(counts: np.ndarray) -> float:
    """The mean of the F1 of all classes, rare ones counting as much as common ones; without classes that neither were
    there nor were said."""
    return float(precision_recall_f1(counts)[2][counts.sum(0) + counts.sum(1) > 0].mean())


def judged(model: GPT, examples: Sequence[Example], batch_size: int, classes: Classes) -> np.ndarray:
    """The confusion of a classifier, over everything that is graded."""
    truth = [int(target) for example in examples for target in example.targets[example.graded]]
    said = [answer for answers in predicted(model, examples, batch_size) for answer in answers]
    return confusion(truth, said, len(classes.names))
