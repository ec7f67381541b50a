"""What Hugging Face and Meta folders have in common: when they are opened, and when they are written."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.convert import assets as files
from aromni_jax.convert.extra import EXTRA_FILE, Extra
from aromni_jax.convert.fields import Fields
from aromni_jax.convert.layouts import Piece, least_groups
from aromni_jax.convert.manifest import Manifest
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import OFFICIAL_SIZE, JointVocabulary

# What foreign files have no place for stands under this key in their JSON.
OURS = "aromni"
_NOTED = (
    "qk_norm_eps", "qk_norm_groups", "compute_dtype", "attention", "remat", "scan_layers", "perceptual_dim",
    "logits_tile",
)  # fmt: skip


class Foreign(Source):
    """A folder of another project's format. Subclasses open their files, then call `_describe`."""

    def _describe(
        self,
        shared: Mapping[str, Any],
        values: Fields,
        dtypes: Iterable[np.dtype],
        qk_norm_groups: int,
        vocabulary: JointVocabulary | None,
    ) -> None:
        """Config, vocabulary, metadata and extras, from what the foreign file says and what we once noted in it.

        Args:
          shared: keys of a model config that the format has itself.
          values: of its JSON file.
          dtypes: of the decoder's tensors; the widest is the config's.
          qk_norm_groups: as the tensors have them.
        """
        notes = values.object(OURS)
        noted = {key: value for key, value in notes.object("model").values.items() if key in _NOTED}
        groups = noted.pop("qk_norm_groups", None)
        if isinstance(groups, int) and (groups == 0 or (qk_norm_groups and groups % qk_norm_groups == 0)):
            qk_norm_groups = groups  # else the tensors have gone ways of their own since it was noted
        if noted.get("perceptual_dim") and not (self.path / EXTRA_FILE).is_file():
            noted["perceptual_dim"] = 0
            self.warnings.append(f"{self.path / EXTRA_FILE} is missing: the perceptual projection is lost")
        held = "bfloat16" if {dtype.name for dtype in dtypes} == {"bfloat16"} else "float32"
        known = {"compute_dtype": held, **noted, "param_dtype": held, "qk_norm_groups": qk_norm_groups, **shared}
        try:
            self.config = RunConfig.from_dict({"model": known}).model
        except UserError as error:
            raise UserError(f"{values.where}: {error}") from None
        self._manifest = Manifest(self.path)
        self._extra = Extra(self.path, self._manifest)
        self._extra.check(self.config)
        self.vocabulary = _vocabulary(notes.object("vocabulary"), self.config.vocab_size, vocabulary, self.path)
        files.check_token_ids(self.assets, self.vocabulary)
        self.metadata = {"world": None, "template": None, **notes.object("metadata").values}

    def close(self) -> None:
        self._extra.close()


def noted(source: Source) -> dict[str, Any]:
    """What is written under `OURS`, without the paths of the machine that trained the model."""
    metadata = dict(source.metadata)
    recipe = metadata.get("recipe")
    if isinstance(recipe, Mapping):
        private = {"data": "path", "train": "init_from"}
        metadata["recipe"] = {
            name: {key: value for key, value in group.items() if key != private.get(name)}
            if isinstance(group, Mapping)
            else group
            for name, group in recipe.items()
        }
    return {
        "model": {key: getattr(source.config, key) for key in _NOTED},
        "vocabulary": source.vocabulary.to_dict(),
        "metadata": metadata,
    }


def norm_groups(vectors: Iterable[np.ndarray]) -> int:
    """Groups of heads that share their QK-norm vectors in all tensors [heads, head_dim]; 0 if there are none such.

    Weights of the 7B release must stay such that one vector serves all, or they could not go back to its own code.
    """
    found = [(least_groups(array), len(array)) for array in vectors]
    most, fewest_heads = max(groups for groups, _ in found), min(heads for _, heads in found)
    return most if most <= fewest_heads and all(most % groups == 0 for groups, _ in found) else 0


def check_expressible(config: ModelConfig, where: pathlib.Path, layout: str) -> None:
    """UserError if a model has what neither Hugging Face's nor Meta's code can be told."""
    if config.head_dim * config.heads != config.dim:
        raise UserError(
            f"{where}: head_dim {config.head_dim} is not dim / heads ({config.dim} / {config.heads}), all that the "
            f"layout {layout} can hold"
        )
    if config.qk_norm_eps != 1e-5:
        raise UserError(f"{where}: qk_norm_eps is {config.qk_norm_eps}; in the layout {layout} it is always 1e-05")


def check_layers(layers: int, tensors: int, where: str) -> None:
    """UserError if a config claims more layers than the checkpoint can hold: tables are built from that number."""
    if layers > tensors:
        raise UserError(f"{where}: claims {layers:,} layers; the checkpoint has {tensors} tensors")


def label(piece: Piece, source: Source) -> str:
    """For messages about one piece of a source."""
    return f"{source.path}, {piece.label}"


def _vocabulary(noted: Fields, size: int, given: JointVocabulary | None, where: pathlib.Path) -> JointVocabulary:
    """Noted beside the weights, given by the caller, or the official layout by its size."""
    own = JointVocabulary.from_dict(noted.values) if noted.values else None
    if own and given and own.fingerprint() != given.fingerprint():
        raise UserError(f"{where}: made with vocabulary {own.fingerprint()}, but {given.fingerprint()} is in use")
    found = own or given
    if found is None and size != OFFICIAL_SIZE:
        raise UserError(
            f"{where}: has {size} ids; the official layout has {OFFICIAL_SIZE:,}: say which vocabulary it is"
        )
    found = found or JointVocabulary.aromni()
    if found.size != size:
        raise UserError(f"{where}: has {size} ids, its vocabulary {found.size}")
    return found
