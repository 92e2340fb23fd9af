"""The RegionMed-CLIP demo: draw boxes on a picture and see what each says, next to what the whole picture says.

Run `python app.py`. The model is the one that came with this folder; REGIONMED_MODEL names another folder or Hub id.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from answers import Answers, Visit, readable
from region_canvas import example_strip, region_canvas
from region_model import RegionIndex, RegionModel
from settings import FOLDER, model_source, read_examples

MAX_UPLOAD = "64mb"
DEFAULT_TEXTS = "pulmonary nodule\nconsolidation\npleural effusion\npneumothorax\ncardiomegaly\nno focal abnormality"
HEAD = """
<header class="top"><h1>RegionMed-CLIP <small>one picture, many answers</small></h1>
<p>A plain CLIP gives one answer for a whole picture. This one also answers for every box that you draw.</p></header>
<p class="warning" role="note"><b>Research demo, not a medical device.</b> Do not use it for diagnosis, and do not
upload pictures of patients.</p>
"""
HELP = """
<details class="help"><summary>How to draw, also without a mouse; what can be opened</summary>
<p>Drag on the picture to draw a box. Click a box to choose it; drag it to move it, drag a corner to resize it.
Shift + drag draws inside a chosen box.</p>
<p>By keyboard: Tab to a box, arrows move it, Shift + arrows resize it (with Ctrl five times as far), Delete removes it.
“+ Box” puts a new box in the middle, and the four fields take its sides in pixels.</p>
<p>“Upload file” opens PNG, JPEG, TIFF, WebP, DICOM and NIfTI.</p></details>
"""


class Page:
    """The components of the page, laid out; `connect` gives them their actions."""

    def __init__(self, answers: Answers):
        self.answers = answers
        first = self._first()
        self.visit = gr.State(first[0])
        gr.HTML(HEAD, apply_default_css=False)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=320):
                self._lay_out_picture(*first[1:3])
            with gr.Column(scale=5, min_width=320), gr.Tabs():
                self._lay_out_answers(*first[3:6])
        gr.HTML(_about(answers), apply_default_css=False)

    def _first(self) -> tuple[Any, ...]:
        """What the page shows before anything is pressed: the first example, read."""
        if self.answers.examples:
            return self.answers.open_example(0)
        return Visit(), None, {"items": []}, DEFAULT_TEXTS, "", DEFAULT_TEXTS.partition("\n")[0]

    def _lay_out_picture(self, canvas: Any, strip: Any) -> None:
        has_examples = bool(self.answers.examples)
        self.strip = example_strip(strip, elem_id="examples", visible=has_examples)
        self.canvas = region_canvas(canvas, elem_id="canvas")
        self.note = gr.HTML("", elem_id="note", apply_default_css=False)
        with gr.Row(elem_classes="actions"):
            self.suggest = gr.Button("Suggest boxes", variant="primary", elem_id="suggest", min_width=120)
            self.upload = gr.UploadButton("Upload file", elem_id="upload", min_width=120)
        gr.HTML(HELP, apply_default_css=False)
        with gr.Accordion("Options", open=False, elem_id="options"):
            start = self.answers.model.proposal_threshold
            label = "Least score of a suggested box"
            self.threshold = gr.Slider(0.05, 0.95, value=start, step=0.05, label=label)
            with gr.Row():
                windows = self.answers.windows
                self.window = gr.Dropdown(list(windows), value=windows[0], label="CT window of 16-bit files")
                self.number = gr.Number(None, label="Frame or slice, from 0 (Enter)", minimum=0)

    def _lay_out_answers(self, texts: str, cards: str, text: str) -> None:
        with gr.Tab("Read boxes", id="read"):
            self.cards = gr.HTML(cards, elem_id="cards", apply_default_css=False)
            label = "Texts to compare, one a line"
            self.texts = gr.Textbox(texts, label=label, lines=6, max_lines=12, elem_id="texts")
        with gr.Tab("Find text", id="find"):
            label = "What to look for"
            self.text = gr.Textbox(text, label=label, max_lines=3, submit_btn="Show where", elem_id="text")
            self.heat = gr.HTML("", elem_id="heat", apply_default_css=False)
        with gr.Tab("Similar", id="search", visible=self.answers.index is not None):
            self.search_box = gr.Button("Search by the chosen box", variant="primary", elem_id="search-box")
            label = "or by a text"
            self.query = gr.Textbox(text, label=label, max_lines=3, submit_btn="Search", elem_id="query")
            self.cases = gr.HTML("", elem_id="cases", apply_default_css=False)

    def connect(self) -> None:
        """None; every action of the page answered, a refused input by a line in the note."""
        answers, note, quiet = self.answers, self.note, {"show_progress": "hidden", "api_visibility": "private"}
        busy = {"show_progress": "minimal", "api_visibility": "private"}
        read_inputs, read_outputs = [self.canvas, self.visit, self.texts], [self.canvas, self.cards, note]
        for event in (self.canvas.input, self.texts.change):  # `input` of a text field misses what is pasted
            event(readable(3)(answers.read), read_inputs, read_outputs, trigger_mode="always_last", **quiet)
        old = [self.heat, self.cases]  # of the picture before
        opened = [self.visit, self.canvas, self.strip, self.texts, self.cards, self.text, self.query, *old, note]
        self.strip.select(readable(10)(_by_index(answers.open_example)), None, opened, **quiet)
        uploaded = [self.visit, self.canvas, self.strip, self.cards, *old, note]
        how = [self.window, self.number, self.texts]
        self.upload.upload(readable(7)(answers.open_upload), [self.visit, self.upload, *how], uploaded, **busy)
        for event in (self.window.input, self.number.submit):
            event(readable(7)(answers.reopen), [self.visit, *how], uploaded, **busy)
        suggest_inputs = [self.visit, self.texts, self.threshold]
        self.suggest.click(readable(3)(answers.suggest), suggest_inputs, read_outputs, **busy)
        self.text.submit(readable(2)(answers.find), [self.visit, self.text], [self.heat, note], **busy)
        by_box, found = [self.canvas, self.visit], [self.cases, note]
        self.search_box.click(readable(2)(answers.search_box), by_box, found, **busy)
        self.query.submit(readable(2)(answers.search_text), [self.query], found, **busy)


def _by_index(action: Any) -> Any:
    """The action as an answer to the strip's "select"."""

    def answer(event: gr.EventData) -> Any:
        return action(event.index)

    return answer


