"""Internal knowledge distillation of BERT-family encoders as a Ray sweep.

`ikd_ray/README.md` describes the rooms (subpackages) of this package and the order in which they import each other.
"""
