"""`regionmed-search`: embeds a corpus into an index, and finds in it what is like an image, a box, a text or several.

    regionmed-search index --model runs/quickstart/final --data phantom --output runs/index
    regionmed-search query --model runs/quickstart/final --index runs/index --text "round opacity in the left lung"

Several processes share the work: accelerate launch --num_processes N -m regionmed_clip.eval.search.search_command
index ...; without a GPU add --config_file train/accelerate/cpu_2_processes.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.search.building import IMAGES_PER_PART, IndexSettings, build_index
from regionmed_clip.eval.search.corpus_rows import LEVELS, REGIONS
from regionmed_clip.eval.search.neighbours import KINDS
from regionmed_clip.eval.search.queries import Searcher
from regionmed_clip.eval.search.search_index import FILTERS, SearchIndex
from regionmed_clip.eval.tasks.sharing import join_launch
from regionmed_clip.processing.corpus.data_spec import FORMS

IMAGE_SETTINGS = ("window", "frame_index", "slice_index", "slice_axis")
NO_WINDOW = "none"  # of --window: the image as it is, where a window was saved with the model


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    disable_progress_bar()  # that of loading weights
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        message = str(error).replace("window=None in the call", f"--window {NO_WINDOW}")
        parser.exit(2, f"{parser.prog}: error: {message}\n")
    return 0


def _run_index(options: argparse.Namespace) -> None:
    """None; the index is then there, and process 0 has said what is in it."""
    names = ("model", "data", "output", "split", "kind", "batch_size", "images_per_part", "device")
    started = time.perf_counter()
    manifest = build_index(IndexSettings(**{name: getattr(options, name) for name in names}))
    share = join_launch(options.device)[0]
    if share.is_main:
        print(format_manifest(manifest))  # noqa: T201
        print(f"Index: {options.output} ({time.perf_counter() - started:.0f} s)", flush=True)  # noqa: T201
    if share.num_processes > 1:
        share.join([(share.index, None)])  # waits for all
        os._exit(0)  # in a normal exit the threads of gloo abort at random, long after the work is done


def _run_query(options: argparse.Namespace) -> None:
    """None; the hits are then printed."""
    index = SearchIndex(options.index)
    device = join_launch(options.device)[1]
    searcher = Searcher(index, *load_model(options.model, device), device)
    settings = {name: getattr(options, name) for name in IMAGE_SETTINGS if getattr(options, name) is not None}
    if settings.get("window") == NO_WINDOW:
        settings["window"] = None
    hits = searcher.search(
        options.image,
        options.box,
        options.text,
        among=options.among,
        k=options.k,
        where=dict(options.where),
        has_others_only=options.others_only,
        is_exact=options.exact,
        **settings,
    )
    print(json.dumps(hits, ensure_ascii=False, indent=2) if options.json else format_hits(hits))  # noqa: T201


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """A few lines on what an index holds and how near to exact its graphs are."""
    lines = [f"{manifest['data']['revision']}, split {manifest['data']['split']}"]
    for level, entry in manifest["levels"].items():
        line = f"  {entry['num_rows']} {level}: {entry['kind']}"
        if "measured" in entry:
            last = entry["measured"][-1]
            recalls = ", ".join(f"{value:.4f} {kind.replace('_', ' ')}" for kind, value in last["recall@10"].items())
            line += f", recall@10 against exact {recalls} at search width {last['search_width']}"
        lines.append(line)
    return "\n".join(lines)


def format_hits(hits: Sequence[Mapping[str, Any]]) -> str:
    """A line for each hit: rank, cosine, what it is, where it is."""
    if not hits:
        return "Nothing is left after narrowing."
    lines = []
    for hit in hits:
        said = hit["description"] if hit["level"] == REGIONS else hit["caption"]
        box = " box " + ",".join(f"{value:g}" for value in hit["box"]) if hit["level"] == REGIONS else ""
        lines.append(f"{hit['rank']:>3}  {hit['cosine']:+.4f}  {hit['source']}:{hit['image_id']}{box}  {said}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="regionmed-search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="index|query")
    index = commands.add_parser("index", help="embed a corpus; what was interrupted goes on")
    index.set_defaults(run=_run_index)
    add = index.add_argument
    add("--model", required=True, metavar="FOLDER", help="a saved model; anything regionmed-eval takes")
    add("--data", required=True, metavar="SPEC", help=FORMS.replace("%", "%%"))
    add("--output", required=True, metavar="DIR", help="the index; while it is made, DIR.partial")
    add("--split", default="test", help="which split of the data (default: test)")
    add("--kind", default="auto", choices=KINDS, help="a graph (hnsw), or exact; auto: a graph from 5,000 rows on")
    add("--batch-size", type=int, default=64, help="images in one pass (default: 64)")
    add(
        "--images-per-part", type=int, default=IMAGES_PER_PART,
        help="what an interruption costs at most (default: %(default)s)",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, ...; auto (default): the fastest there is")
    query = commands.add_parser("query", help="find what is like an image, a box in it, a text, or both")
    query.set_defaults(run=_run_query)
    _add_query_options(query)
    return parser


def _add_query_options(query: argparse.ArgumentParser) -> None:
    """None; the options of `regionmed-search query`."""
    add = query.add_argument
    add("--index", required=True, metavar="DIR", help="of regionmed-search index")
    add("--model", required=True, metavar="FOLDER", help="the model the index was made with")
    add("--image", metavar="FILE", help="a picture, DICOM or NIfTI file")
    add("--box", nargs=4, type=float, metavar=("X0", "Y0", "X1", "Y1"), help="a region of it, in original pixels")
    add("--text", help="what is looked for, alone or beside image or box")
    add("--among", choices=LEVELS, help="default: images for an image without a box, else regions")
    add("-k", type=int, default=10, help="number of hits (default: 10)")
    columns = ", ".join(FILTERS[REGIONS])
    add("--where", nargs="+", type=_equation, default=(), metavar="COLUMN=VALUE", help=f"narrow by {columns}")
    add("--others-only", action="store_true", help="leave out the query's own picture and its patient's others")
    add("--exact", action="store_true", help="look at all rows instead of walking the graph")
    add("--json", action="store_true", help="everything the index says of each hit, as JSON")
    add("--device", default="auto", help="cpu, cuda, ...; auto (default): the fastest there is")
    add("--window", help=f'of CT: "lung", "bone", ... (docs/images.md); "{NO_WINDOW}" for 8-bit pictures')
    add("--frame-index", type=int, help="of a file with several frames which, from 0")
    add("--slice-index", type=int, help="of a NIfTI volume which slice, from 0")
    add("--slice-axis", help="of a NIfTI volume: axial, coronal or sagittal")


def _equation(text: str) -> tuple[str, str]:
    """(column, value) of COLUMN=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE, such as modality=CT")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
