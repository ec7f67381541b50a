"""The run of tests/training/small_run.py as a config file; the data's path comes with --set."""

import pathlib

from tests.training import small_run


def get_config(arg):
    run = small_run.config(
        pathlib.Path(arg),
        model__layers=1,
        model__perceptual_dim=0,
        loss__perceptual_weight=0.0,
        optimizer__decay="constant",
        train__steps=4,
        train__log_every=1,
        train__checkpoint_every=2,
    )
    return run.to_dict()
