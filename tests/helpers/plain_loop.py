"""A plain training loop, the reference for every fast path.

Hugging Face's own eager forward pass of every layer at every step, the teacher's too, all examples padded to the
longest of all, formulas from their definitions, a dense optimizer that is not fused. Only the order of the examples
is the package's.
"""

from __future__ import annotations

import copy
from itertools import count

import numpy as np
import torch
from torch.nn.functional import log_softmax, normalize

from ikd_ray.data.batches import training_batches


def padded_examples(split, rows, pad_id):
    """Return ids, segments, mask and labels, read one example after the other."""
    longest = int(split.lengths.max())
    ids = torch.full((len(rows), longest), pad_id)
    segments, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, row in enumerate(rows):
        start, end = int(split.input_ids.offsets[row]), int(split.input_ids.offsets[row + 1])
        ids[place, : end - start] = torch.from_numpy(np.array(split.input_ids.values[start:end])).long()
        segments[place, : end - start] = torch.from_numpy(
            np.array(split.token_type_ids.values[start:end])
        ).long()
        mask[place, : end - start] = 1
    return ids, segments, mask, torch.from_numpy(np.array(split.labels[rows]))


def forward(model, ids, segments, mask):
    return model(ids, mask, token_type_ids=segments, output_attentions=True, output_hidden_states=True)


def through_float16(tensor):
    return tensor.half().to(tensor.dtype)


def attention_kl(student, teacher, mask):
    """Equation 1: mean over examples and heads of 1/L sum_i KL(teacher_i || student_i)."""
    values = []
    for s, t, m in zip(student, teacher, mask.bool(), strict=True):
        s, t = s[:, m][:, :, m], t[:, m][:, :, m]
        values.append((torch.xlogy(t, t) - t * s.log()).sum((1, 2)).mean() / m.sum())
    return torch.stack(values).mean()


def cls_cosine(student, teacher):
    """Equation 2."""
    return (1 - (normalize(student) * normalize(teacher)).sum(-1) ** 2).mean()


def total_loss(stage, output, taught, mask, labels, matched):
    total = torch.zeros((), dtype=output.logits.dtype)
    for layer in stage.layers:
        source = matched[layer - 1]
        maps = output.attentions[layer - 1], through_float16(taught.attentions[source - 1])
        total = total + stage.kl * attention_kl(*maps, mask)
        vectors = output.hidden_states[layer][:, 0], through_float16(taught.hidden_states[source][:, 0])
        total = total + stage.cos * cls_cosine(*vectors)
    if stage.soft:
        t = stage.temperature
        p = (through_float16(taught.logits) / t).softmax(-1)
        total = total - stage.soft * t**2 * (p * log_softmax(output.logits / t, -1)).sum(-1).mean()
    if stage.hard:
        gold = log_softmax(output.logits, -1)[torch.arange(len(labels)), labels]
        total = total - stage.hard * gold.mean()
    return total


def trainable_names(model, stage) -> list[str]:
    prefixes = [f"bert.encoder.layer.{layer - 1}." for layer in stage.trains]
    prefixes += ["bert.pooler.", "classifier."] if stage.head else []
    prefixes += ["bert.embeddings."] if stage.embeddings else []
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))]


def train_stages(student, teacher, stages, trial, data, matched):
    """Train a copy of `student`, a Hugging Face BERT classifier, and yield its state after each stage."""
    student, teacher = copy.deepcopy(student).eval(), copy.deepcopy(teacher).eval()
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    for stage in stages:
        names = trainable_names(student, stage)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in names)
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, foreach=False, fused=False)
        per_epoch = len(training_batches(data.train.lengths, trial.batch_size))
        steps = count()
        for epoch in range(1, stage.epochs + 1):
            plan = training_batches(data.train.lengths, trial.batch_size, trial.seed, stage.name, epoch)
            for rows in plan:
                ids, segments, mask, labels = padded_examples(data.train, rows, data.pad_id)
                with torch.no_grad():
                    taught = forward(teacher, ids, segments, mask)
                output = forward(student, ids, segments, mask)
                loss = total_loss(stage, output, taught, mask, labels, matched)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                rate = trial.learning_rate * learning_rate_factor(stage, next(steps), per_epoch)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
        yield {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}


def learning_rate_factor(stage, step, per_epoch):
    """Return the factor of linear warm-up over a tenth of the stage (or of its first epoch) and linear decay."""
    total = stage.epochs * per_epoch
    warmup = max(1, round(0.1 * (total if stage.decays else per_epoch)))
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / (total - warmup) if stage.decays else 1.0
