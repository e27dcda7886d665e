"""Epochs around the step: what a run is (config), how it is trained (trainer), kept (checkpoint) and written (rundir).

Nothing is imported here, so that the command line can read :class:`~localprop.training.config.Config` without torch.
"""
