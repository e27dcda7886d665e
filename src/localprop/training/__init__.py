"""Epochs around the training step.

`config` is the record of a run, `build` makes its data set and its learner, `trainer` trains it,
`checkpoint` saves and restores it, `run_directory` keeps its files, and `run` is the whole run.

Nothing is imported here, so that the command line can read `Config` without importing torch.
"""
