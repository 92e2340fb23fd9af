"""Loss inputs of micro-batches are joined row by row, each distinct text once; several processes: test_processes.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_regionmed_clip.loss_regionmed_clip import GATHERED
from regionmed_clip.train.gather import (
    any_process,
    concatenate_loss_inputs,
    join_loss_inputs,
    shard_like,
    text_fingerprints,
    whole_tensor,
)

TOKEN_ROWS = st.lists(st.integers(1, 30_000), min_size=1, max_size=12)


def part(num_images: int, num_regions: int, text_keys: list[int]) -> dict:
    """Some loss inputs of a micro-batch whose regions' texts have these keys."""
    keys = torch.tensor(text_keys)
    return {
        "image": torch.full((num_images, 3), float(num_images)),
        "image_region_keys": torch.full((num_images, num_regions), 7),
        "region_text": keys[:, None].float(),
        "region_text_keys": keys,
        "region_text_mask": keys >= 0,
        "region_text_fingerprints": keys * 1000,
        "patch_boxes": torch.ones(4, 4),
    }


def test_rows_are_joined_in_order_and_ragged_second_axes_filled_up():
    joined = concatenate_loss_inputs([part(2, 1, [10]), part(1, 3, [11, 12])])
    assert joined["image"].tolist() == [[2.0] * 3, [2.0] * 3, [1.0] * 3]
    assert joined["image_region_keys"].tolist() == [[7, -1, -1], [7, -1, -1], [7, 7, 7]]  # -1: no text
    assert joined["region_text_keys"].tolist() == [10, 11, 12]
    assert joined["patch_boxes"].shape == (4, 4)  # the same for every part


def test_a_text_of_several_micro_batches_takes_part_once():
    joined = join_loss_inputs([part(1, 1, [10, 11, -1]), part(1, 1, [11, 12, -1])])
    assert joined["region_text_mask"].tolist() == [True, True, False, False, True, False]


def test_gradients_flow_back_into_every_part():
    parts = [part(2, 1, [10]), part(3, 1, [10])]
    for each in parts:
        each["image"].requires_grad_()
    (join_loss_inputs(parts)["image"] * torch.arange(5.0)[:, None]).sum().backward()
    assert parts[0]["image"].grad[:, 0].tolist() == [0.0, 1.0]
    assert parts[1]["image"].grad[:, 0].tolist() == [2.0, 3.0, 4.0]


def test_a_tensor_that_nobody_said_how_to_join_is_an_error():
    assert "image_pixels" not in GATHERED
    with pytest.raises(KeyError, match="image_pixels"):
        join_loss_inputs([{"image_pixels": torch.ones(2)}])


def test_alone_a_process_is_all_of_them_and_its_tensors_are_whole():
    assert any_process(True, torch.device("cpu"))
    assert not any_process(False, torch.device("cpu"))
    tensor = torch.ones(2)
    assert whole_tensor(tensor) is tensor
    assert shard_like(tensor, torch.zeros(2)) is tensor


@given(TOKEN_ROWS, TOKEN_ROWS, st.integers(0, 5))
def test_fingerprints_are_equal_exactly_for_equal_tokens_whatever_the_padding(first, second, num_padding):
    def fingerprint(tokens: list[int], length: int) -> int:
        ids = torch.tensor([tokens + [0] * (length - len(tokens))])
        mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens))])
        return int(text_fingerprints(ids, mask))

    assert fingerprint(first, len(first)) == fingerprint(first, len(first) + num_padding)
    assert (fingerprint(first, 20) == fingerprint(second, 20)) == (first == second)
