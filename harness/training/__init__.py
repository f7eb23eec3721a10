"""Training a small language model with any registered loss, and comparing the curves.

`config` is what a training file says; `corpus`, `dataset`, `tokenizer` and `batches` make tokens of text; `model`,
`trainer`, `checkpoint` and `execution` are the only files that import torch; `curve_log` and `training_run` are what is
on the disk; `curves`, `parity` and `report` read it.
"""
