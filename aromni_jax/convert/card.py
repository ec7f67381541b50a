"""The README of an exported folder."""

from __future__ import annotations

from aromni_jax.convert.extra import EXTRA_FILE
from aromni_jax.convert.manifest import MANIFEST
from aromni_jax.convert.source import Source
from aromni_jax.model import parameter_counts

_LICENCES = """Weights that descend from Chameleon fall under the Chameleon Research License (non-commercial).
Say here what yours descend from, and what data they were trained on."""

_UPSTREAM = """```python
from transformers import ChameleonForConditionalGeneration

model = ChameleonForConditionalGeneration.from_pretrained("THIS_FOLDER")
```

`transformers` sets the logits of image ids to their minimum, so it reads pictures but does not draw them; speech ids
are untouched."""

_NO_VQ = """ This model brings no VQ encoder: `transformers` says that `model.vqmodel.*` is new.
Give it ids, not pixels."""

_REFERENCE = """This is the layout of AR-Omni's and Anole's own code: query and key rows in interleaved pairs, one
QK-norm vector for all heads. `transformers` from PyPI does not read it: convert with `--to hf` for that."""


def model_card(source: Source, layout: str, dtype: str) -> str:
    """Markdown with the front matter that the Hub reads."""
    config, vocabulary = source.config, source.vocabulary
    counts = parameter_counts(config)
    total = counts["total"] - counts.get("perceptual", 0)
    rows = {
        "parameters": f"{total:,}",
        "layers, width, heads / key heads": f"{config.layers}, {config.dim}, {config.heads} / {config.kv_heads}",
        "norm order": config.norm_order,
        "ids": f"{vocabulary.size:,} (vocabulary {vocabulary.fingerprint()})",
        "image codes": f"{vocabulary.image.start}..{vocabulary.image.stop - 1}, {vocabulary.image_tokens} per picture",
        "speech codes": f"{vocabulary.speech.start}..{vocabulary.speech.stop - 1}",
        "stored as": dtype,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    pixels = "" if source.passengers else _NO_VQ
    return f"""---
library_name: transformers
tags: [any-to-any, speech, text-to-image, chameleon, aromni_jax]
---

# A joint decoder of text, images and speech

One autoregressive decoder that reads and writes text, image codes and speech codes as one stream of tokens. Exported
from `aromni_jax`.

| | |
|---|---|
{table}

## Load it

{_UPSTREAM + pixels if layout == "hf" else _REFERENCE}

With `aromni_jax`: `load_model("THIS_FOLDER")`. `{MANIFEST}` holds the SHA-256 of the weight files;
`{EXTRA_FILE}`, where there is one, what only training uses.

## Licence

{_LICENCES}
"""
