"""The benchmark runs, and says what it says of every call it names."""

from regionmed_clip.eval.benchmarks.region_inference import PLAIN, run


def test_every_call_is_timed_against_the_plain_embedding():
    tower = {"model_type": "clip_vision_model", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
    report = run(1, tower)
    assert report["plain_s"] > 0
    assert PLAIN not in report["relative_cost"]
    assert {"prompter, 64 regions", "roialign, 16 regions", "proposals"} <= set(report["relative_cost"])
    assert all(ratio > 0 for ratio in report["relative_cost"].values())
