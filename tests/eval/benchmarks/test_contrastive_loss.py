"""The benchmark compares forms of one loss, and says what it says of every form."""

import pytest
import torch

from regionmed_clip.eval.benchmarks.contrastive_loss import FORMS, PEER, relative_times, table
from regionmed_clip.eval.benchmarks.contrastive_loss import _embeddings as embeddings


@pytest.mark.parametrize("form", ["whole", "blocked"])
def test_the_forms_give_the_loss_and_gradients_of_the_peer(form):
    inputs = embeddings(40, 8)
    found, expected = (FORMS[name](40)(*inputs) for name in (form, PEER))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # float32
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_every_form_is_timed_against_the_peer_and_has_a_line():
    times = relative_times(32, 8, 1)
    assert times.keys() == FORMS.keys() - {PEER}
    assert all(ratio > 0 for ratio in times.values())
    lines = table({"relative_time": {32: times}, "peak_mb": {64: dict.fromkeys(FORMS, 1.5)}}).splitlines()
    assert lines[0].split() == ["form", "time", "at", "32", "MB", "at", "64"]
    assert [line[:24].strip() for line in lines[1:]] == list(FORMS)
