"""The run of small_run.py as a config file, for tests that start processes; the data's path comes with --set.

:long is 400 quick steps, so that there is a middle to be disturbed in.
"""

import pathlib

from tests.training import small_run

SIZES = {
    "": {"model__layers": 1, "train__steps": 4, "train__log_every": 1, "train__checkpoint_every": 2},
    "long": {
        "model__dim": 64,
        "model__ffn_dim": 256,
        "train__steps": 400,
        "train__log_every": 10,
        "train__checkpoint_every": 50,
    },
}


def get_config(arg):
    run = small_run.config(
        pathlib.Path("unknown"),
        model__perceptual_dim=0,
        loss__perceptual_weight=0.0,
        optimizer__decay="constant",
        **SIZES[arg],
    )
    return run.to_dict()
