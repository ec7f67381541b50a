"""Arrays by name from the files of PyTorch models; the only place where PyTorch is imported, when a file needs it."""

import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from aromni_jax.errors import UserError


def read_state(path: Path) -> dict[str, np.ndarray]:
    """A `.safetensors` file, or a PyTorch or Lightning checkpoint (its "state_dict", if it has one).

    A checkpoint is read without running any code of its own: objects that are no weights (Lightning keeps options and
    the states of its helpers beside them) come as empty placeholders. Floating-point arrays come as float32.

    Raises:
      UserError: no such file, not one of these, damaged, or PyTorch is needed and not installed.
    """
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except Exception as error:  # the library raises kinds of its own
            raise UserError(f"cannot read {path} ({_line(error)}); fetch it again") from error
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch file: pip install 'aromni_jax[torch]' to read it") from error
    try:
        archive = zipfile.is_zipfile(path)  # else of PyTorch before 1.6
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else []
        with torch.serialization.safe_globals([(_Placeholder, name) for name in others]):
            # Mapped, so that what is not looked at (optimizer, discriminators) is not read.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a dozen kinds, by what is wrong with the file
        # PyTorch's own words advise to switch the check off.
        unsafe = "weights only load failed" in str(error).lower()
        reason = (
            "it holds more than weights; save its state_dict alone" if unsafe else f"{_line(error)}; fetch it again"
        )
        raise UserError(f"cannot read {path}: {reason}") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights by name; give a checkpoint with a state_dict")
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


class _Placeholder:
    """What stands for an object of any class that PyTorch does not know to be harmless."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
