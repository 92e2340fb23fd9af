"""Prepares the model or the Space that is published, and refuses it while nothing has left this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from regionmed_clip.eval.results import Result, read_results
from regionmed_clip.eval.saved_models import (
    OWN_KIND,
    answers_questions,
    kind_of_folder,
    load_model,
    load_question_model,
)

from .card_facts import load_facts
from .golden_outputs import GOLDEN_FILE, Golden, compare_inputs, compare_settings, read_golden
from .leak_patterns import shorten_paths
from .publish_checks import find_problems, refuse_problems
from .rehearsal import rehearse, rehearse_space
from .render import check_card
from .shipped_files import CODE_LICENSE_FILE, LICENSE_FILE
from .space import check_model_on_hub, stage_space
from .stage import CARD_FACTS_FILE, CARD_FILE, TRAINING_DATA_FILE, stage_flat_folder
from .training_sources import read_training_images

SOURCE_RULES = frozenset({"secret", "pickle"})  # refused in the given folder too, though it is not what is sent
RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What may be sent: path in the repository -> file or content, the message of the commit, and what was noted."""

    files: Mapping[str, Path | bytes]
    message: str
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """The size of all files together."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())


def prepare_model(
    source: Path,
    repo_id: str,
    work: Path,
    *,
    facts: Mapping[str, Any],
    results_file: Path | None = None,
    is_public: bool = False,
    allow_restricted: bool = False,
    accepted: Sequence[str] = (),
    pythons: Sequence[str] = (),
    say: Callable[[str], None],
) -> Publication:
    """The flat folder of a saved model, staged anew by the installed code, checked and rehearsed.

    Golden outputs that the folder brings are kept, and the new folder must give the same; a card that was edited by
    hand is kept too.

    Args:
        source: a folder as training leaves it in OUTPUT_DIR/final.
        work: an empty folder; what is sent lies in it.
        facts: single facts of the card, above those that training noted.
        results_file: a results.json in place of the folder's own.
        is_public: whether all will see it.
        allow_restricted: also where it was trained on images that nobody may pass on.
        accepted: rules of `publish_checks.ACCEPTABLE` whose breaches a person has looked at.
        pythons: interpreters that rehearse the folder.
        say: takes a line on each step that was done.

    Raises:
        ValueError: no model of ours; restricted training images, to be public; a problem that the checks find; a
            rehearsal that fails.
    """
    _check_source(source, may_be_restricted=allow_restricted or not is_public)
    staged = work / "staged"
    notes = _stage_model(source, staged, {**facts, "repo_id": repo_id}, results_file)
    say(f"staged {_num_files(staged)} files by the installed code")
    notes += _passed(refuse_problems(find_problems(staged), accepted, what="model"))
    say("checked: no credentials, personal data, local paths or pickles; every figure has its interval")
    files = _files_of(staged)  # what was checked, whatever a rehearsal may leave there
    for python in pythons:
        say(f"rehearsed without our packages: {rehearse(staged, python).line()}")
    return Publication(files=files, message=f"Publish {repo_id} by regionmed-publish", notes=tuple(notes))


def prepare_space(
    source: Path,
    work: Path,
    *,
    model_id: str | None,
    model_revision: str | None,
    is_public: bool = False,
    allow_restricted: bool = False,
    accepted: Sequence[str] = (),
    is_rehearsed: bool = True,
    say: Callable[[str], None],
) -> Publication:
    """The folder of the demo Space for a saved model, checked and rehearsed.

    Args:
        source: the model's folder; the Space holds what `prepare_model` would publish of it, unless `model_id` names
            it on the Hub.
        work: an empty folder; what is sent lies in it.
        model_id, model_revision: of the model on the Hub, as `stage_space` takes them.
        is_public, allow_restricted, accepted, say: as of `prepare_model`.
        is_rehearsed: whether the model's copy and the page are used in bare processes.

    Raises:
        ValueError: as `prepare_model`, and what `check_model_on_hub` refuses.
    """
    check_model_on_hub(model_id, model_revision)
    _check_source(source, may_be_restricted=allow_restricted or not is_public or model_id is not None)
    model, notes = source, [f"loads {model_id}"]
    if model_id is None:
        model = work / "model"
        notes = ["holds its own copy of the model", *_stage_model(source, model, {}, None)]
    staged = stage_space(model, work / "staged", model_id=model_id, revision=model_revision)
    say(f"staged the demo with its examples and index: {_num_files(staged)} files")
    notes += _passed(refuse_problems(find_problems(staged), accepted, what="Space"))
    say("checked: no credentials, personal data, local paths or pickles")
    files = _files_of(staged)  # what was checked, whatever a rehearsal may leave there
    if is_rehearsed:
        if model_id is None:
            say(f"rehearsed without our packages: {rehearse(model).line()}")
        say(rehearse_space(staged, None if model_id is None else model))
    return Publication(files=files, message="Publish the demo by regionmed-publish", notes=tuple(notes))


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a YAML file; ValueError for a file that is none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no YAML file of facts ({error}); see model_cards/facts/model.yaml.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; facts are lines such as `license: cc-by-4.0`.")
    return found


def _check_source(source: Path, *, may_be_restricted: bool) -> None:
    """None; ValueError where the folder holds no model of ours, a credential or a pickle, or may not be seen by all."""
    if kind_of_folder(source) != OWN_KIND:
        raise ValueError(f"{source} holds a model of another kind; give one that train/pretrain.py left in final/.")
    refuse_problems([problem for problem in find_problems(source) if problem.rule in SOURCE_RULES], what="model")
    training_data = _training_data(source)
    if training_data is None or may_be_restricted:
        return
    closed = [f"{one.name} ({one.license_text})" for one in read_training_images(training_data).closed]
    if closed:
        raise ValueError(
            f"{source} was trained on images that nobody may pass on as far as we know: {', '.join(closed)}; weights "
            "can give away what they learnt from, and --public shows them to all. Leave --public out, or, if the "
            "terms of these sources let you publish a model, add --allow-restricted."
        )


def _training_data(source: Path) -> dict[str, Any] | None:
    """What training_data.json says; None where there is no such file."""
    path = source / TRAINING_DATA_FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); take it from the run again.") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} holds a {type(told).__name__}, no object; take it from the run again.")
    return told


def _stage_model(source: Path, staged: Path, facts: Mapping[str, Any], results_file: Path | None) -> list[str]:
    """Notes on what was changed; `staged` is then the flat folder of the model in `source`, and nothing else of it."""
    results, cut = _results(results_file or source / RESULTS_FILE, is_needed=results_file is not None)
    told, own_card = _facts_and_own_card(source)
    known = {name: value for name, value in told.items() if name in load_facts()}
    model, processor = (load_question_model if answers_questions(source) else load_model)(source)
    given = {"results": results, "facts": {**known, **facts}, "training_data": _training_data(source)}
    stage_flat_folder(model, processor, staged, **given)
    notes = [f"the card says nothing of {name} any more" for name in sorted(set(told) - set(known))]
    notes += [*cut, *_keep_golden(source, staged), *_keep_card(source, staged, results, own_card, {**known, **facts})]
    notes += _keep_license(source, staged)
    left_out = _left_out(source, staged)
    notes += [f"left out, since they are no part of a published model: {', '.join(left_out)}"] if left_out else []
    notes += [] if results else ["no results: the card says that nothing was measured (regionmed-eval measures)"]
    return notes


def _results(path: Path, *, is_needed: bool) -> tuple[list[Result], list[str]]:
    """The results with local paths cut to their last part, and a note where that was done."""
    if not path.is_file():
        if is_needed:
            raise ValueError(f"there is no file {path}; give the results.json that regionmed-eval wrote.")
        return [], []
    results = read_results(path)
    cut = [
        replace(
            result,
            command=shorten_paths(result.command),
            data_revision=shorten_paths(result.data_revision),
            model_revision=shorten_paths(result.model_revision),
        )
        for result in results
    ]
    return cut, ["local paths in the commands of the results were cut to their last part"] if cut != results else []


def _facts_and_own_card(source: Path) -> tuple[dict[str, Any], bool | None]:
    """What training noted for the card; and whether README.md was edited by hand, None where that cannot be told."""
    path, card = source / CARD_FACTS_FILE, source / CARD_FILE
    if not path.is_file():
        return {}, None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        facts, digest = dict(told["facts"]), told["card_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what staging writes ({error!r}); take it from the run again.") from error
    return facts, card.is_file() and hashlib.sha256(card.read_bytes()).hexdigest() != digest


def _keep_golden(source: Path, staged: Path) -> list[str]:
    """A note; the golden file of the source, if it is about what is asked today, then lies in the staged folder.

    ValueError where the processor no longer reads its picture and texts as it did, or window or answers are others.
    """
    now = "they were made now, so that they say nothing of earlier days"
    if not (source / GOLDEN_FILE).is_file():
        return [f"the folder had no golden outputs; {now}"]
    brought, made = read_golden(source / GOLDEN_FILE), read_golden(staged / GOLDEN_FILE)
    if _asked(brought) != _asked(made):
        return [f"the folder's golden outputs were of another picture, other texts or other outputs; {now}"]
    compare_inputs(made.inputs, brought)
    compare_settings(made.settings, brought)
    shutil.copyfile(source / GOLDEN_FILE, staged / GOLDEN_FILE)  # nothing else is in it: `read_golden` refuses that
    if not brought.settings:
        return ["the folder's golden outputs are of an earlier version and do not tell its window and its answers"]
    return []


def _asked(golden: Golden) -> tuple[Any, ...]:
    """What a golden file is about: its picture and boxes, its texts, the names of its inputs and outputs."""
    seen = golden.image.shape, golden.image.numpy().tobytes(), golden.boxes.tolist()
    return *seen, golden.texts, golden.region_texts, golden.question, set(golden.inputs), set(golden.outputs)


def _keep_card(
    source: Path, staged: Path, results: Sequence[Result], is_own: bool | None, facts: Mapping[str, Any]
) -> list[str]:
    """A note on the card; one that was edited by hand is checked, and then lies in the staged folder."""
    if is_own is None and (source / CARD_FILE).is_file():
        return ["README.md was written before facts were kept; it was rendered anew (--facts FILE adds what it lacks)"]
    if not is_own:
        return []
    check_card((source / CARD_FILE).read_text(encoding="utf-8"), results, facts)
    shutil.copyfile(source / CARD_FILE, staged / CARD_FILE)
    return ["README.md was edited by hand and is published as it is"]


def _keep_license(source: Path, staged: Path) -> list[str]:
    """A note; the LICENSE of the source, where it is another text than the code's, then lies in the staged folder."""
    if (staged / LICENSE_FILE).is_file():  # the weights are under the licence of the code
        return []
    own = source / LICENSE_FILE
    if own.is_file() and own.read_bytes() != (staged / CODE_LICENSE_FILE).read_bytes():
        shutil.copyfile(own, staged / LICENSE_FILE)
        return [f"{LICENSE_FILE} of the folder is published as that of the weights"]
    return [f"the text of the weights' licence is missing; put it into the folder as {LICENSE_FILE}"]


def _left_out(source: Path, staged: Path) -> list[str]:
    """The files at the top of the source that are not published, without hidden ones."""
    names = {path.name for path in source.iterdir() if not path.name.startswith((".", "__"))}
    if (staged / CODE_LICENSE_FILE).is_file():  # what the source calls LICENSE has been told about
        names.discard(LICENSE_FILE)
    return sorted(names - {path.name for path in staged.iterdir()})


def _num_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def _passed(problems: Sequence[Any]) -> list[str]:
    return [f"let pass by --accept: {problem.line()}" for problem in problems]


def _files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
