"""Number of processes, output folder and precision: decided before any work, refused with the way out."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.launch import check_processes, check_strategy, choose_output_dir
from regionmed_clip.train.precision import resolve_precision

SMOKE = load_recipe(RECIPES_FOLDER / "smoke.yaml")


def test_another_number_of_processes_is_refused_with_the_command_that_works():
    recipe = dataclasses.replace(SMOKE, num_processes=2)
    check_processes(recipe, 2, {})
    with pytest.raises(ValueError, match=r"num_processes=2, and 1 started.*--config_file train/accelerate/cpu_2"):
        check_processes(recipe, 1, {})


@pytest.mark.parametrize(
    "environment", [{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, {"WORLD_SIZE": "2", "MASTER_PORT": "29500"}]
)
def test_a_launcher_that_silently_lost_processes_is_found_out(environment):
    with pytest.raises(ValueError, match="asked for several processes, and 1 started alone"):
        check_processes(SMOKE, 1, environment)


def test_a_batch_that_the_processes_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="global_batch_size=16, which 3 processes do not divide"):
        check_processes(SMOKE, 3, {})


def test_a_stage_of_its_own_batch_that_the_processes_do_not_divide_is_refused():
    recipe = load_recipe(RECIPES_FOLDER / "smoke.yaml", ["stages.joint.global_batch_size=6"])
    check_processes(recipe, 2, {})
    with pytest.raises(ValueError, match="stage 'joint' has global_batch_size=6, which 4 processes do not divide"):
        check_processes(recipe, 4, {})


@pytest.mark.parametrize(
    ("kind", "version", "has_checkpointing", "message"),
    [
        (DistributedType.DEEPSPEED, None, False, "configured for DEEPSPEED; it must be one process, DDP, or FSDP with"),
        (DistributedType.FSDP, 1, False, "configured for FSDP; .*fsdp2.yaml shards it"),
        (DistributedType.FSDP, 2, True, "fsdp_activation_checkpointing, which renames the parameters"),
        (DistributedType.FSDP, 2, False, None),
        (DistributedType.MULTI_GPU, None, False, None),
        (DistributedType.NO, None, False, None),
    ],
)
def test_ways_to_share_a_model_that_are_not_known_are_refused(kind, version, has_checkpointing, message):
    plugin = SimpleNamespace(activation_checkpointing=has_checkpointing)
    accelerator = SimpleNamespace(
        distributed_type=kind, is_fsdp2=version == 2, state=SimpleNamespace(fsdp_plugin=plugin)
    )
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_strategy(accelerator)


def test_without_a_folder_each_run_gets_the_next_free_one_and_resume_the_newest(tmp_path):
    assert choose_output_dir(None, "smoke", False, tmp_path) == tmp_path / "smoke"
    (tmp_path / "smoke").mkdir()
    assert choose_output_dir(None, "smoke", False, tmp_path) == tmp_path / "smoke-2"
    (tmp_path / "smoke-2").mkdir()
    assert choose_output_dir(None, "smoke", True, tmp_path) == tmp_path / "smoke-2"


def test_a_file_is_refused_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file' is a file; name a folder"):
        choose_output_dir(tmp_path / "file", "smoke", False)


def test_a_folder_to_resume_need_not_exist_so_that_a_job_may_always_ask_for_it(tmp_path):
    assert choose_output_dir(tmp_path / "new", "smoke", True) == tmp_path / "new"


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        choose_output_dir(tmp_path, "smoke", False)
    assert choose_output_dir(tmp_path, "smoke", True) == tmp_path


@pytest.mark.parametrize(
    ("requested", "flags", "expected"),
    [
        ("auto", {"avx2", "avx512_bf16"}, "bf16"),
        ("auto", {"amx_bf16"}, "bf16"),
        ("auto", {"avx2"}, "no"),
        ("fp32", {"avx512_bf16"}, "no"),
        ("bf16", {"avx2"}, "bf16"),
    ],
)
def test_bf16_is_used_where_the_processor_computes_it(requested, flags, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_precision(requested, frozenset(flags)) == expected


@pytest.mark.parametrize("has_gpu", [False, True])
def test_fp16_is_refused(monkeypatch, has_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    with pytest.raises(
        ValueError, match=r"precision is 'fp16'; on a CPU that is some 40 times slower.*Use precision=auto"
    ):
        resolve_precision("fp16")
