"""What a run trains: whole parameters, or in a table over ids the rows of one modality."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping

import jax

from aromni_jax.config import RunConfig
from aromni_jax.errors import UserError
from aromni_jax.model.parameters import ADAPTER, Params, ParamSpec, flatten, nest, parameter_table
from aromni_jax.vocabulary import IdRange, JointVocabulary

_PROJECTION = "perceptual/"


@dataclasses.dataclass(frozen=True)
class Trained:
    """The part of the parameters that gradients, optimiser and updates are about; the rest is left alone.

    Attributes:
      table: of every parameter that is trained, with the shape of what is trained of it.
      ids: of those that are trained in part: the ids whose rows are.
    """

    table: Mapping[str, ParamSpec]
    ids: Mapping[str, IdRange]

    def take(self, params: Params) -> Params:
        """What is trained of `params`, as a nested dict. Traceable, as `put` is."""
        flat = flatten(params)

        def part(path: str) -> jax.Array:
            ids = self.ids.get(path)
            return (
                flat[path]
                if ids is None
                else jax.lax.slice_in_dim(flat[path], ids.start, ids.stop, axis=self._axis(path))
            )

        return nest({path: part(path) for path in self.table})

    def put(self, params: Params, values: Params) -> Params:
        """`params` with `values` (of `take`) in their places."""
        flat = flatten(params)
        for path, value in flatten(values).items():
            if path in self.ids:
                start, axis = self.ids[path].start, self._axis(path)
                value = jax.lax.dynamic_update_slice_in_dim(flat[path], value, start, axis)
            flat[path] = value
        return nest(flat)

    def _axis(self, path: str) -> int:
        return self.table[path].axes.index("vocab")


def trained(config: RunConfig, vocabulary: JointVocabulary) -> Trained:
    """What `train.trainable` and `loss.projection` name.

    Raises:
      UserError: a pattern that names no parameter, an unknown modality, or rows of a parameter that has none by id.
    """
    table = parameter_table(config.model)
    patterns = config.train.trainable or (f"*{ADAPTER}/*" if config.model.lora.rank else "*",)
    chosen: dict[str, ParamSpec] = {}
    parts: dict[str, IdRange] = {}
    for pattern in patterns:
        names, _, modality = pattern.partition("@")
        found = [path for path in fnmatch.filter(table, names) if not path.startswith(_PROJECTION)]
        if not found:
            raise UserError(f"config key train.trainable: {pattern!r} names no parameter; there are {', '.join(table)}")
        for path in found:
            if path in chosen and (modality or path in parts):
                raise UserError(f"config key train.trainable: {pattern!r} names {path}, as another pattern does")
            chosen[path] = table[path]
            if modality:
                parts[path] = _ids(pattern, table[path], modality, vocabulary)
                chosen[path] = _cut(table[path], len(parts[path]))
    if config.loss.projection == "trained" and config.loss.perceptual_weight:
        chosen |= {path: spec for path, spec in table.items() if path.startswith(_PROJECTION)}
    return Trained({path: chosen[path] for path in table if path in chosen}, parts)


def _ids(pattern: str, spec: ParamSpec, modality: str, vocabulary: JointVocabulary) -> IdRange:
    ranges = {"text": vocabulary.text, "image": vocabulary.image, "speech": vocabulary.speech}
    if modality not in ranges or "vocab" not in spec.axes:
        raise UserError(
            f"config key train.trainable: {pattern!r}: write head/kernel or embedder/embedding before the @, and one "
            f"of {', '.join(ranges)} behind it"
        )
    return ranges[modality]


def _cut(spec: ParamSpec, count: int) -> ParamSpec:
    shape = tuple(count if axis == "vocab" else size for axis, size in zip(spec.axes, spec.shape, strict=True))
    return dataclasses.replace(spec, shape=shape)