def _about(answers: Answers) -> str:
    """The foot of the page."""
    index = f" Similar cases are searched among {len(answers.index)} regions." if answers.index else ""
    return (
        '<footer class="about"><p>The examples are drawings (phantoms), the first of the test split with two different '
        f"findings, not chosen by result.{index} Percentages are shares among the texts you compare, not probabilities "
        "of disease.</p></footer>"
    )


def theme() -> gr.themes.Base:
    """The look of the page; fonts of the visitor's own system, nothing fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "DejaVu Sans Mono", "monospace"]
    hues = {"primary_hue": gr.themes.colors.teal, "neutral_hue": gr.themes.colors.slate}
    base = gr.themes.Base(**hues, font=fonts, font_mono=mono)
    return base.set(  # enough contrast to read: 4.5 to 1 and more
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def build_app(answers: Answers) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="RegionMed-CLIP demo", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        Page(answers).connect()
    return app


def broken_app(reason: str) -> gr.Blocks:
    """A page that says why there is no demo."""
    with gr.Blocks(title="RegionMed-CLIP demo", analytics_enabled=False) as app:
        gr.Markdown("# RegionMed-CLIP demo\n\nThe demo cannot start:")
        gr.Textbox(reason, label="Reason", lines=4, interactive=False, elem_id="reason")
    return app


def load_app() -> gr.Blocks:
    """The page of the model that the settings name, or one that says what is wrong with it."""
    try:
        model = RegionModel(*model_source())
        index = RegionIndex(FOLDER) if (FOLDER / "index.safetensors").is_file() else None
        if index is not None and not index.belongs_to(model):
            sys.stderr.write("The index is of another model: the page has no search. Stage the Space for this model.\n")
            index = None
        return build_app(Answers(model, index, read_examples()))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"The demo cannot start: {error}\n")
        return broken_app(str(error))


def main() -> None:
    """None; serves the page until stopped."""
    served = {"max_file_size": MAX_UPLOAD, "ssr_mode": False, "show_error": True, "footer_links": ["settings"]}
    load_app().queue(max_size=64).launch(theme=theme(), css_paths=FOLDER / "style.css", run_history=False, **served)


if __name__ == "__main__":
    main()
