"""A run of 400 quick steps, so that there is a middle to be disturbed in; the data's path comes with --set."""

import pathlib

from tests.training import small_run


def get_config(arg):
    run = small_run.config(
        pathlib.Path(arg),
        model__dim=64,
        model__ffn_dim=256,
        model__perceptual_dim=0,
        loss__perceptual_weight=0.0,
        optimizer__decay="constant",
        train__steps=400,
        train__log_every=10,
        train__checkpoint_every=50,
    )
    return run.to_dict()
