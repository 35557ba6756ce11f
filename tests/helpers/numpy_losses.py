"""The losses from their definitions, in float64 NumPy: one example, head and row at a time.

Nothing here imports the package, and nothing is vectorised over what the formulas sum over, so that a wrong
axis or a wrong divisor in the package cannot be repeated here by habit.
"""

from __future__ import annotations

import math

import numpy as np


def log_softmax(row) -> list[float]:
    row = [float(value) for value in row]
    top = max(row)
    norm = top + math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - norm for value in row]


def soft_label_loss(student, teacher, temperature) -> float:
    """Mean over examples of t^2 * H(softmax(z_T / t), softmax(z_S / t)); one logit: mean squared error."""
    total = 0.0
    for z_s, z_t in zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64), strict=True):
        if len(z_s) == 1:
            total += (z_s[0] - z_t[0]) ** 2
            continue
        log_q = log_softmax(z_s / temperature)
        log_p = log_softmax(z_t / temperature)
        total -= temperature**2 * math.fsum(math.exp(p) * q for p, q in zip(log_p, log_q, strict=True))
    return total / len(student)


def hard_label_loss(logits, labels) -> float:
    """Mean over examples of -log softmax(z)[label]; one logit: mean squared error against the score."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        total += (row[0] - float(label)) ** 2 if len(row) == 1 else -log_softmax(row)[int(label)]
    return total / len(logits)


def attention_kl_one(student, teacher, length) -> float:
    """One example, (heads, P, P), P at least L: mean over heads of 1/L sum_i sum_j p_ij log(p_ij / q_ij)."""
    per_head = []
    for a_s, a_t in zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64), strict=True):
        rows = []
        for i in range(length):
            terms = [
                a_t[i, j] * (math.log(a_t[i, j]) - math.log(a_s[i, j]))
                for j in range(length)
                if a_t[i, j] > 0
            ]
            rows.append(math.fsum(terms))
        per_head.append(math.fsum(rows) / length)
    return math.fsum(per_head) / len(per_head)


def attention_kl(student, teacher, lengths) -> float:
    return math.fsum(
        attention_kl_one(s, t, n) for s, t, n in zip(student, teacher, lengths, strict=True)
    ) / len(lengths)


def cls_cosine(student, teacher) -> float:
    """Mean over examples of 1 - cos(h_T, h_S)^2."""
    total = 0.0
    for h_s, h_t in zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64), strict=True):
        dot = math.fsum(h_s * h_t)
        total += 1.0 - dot**2 / (math.fsum(h_s * h_s) * math.fsum(h_t * h_t))
    return total / len(student)
