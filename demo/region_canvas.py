"""The picture on which one draws boxes, and the strip of examples: two HTML components with their own script.

gradio_image_annotation 0.5.6 was tried and left: its canvas is out of reach for the keyboard and shows a small picture
small (docs/demo.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_FOLDER = Path(__file__).resolve().parent
_CANVAS = """
<div class="rc">
  <div class="rc-stage"><div class="rc-frame"><img class="rc-image" alt="" draggable="false">
  <div class="rc-layer" role="group" aria-label="Boxes on the picture"></div></div></div>
  <div class="rc-bar">
    <div class="rc-chips" role="group" aria-label="Choose a box"></div>
    <button type="button" class="rc-button rc-add">+ Box</button>
    <button type="button" class="rc-button rc-delete">Delete</button>
    <button type="button" class="rc-button rc-clear">Clear</button>
  </div>
  <fieldset class="rc-fields" disabled>
    <legend class="rc-legend">No box chosen</legend>
    <label>x0 <input type="number" inputmode="numeric" data-side="0" step="1" min="0"></label>
    <label>y0 <input type="number" inputmode="numeric" data-side="1" step="1" min="0"></label>
    <label>x1 <input type="number" inputmode="numeric" data-side="2" step="1" min="0"></label>
    <label>y1 <input type="number" inputmode="numeric" data-side="3" step="1" min="0"></label>
  </fieldset>
</div>
"""
_STRIP = '<div class="rc-strip" role="group" aria-label="Examples"></div>'


def region_canvas(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The picture with its boxes.

    Its value, sent by the server, is {"picture": data URI, "width", "height", "alt", "boxes", "labels", "selected"}, or
    without a picture {"boxes", "labels", "selected", "from_server": true}. The page sets it to {"boxes": [[x0, y0, x1,
    y1], ...] in pixels of the picture, "selected": index or null, "revision": int} and sends the event "input"; the
    server answers by the property `answer`: {"labels", "revision"}, which leaves later boxes alone.
    """
    return _component(_CANVAS, "region_canvas.js", value, {"answer": None, **options})


def example_strip(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """Buttons with thumbnails: value is {"items": [{"picture": data URI, "title"}], "chosen": index or null}.

    A press sends the event "select" with {"index"}.
    """
    return _component(_STRIP, "example_strip.js", value, options)


def _component(template: str, script: str, value: dict[str, Any] | None, options: dict[str, Any]) -> gr.HTML:
    """A component of our own: a function and no subclass, for which gradio would write a .pyi beside this file."""
    code = (_FOLDER / script).read_text(encoding="utf-8")
    return gr.HTML(value=value, html_template=template, js_on_load=code, apply_default_css=False, **options)
