"""`regionmed-corpus`: builds, checks, describes, compares, exports and publishes region-annotated corpora.

Exit status: 0 fine; 1 `check` found errors or `leak` found something shared; 2 a mistake in the command or its input,
told in one message on stderr; 130 interrupted. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.audit import check_path
from regionmed_clip.processing.corpus.audit_report import RULES
from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.built_corpus import QUARANTINE_NAME, BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.corpus_stats import collect_stats, format_table, stats_tables
from regionmed_clip.processing.corpus.export import FORMATS, export_corpus
from regionmed_clip.processing.corpus.export_webdataset import DEFAULT_TAR_MEGABYTES
from regionmed_clip.processing.corpus.leakage import find_leaks
from regionmed_clip.processing.corpus.perceptual_hash import NEAR_FINE_BITS
from regionmed_clip.processing.corpus.push import plan_push, push_corpus
from regionmed_clip.processing.corpus.records import SPLITS
from regionmed_clip.processing.corpus.sources.registry import SOURCE_NAMES, about_source, parse_source_spec

DRAWN_SOURCE = "phantom"  # the one that takes no root


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; see the head of this file."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except pa.ArrowInvalid as error:
        what = f"a shard cannot be read ({error}). `regionmed-corpus check` names it; restore it or build again."
        print(f"regionmed-corpus {options.command}: {what}", file=sys.stderr)  # noqa: T201
        return 2
    except BrokenProcessPool:
        what = "a process was ended from outside, most often because memory ran out; nothing that was done is lost"
        way_out = "Run the same command again, with a smaller --num-processes"
        print(f"regionmed-corpus {options.command}: {what}. {way_out}.", file=sys.stderr)  # noqa: T201
        return 2
    except sqlite3.Error as error:
        what = f"an index of annotations cannot be written or read ({error})"
        print(f"regionmed-corpus {options.command}: {what}. Is the disk full? Run it again.", file=sys.stderr)  # noqa: T201
        return 2
    except (ValueError, ImportError, OSError) as error:
        print(f"regionmed-corpus {options.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        way_out = "the same command goes on where it was" if options.command == "build" else "run it again"
        print(f"regionmed-corpus {options.command}: interrupted; {way_out}.", file=sys.stderr)  # noqa: T201
        return 130


def _build(options: argparse.Namespace) -> int:
    roots = iter(options.root)
    specs = [
        parse_source_spec(text, None if text.partition(":")[0] == DRAWN_SOURCE else next(roots, None))
        for text in options.source
    ]
    needless = list(roots)
    if needless:
        raise ValueError(
            f"--root {needless[0]} belongs to no --source; each source but phantom takes one root, in their order. Add "
            "its --source, or leave it out."
        )
    was_finished = is_built_corpus(options.out)
    corpus = build_corpus(
        specs,
        Path(options.out),
        name=options.name,
        seed=options.seed,
        num_processes=options.num_processes,
        shard_megabytes=options.shard_megabytes,
        strict=options.strict,
        drop_near=options.drop_near,
    )
    header = ["source", "images", "regions", "questions", "quarantined", "exact duplicates"]
    keys = ["num_images", "num_regions", "num_questions", "num_quarantined", "num_exact_duplicates"]
    if options.drop_near:
        header.append("near duplicates dropped")
        keys.append("num_near_dropped")
    sources = corpus.manifest["sources"]
    _print([format_table(header, [[source["name"], *(f"{source[key]:,}" for key in keys)] for source in sources])])
    splits = ", ".join(f"{split} {corpus.num_images(split):,}" for split in corpus.splits())
    num_near = corpus.manifest["num_near_duplicates"]
    num_bad = sum(source["num_quarantined"] for source in sources)
    _print([f"{corpus.revision} in {corpus.folder}: images {splits}; {num_near:,} near duplicates."])
    if num_bad:
        _print([f"{num_bad:,} items were left out; {corpus.folder / QUARANTINE_NAME} says why."])
    if was_finished:
        _print(["It was finished before, and image files were not looked at again: after a repair, name a new folder."])
    return 0


def _check(options: argparse.Namespace) -> int:
    report = check_path(options.path, accepted=tuple(options.accept), num_processes=options.num_processes)
    _write(options.json, report.as_json())
    _print(report.lines())
    return 1 if report.num_errors else 0


def _stats(options: argparse.Namespace) -> int:
    corpus = _sound_corpus(options.corpus)
    stats = collect_stats(corpus)
    parts = [f"## {title}\n\n{format_table(header, rows)}\n" for title, header, rows in stats_tables(stats) if rows]
    _print([f"# {corpus.revision}\n", *parts])
    if options.output is not None:
        from regionmed_clip.processing.corpus.stats_plots import write_plots

        folder = Path(options.output)
        plots = write_plots(stats, folder, corpus.revision)
        images = [f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in plots]
        _write(str(folder / "stats.md"), "\n".join([f"# {corpus.revision}\n", *parts, *images]))
        _print([f"Written to {folder}: stats.md, {', '.join(path.name for path in plots)}."])
    return 0


def _leak(options: argparse.Namespace) -> int:
    report = find_leaks(_sound_corpus(options.corpus), options.against, max_distance=options.max_distance)
    _write(options.json, report.as_json())
    _print(report.lines())
    return 1 if report.num_shared else 0


def _export(options: argparse.Namespace) -> int:
    lines = export_corpus(
        _sound_corpus(options.corpus),
        options.output,
        options.format,
        splits=options.split,
        tar_megabytes=options.tar_megabytes,
    )
    _print(lines)
    return 0


def _push(options: argparse.Namespace) -> int:
    corpus = BuiltCorpus(options.corpus)
    if not options.dry_run:
        from regionmed_clip.processing.corpus.hub_push import DATASET, check_access, check_repo_id

        check_repo_id(options.repo_id)
        check_access(options.repo_id, DATASET, is_public=options.public, create_pr=False)
    plan = plan_push(
        corpus,
        options.repo_id,
        is_public=options.public,
        allow_restricted=options.allow_restricted,
        accepted=options.accept,
        num_processes=options.num_processes,
    )
    _print([plan.card] if options.dry_run else [])
    _print(plan.lines())
    if options.dry_run:
        _print(["Nothing was uploaded (--dry-run)."])
    else:
        pushed = push_corpus(corpus, plan)
        _print([f"Pushed: {pushed.url}, commit {pushed.commit}.", *pushed.lines()])
    return 0


def _list(options: argparse.Namespace) -> int:
    abouts = [about_source(name) for name in options.source or SOURCE_NAMES]
    header = ["source", "title", "licence", "layout is"]
    rows = [[a.name, a.title, a.license, "verified" if a.is_verified else "unverified"] for a in abouts]
    _print([format_table(header, rows)])
    for about in abouts:
        _print(["", f"{about.name}: {about.title}", f"  licence: {about.license}", f"  access: {about.access}"])
        _print(
            [f"  layout: {about.layout}", f"  layout documented by: {about.layout_url or 'none found (unverified)'}"]
        )
        _print([f"  option {name}: {meaning}" for name, meaning in about.options.items()])
    return 0


def _sound_corpus(path: str) -> BuiltCorpus:
    """The corpus at `path`; ValueError where a shard has other columns than this version writes."""
    from regionmed_clip.processing.corpus.medregion import corpus_schema  # brings `datasets`

    corpus, schema = BuiltCorpus(path), corpus_schema()
    for shard in (shard for split in corpus.splits() for shard in corpus.shard_paths(split)):
        if not pq.read_schema(shard).equals(schema, check_metadata=False):
            raise ValueError(
                f"{shard} has other columns than this version writes. `regionmed-corpus check` names them; restore it "
                "or build again."
            )
    return corpus


def _print(lines: Iterable[str]) -> None:
    """Nothing; prints results."""
    for line in lines:
        print(line)  # noqa: T201


def _write(path: str | None, text: str) -> None:
    """Nothing; writes a report where a path is given."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="regionmed-corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(_command(commands, "build", _build, "build a corpus from sources, or go on with an interrupted build"))
    _add_check(_command(commands, "check", _check, "check a built corpus, or the headers of a folder of DICOM files"))
    _add_stats(_command(commands, "stats", _stats, "count what a corpus holds: tables, and plots with --output"))
    _add_leak(_command(commands, "leak", _leak, "find images and patients shared with another corpus or folder"))
    _add_export(_command(commands, "export", _export, "write a corpus as COCO, WebDataset or jsonl folders"))
    _add_push(_command(commands, "push", _push, "check a corpus and publish it on the Hugging Face Hub"))
    sub = _command(commands, "list", _list, "list the sources: licence, access, layout, options")
    sub.add_argument("source", nargs="*", metavar="SOURCE", help="names of sources (default: all)")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], what: str
) -> argparse.ArgumentParser:
    """The parser of a sub-command."""
    sub = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    sub.set_defaults(run=run)
    return sub


