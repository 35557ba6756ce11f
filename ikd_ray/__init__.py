"""Internal knowledge distillation of BERT-family encoders as a Ray sweep."""
