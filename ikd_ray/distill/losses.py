"""The four losses of internal knowledge distillation.

Source: Aguilar et al., "Knowledge Distillation from Internal Representations", AAAI 2020 (arXiv 1910.03723), sections
3.1 and 3.2. Each loss is a mean over the B examples of a batch, a scalar in float32 or wider whatever the inputs' type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from ikd_ray.data.dataset import UNLABELLED


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = _wide(student)
    return student, teacher.to(student.dtype)


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of the softened student against the softened teacher, times temperature squared.

    The factor keeps the gradient's size independent of the temperature (Hinton et al., arXiv 1503.02531, section 2).
    With a single logit (regression) it is the mean squared error, and the temperature does not apply.

    Args:
        student_logits: (B, labels).
        teacher_logits: (B, labels).
        temperature: divides both models' logits.
    """
    student_logits, teacher_logits = _alike(student_logits, teacher_logits)
    if student_logits.shape[-1] == 1:
        return F.mse_loss(student_logits, teacher_logits)
    targets = F.softmax(teacher_logits / temperature, dim=-1)
    return F.cross_entropy(student_logits / temperature, targets) * temperature**2


def hard_label_loss(logits: Tensor, labels: Tensor, some_unlabelled: bool = False) -> Tensor:
    """Compute the cross-entropy against the gold classes, or the mean squared error with a single logit (regression).

    Examples without a label count as 0 in the mean over all B examples, so that a labelled one weighs as much as
    without them.

    Args:
        logits: (B, labels).
        labels: (B,), class indices or, for regression, scores; `UNLABELLED` or nan for none.
        some_unlabelled: whether labels may be missing.
    """
    logits = _wide(logits)
    if logits.shape[-1] == 1:
        labels, predictions = labels.to(logits.dtype), logits[:, 0]
        if some_unlabelled:
            # Not by a product: the gradient through nan is nan even where its weight is 0.
            labels = torch.where(labels.isnan(), predictions.detach(), labels)
        return F.mse_loss(predictions, labels)
    if some_unlabelled:
        return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / len(labels)
    return F.cross_entropy(logits, labels)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean over examples and heads of (1/L) sum_i KL(teacher[i] || student[i]), i the query positions.

    L is each sequence's own length; padded rows and columns count for nothing (equation 1 of the paper).

    Args:
        student: attention probabilities, (B, heads, L, L), rows summing to 1 over the valid columns.
        teacher: the same of the teacher.
        mask: (B, L), 1 for tokens and 0 for padding.
    """
    student, teacher = _alike(student, teacher)
    mask = mask.to(student.dtype)
    # A probability that underflowed to zero would make the divergence infinite.
    log_student = student.clamp_min(torch.finfo(student.dtype).tiny).log()
    rows = (torch.xlogy(teacher, teacher) - teacher * log_student).mul(mask[:, None, None, :]).sum(-1)
    per_example = rows.mul(mask[:, None, :]).sum(-1).mean(1) / mask.sum(-1)
    return per_example.mean()


def cls_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over examples of 1 - cos(teacher, student)^2 of the [CLS] vectors (equation 2 of the paper).

    It does not depend on the vectors' sign and length.

    Args:
        student: (B, hidden).
        teacher: (B, hidden).
    """
    cosine = F.cosine_similarity(*_alike(student, teacher), dim=-1)
    return (1 - cosine.square()).mean()
