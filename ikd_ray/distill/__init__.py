"""Distillation in plain PyTorch: losses, regimes, teacher and student, targets, the training loop."""
