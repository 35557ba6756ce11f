"""Internal knowledge distillation of BERT-family encoders as a Ray sweep.

`ikd_ray/README.md` describes the subpackages and the order in which they import each other.
"""
