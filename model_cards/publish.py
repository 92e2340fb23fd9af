"""`regionmed-publish`: stages, checks and rehearses a model, a corpus or the demo, then sends it to the Hub.

One commit, or one pull request with --create-pr, to a private repository unless --public is given. Whatever is refused
is refused before anything is sent. Repeat an interrupted command: what has arrived is not sent again.

Exit status: 0 done; 2 refused, with the reason on stderr; 130 interrupted, by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from regionmed_clip.processing.corpus.hub_push import (
    DATASET,
    MODEL,
    SPACE,
    Pushed,
    Upload,
    check_access,
    check_target,
    push,
)

from .card_facts import load_facts
from .dataset_publication import prepare_dataset
from .publications import Publication, prepare_model, prepare_space, read_facts
from .space import check_model_is_that, check_model_on_hub


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status; see the head of this file."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: files are removed, a rehearsal is ended
    try:
        with tempfile.TemporaryDirectory(prefix="regionmed-publish-") as work:
            publish(options, Path(work))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")  # without the usage, under which it would be lost
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on where it was.\n")
    return 0


def publish(options: argparse.Namespace, work: Path) -> Pushed | None:
    """What was done, None of a dry run; ValueError where something is refused.

    Args:
        options: of the command line.
        work: an empty folder for what is staged.
    """
    _check_options(options)
    check_target(options.repo_id, create_pr=options.create_pr, tag=options.tag)
    check_model_on_hub(options.model_id, options.model_revision)
    source = Path(options.folder)
    if not source.is_dir():
        raise ValueError(f"there is no folder {str(source)!r}; give the one that is to be published.")
    if not options.dry_run:
        check_access(options.repo_id, options.what, is_public=options.public, create_pr=options.create_pr)
        if options.model_id is not None:
            note = check_model_is_that(options.model_id, options.model_revision, source, is_public=options.public)
            _say(note)
    publication = _prepare(options, source, work)
    for note in publication.notes:
        _say(f"note: {note}")
    if options.save is not None:
        _say(f"saved in {save(publication, Path(options.save))}: look at README.md there")
    if options.dry_run:
        for name, file in publication.files.items():
            _say(f"    {name}: {len(file) if isinstance(file, bytes) else file.stat().st_size:,} bytes")
        _say(f"{_size(publication)} would go to {options.what} {options.repo_id}. Nothing was sent (--dry-run).")
        return None
    upload = Upload(
        repo_id=options.repo_id,
        repo_type=options.what,
        files=publication.files,
        message=options.message or publication.message,
        is_public=options.public,
        create_pr=options.create_pr,
        tag=options.tag,
    )
    pushed = push(upload)
    for line in outcome(upload, pushed, _size(publication)):
        _say(line)
    return pushed


def save(publication: Publication, folder: Path) -> Path:
    """The folder, which then holds what is sent; ValueError where there is something of that name."""
    if folder.exists():
        raise ValueError(f"{folder} is there already; --save takes a folder that it makes. Name another.")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as temporary:
        whole = Path(temporary) / "whole"
        for name, file in publication.files.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
        whole.rename(folder)
    return folder


def outcome(upload: Upload, pushed: Pushed, size: str) -> list[str]:
    """What was done and how to use it, in lines for a person."""
    if not pushed.has_changed:
        lines = [f"{pushed.url} held all of it before: nothing was committed."]
    elif upload.create_pr:
        lines = [f"Pull request: {pushed.url} with {size}."]
    else:
        seen = "private" if pushed.is_private else "public"
        lines = [f"Published: {pushed.url} ({seen}), commit {pushed.commit}, {size}."]
    lines += pushed.lines()
    lines += [f"Tagged {upload.tag}."] if upload.tag else []
    at = f'"{upload.repo_id}", revision="{upload.tag or pushed.revision}"'
    if upload.repo_type == MODEL:
        lines += [
            f"Load it: AutoModel.from_pretrained({at}, trust_remote_code=True)",
            "         AutoProcessor likewise.",
        ]
    elif upload.repo_type == DATASET:
        lines += [f"Load it: load_dataset({at}, streaming=True)"]
    else:
        lines += ["The Hub builds it now; its page shows the log."]
    if pushed.is_private and not upload.create_pr:
        lines += [
            "It is private: members of the namespace see it, by their token. Read its page, then make it public there."
        ]
    return lines


def _prepare(options: argparse.Namespace, source: Path, work: Path) -> Publication:
    """What is to be sent, by what it is."""
    told = {"is_public": options.public, "allow_restricted": options.allow_restricted, "accepted": options.accept}
    told |= {"say": _say}
    if options.what == DATASET:
        return prepare_dataset(source, options.repo_id, **told)
    if options.what == SPACE:
        return prepare_space(source, work, model_id=options.model_id, model_revision=options.model_revision, **told)
    return prepare_model(
        source,
        options.repo_id,
        work,
        facts=read_facts(Path(options.facts)) if options.facts else {},
        results_file=Path(options.results) if options.results else None,
        pythons=[sys.executable, *options.python],
        **told,
    )


def _check_options(options: argparse.Namespace) -> None:
    """None; ValueError for an option of another kind of publication."""
    for names, what in (
        (("python", "facts", "results"), MODEL),
        (("model_id", "model_revision"), SPACE),
    ):
        for name in names:
            if options.what != what and getattr(options, name):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is of --what {what}, and this is --what {options.what}; leave it out.")


def _size(publication: Publication) -> str:
    return f"{len(publication.files)} files, {publication.num_bytes / 1e6:,.1f} MB"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="regionmed-publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", "--folder", dest="folder", required=True, metavar="PATH", help="the folder to publish: a run's "
        "final/; with --what dataset a built corpus; with --what space the model that the demo shows")  # fmt: skip
    add("--repo-id", required=True, metavar="ORG/NAME", help="the repository on the Hub, made if needed")
    add("--what", choices=(MODEL, DATASET, SPACE), default=MODEL, help="what PATH is published as (default: model)")
    add("--dry-run", action="store_true", help="do everything but send; needs no token and no network")
    add("--save", metavar="FOLDER", help="also put what is sent into a new folder, to look at")
    add("--create-pr", action="store_true", help="open a pull request on an existing repository")
    add("--public", action="store_true", help="make the repository visible to all (default: private)")
    add("--tag", metavar="vX", help="also tag the commit, so that others can pin it")
    add("--message", metavar="TEXT", help="of the commit")
    add("--accept", action="append", default=[], metavar="RULE", help="let pass what a check found and a person has "
        "looked at, e.g. phi-date; may be repeated")  # fmt: skip
    add("--python", action="append", default=[], metavar="PATH", help="of a model: rehearse it by this interpreter "
        "too, e.g. of an environment with another transformers; may be repeated")  # fmt: skip
    add("--facts", metavar="FILE", help=f"of a model: YAML with facts for the card ({', '.join(sorted(load_facts()))})")
    add("--results", metavar="FILE", help="of a model: a results.json to show in place of the folder's own")
    add("--allow-restricted", action="store_true", help="of a dataset: also images that nobody may pass on, to a "
        "private repository; of a model with --public: although it was trained on such")  # fmt: skip
    add("--model-id", metavar="ORG/NAME", help="of a space: the model's repository (default: the Space holds a copy)")
    add("--model-revision", metavar="REV", help="of a space: its tag or commit")
    add("--version", action="version", version=version("regionmed-clip"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
