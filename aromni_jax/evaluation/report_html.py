"""Pages that hold everything and fetch nothing: the style, script and security policy that all reports share.

Needs jinja2 (extra `demo`). Charts are inline SVG, media are data URIs; a content security policy with the hash of the
page's own script and style keeps the browser from fetching or running anything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aromni_jax.errors import UserError

_HERE = Path(__file__).parent


def renderer(template: str) -> Callable[[Mapping[str, Any]], bytes]:
    """What turns the variables of a template of this folder into a page; UserError when jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise UserError("the report needs jinja2: type  pip install 'aromni_jax[demo]'") from None

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = (environment.get_template(f"report_{part}.html").render() for part in ("style", "script"))
    frame = {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script)}
    body = environment.get_template(template)
    return lambda page: body.render({**page, **frame}).encode("utf-8", "replace")  # names of files may be no text


def _hash(text: str) -> str:
    """Of an inline script or style, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