def _add_build(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `build`."""
    sub.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="NAME[:k=v,...]",
        help="a source with its options, see `regionmed-corpus list`; may be repeated: of images with equal bytes the "
        "first one is kept",
    )
    sub.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="where the source lies; one for each --source, in their order (phantom takes none)",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder, or that of the same build")
    sub.add_argument("--name", default="medregion", help="of the corpus (default: medregion)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffle and the templates (default: 0)")
    _add_num_processes(sub)
    sub.add_argument("--shard-megabytes", type=int, default=128, metavar="N", help="size of a shard (default: 128)")
    sub.add_argument("--strict", action="store_true", help="stop at the first bad item instead of quarantining it")
    sub.add_argument(
        "--drop-near", action="store_true", help="drop near duplicates (default: keep them, all in one split)"
    )


def _add_check(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `check`."""
    sub.add_argument("path", metavar="CORPUS", help="a built corpus, or a folder with DICOM files at any depth")
    _add_accept(sub)
    _add_num_processes(sub)
    sub.add_argument("--json", metavar="FILE", help="also write the report, with up to 1,000 findings a rule")


def _add_stats(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `stats`."""
    sub.add_argument("corpus", metavar="CORPUS", help="a built corpus")
    sub.add_argument("--output", metavar="DIR", help="also write stats.md and plots (PNG) there")


def _add_leak(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `leak`."""
    sub.add_argument("corpus", metavar="CORPUS", help="a built corpus")
    sub.add_argument(
        "--against", required=True, metavar="OTHER", help="another built corpus, or a folder of images at any depth"
    )
    sub.add_argument(
        "--max-distance",
        type=int,
        default=NEAR_FINE_BITS,
        metavar="N",
        help=f"bits of 256 in which perceptual hashes of near images may differ (default: {NEAR_FINE_BITS})",
    )
    sub.add_argument("--json", metavar="FILE", help="also write the report, with up to 10,000 pairs of a kind")


def _add_export(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `export`."""
    sub.add_argument("corpus", metavar="CORPUS", help="a built corpus")
    sub.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        help="coco: annotations/instances_SPLIT.json and images/; webdataset: tar files; folder: jsonl source folders",
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    sub.add_argument("--split", action="append", default=[], choices=SPLITS, help="may be repeated (default: all)")
    sub.add_argument(
        "--tar-megabytes",
        type=int,
        default=DEFAULT_TAR_MEGABYTES,
        metavar="N",
        help=f"of webdataset: the largest tar file (default: {DEFAULT_TAR_MEGABYTES})",
    )


def _add_push(sub: argparse.ArgumentParser) -> None:
    """Nothing; the options of `push`."""
    sub.add_argument("corpus", metavar="CORPUS", help="a built corpus; it must pass its check")
    sub.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="the dataset repository, made if needed")
    sub.add_argument("--dry-run", action="store_true", help="check, show card and files, and upload nothing")
    sub.add_argument("--public", action="store_true", help="make the repository visible to all (default: private)")
    sub.add_argument(
        "--allow-restricted",
        action="store_true",
        help="also take images that nobody may pass on as far as we know; into a private repository only",
    )
    _add_accept(sub)
    _add_num_processes(sub)


def _add_accept(sub: argparse.ArgumentParser) -> None:
    """Nothing; the option by which a person takes responsibility for findings."""
    sub.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=list(RULES),
        metavar="RULE",
        help="a rule whose findings a person has looked at and found harmless, e.g. phi-date; may be repeated",
    )


def _at_least_one(text: str) -> int:
    """The number from 1 that `text` writes."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; it must be at least 1. Leave it out for one for each core.")
    return number


def _add_num_processes(sub: argparse.ArgumentParser) -> None:
    """Nothing; the option of parallel commands."""
    what = "parallel processes (default: one for each core)"
    sub.add_argument("--num-processes", type=_at_least_one, metavar="N", help=what)


if __name__ == "__main__":
    sys.exit(main())
