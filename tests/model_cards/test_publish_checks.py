"""What must not be published is found, named by place and kind, and never repeated."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.torch import save_file

from regionmed_clip.model_cards.leak_patterns import find_local_paths, find_secrets, shorten_paths
from regionmed_clip.model_cards.publish_checks import ACCEPTABLE, find_problems, refuse_problems

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF2hJ5lM"
SECRETS = [
    f"hf_{LETTERS[:34]}",
    f"ghp_{LETTERS[:36]}",
    f"github_pat_{LETTERS}{LETTERS}",
    "AKIA" + "ABCDEFGH23456789",
    "AIza" + LETTERS[:35],
    "xoxb-" + "123456789012-abcdef",
    "sk-" + LETTERS[:30],
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "https://jane:" + "s3cretpass@pacs.example.org/x",
    "WANDB_API_KEY=" + "0123456789abcdef0123456789abcdef01234567",
    '"password": "' + 'hunter2hunter2"',
    "train.py --password " + "hunter2secret99",
    "train.py --api-key " + "0123456789abcdef01",
    "api-key: " + "0123456789abcdef0123",
    "Authorization: Bearer " + "0123456789abcdef0123456789",
    "wandb_key=" + "0123456789abcdef0123456789abcdef01234567",
    "DefaultEndpointsProtocol=https;AccountKey=" + "abcd0123456789abcd0123456789abcd==",
    "npm_" + LETTERS[:36],
    "password: " + "Sommer2024!",
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_a_credential_is_found_and_not_repeated(secret, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"note": 1, "other": secret}, indent=1))
    problems = find_problems(tmp_path)
    assert "secret" in {problem.rule for problem in problems}
    assert secret not in " ".join(problem.line() for problem in problems)
    with pytest.raises(ValueError, match=r"config.json: line 3 holds a"):
        refuse_problems(problems)


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download(repo_id)",
        "the password is asked for",
        "token_type_ids and api_key: str",
        "secret = None",
        "sk-learn and sk-image",
        "https://huggingface.co/docs",
        "a" * 40,
        "the bearer of this letter",
        "--token-file and --password, which are asked for",
        "key = os.environ['HF_TOKEN']; api_key=settings.key",
    ],
)
def test_words_about_credentials_are_none(text):
    assert list(find_secrets(text)) == []


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("--output_dir /home/jane/runs/q", "--output_dir .../q"),
        ("data=jsonl:/data/hospital/cxr", "data=jsonl:.../cxr"),
        ("~/projects/secret/x.json", ".../x.json"),
        (r"C:\Users\jane\x.json", ".../x.json"),
        ("/gws/nopw/j04/x", ".../x"),
        (r"\\pacs01\share$\doe\x.dcm", ".../x.dcm"),
        (r"c:\\Users\\jane\\x.json", ".../x.json"),
        (r"a row \\ of LaTeX, \n and \d+\w", None),
        ("runs/quickstart/final ../shared/data https://host.org/home/x 1/2/3/4 and/or/both", None),
    ],
)
def test_a_local_path_is_found_and_cut(text, shortened):
    assert bool(list(find_local_paths(text))) == (shortened is not None)
    assert shorten_paths(text) == (shortened or text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Reported by: Smith on the ward", "phi-name"),
        ("MRN: 0012345", "phi-record-number"),
        ("examined on 14/05/2019", "phi-date"),
        ("write to jane.doe@clinic.org", "phi-email"),
    ],
)
def test_personal_data_in_a_card_or_a_list_of_answers_is_found_and_may_be_let_pass(text, rule, tmp_path):
    (tmp_path / "README.md").write_text(f"# Card\n\n{text}\n")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": text}}))
    problems = find_problems(tmp_path)
    assert {(problem.place, problem.rule) for problem in problems} == {("README.md", rule), ("config.json", rule)}
    assert rule in ACCEPTABLE
    with pytest.raises(ValueError, match="add --accept RULE"):
        refuse_problems(problems)
    assert refuse_problems(problems, [rule]) == problems


@pytest.mark.parametrize(
    "row",
    [
        r'{"p": "C:\\Users\\jane.doe\\x.dcm"}',
        r'{"p": "\\\\pacs01\\share\\doe"}',
        r'{"p": "\/home\/jane.doe\/x"}',
        r'{"\u002fhome/jane.doe/x": 1}',
    ],
)
def test_a_path_is_found_however_json_writes_it_also_as_a_key(row, tmp_path):
    (tmp_path / "config.json").write_text(f"[\n{row}\n]")
    (tmp_path / "rows.jsonl").write_text(f"{{}}\n{row}\n")
    found = [(problem.rule, problem.reason.partition(";")[0]) for problem in find_problems(tmp_path)]
    assert found == [("local-path", "line 2 holds a local path")] * 2


def test_a_secret_is_found_in_the_strings_of_json_and_named_once(tmp_path):
    token = "hf_" + LETTERS[:34]
    (tmp_path / "config.json").write_text(json.dumps({"a": token}).replace("_", r"\u005f"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": token}))
    assert [(problem.rule, problem.place) for problem in find_problems(tmp_path)] == [
        ("secret", "config.json"),
        ("secret", "rows.jsonl"),
    ]


def test_hashes_and_what_our_own_templates_say_are_no_personal_data(tmp_path):
    (tmp_path / "README.md").write_text("its authors withdrew it; https://arxiv.org/abs/2508.05244\n")
    (tmp_path / "training_data.json").write_text(json.dumps({"sha256": "ab20190514" + "c" * 54, "r": "a20190514bcdef"}))
    assert find_problems(tmp_path) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.json"])
def test_a_pickle_is_found_under_any_name(name, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    assert [problem.rule for problem in find_problems(tmp_path)] == ["pickle"]


def test_an_old_pickle_and_a_zip_of_texts_are_told_apart(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    found = [(problem.place, problem.rule) for problem in find_problems(tmp_path)]
    assert found == [("notes.txt", "pickle"), ("texts.zip", "unknown-kind")]


def test_a_file_of_a_kind_that_no_check_reads_is_refused(tmp_path):
    for name in ("scan.dcm", "patients.tsv", "train.log"):
        (tmp_path / name).write_text("Doe^Jane")
    assert {(problem.place, problem.rule) for problem in find_problems(tmp_path)} == {
        (name, "unknown-kind") for name in ("scan.dcm", "patients.tsv", "train.log")
    }


def test_a_header_of_weights_and_the_text_of_a_picture_are_read(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"from": "/home/jane/runs/x"})
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "samples").mkdir()
    told = PngImagePlugin.PngInfo()
    told.add_text("PatientName", "Doe^Jane")
    Image.new("L", (4, 4)).save(tmp_path / "samples" / "a.png", pnginfo=told)
    Image.new("L", (4, 4)).save(tmp_path / "samples" / "b.png")
    Image.new("L", (4, 4)).save(tmp_path / "samples" / "c.PNG", pnginfo=told)
    behind = PngImagePlugin.PngInfo()
    behind.add_text("PatientName", "Doe^Jane")
    behind.chunks = [(*chunk[:2], True) for chunk in behind.chunks]  # behind the pixels
    Image.new("L", (4, 4)).save(tmp_path / "samples" / "d.png", pnginfo=behind)
    found = [(problem.place, problem.rule) for problem in find_problems(tmp_path)]
    assert found == [
        ("broken.safetensors", "broken-file"),
        ("model.safetensors header.json", "local-path"),
        ("samples/a.png", "picture-text"),
        ("samples/c.PNG", "picture-text"),
        ("samples/d.png", "picture-text"),
    ]


def test_a_picture_is_judged_by_its_parts_and_a_colour_profile_may_be_let_pass(tmp_path):
    picture = Image.new("RGB", (4, 4))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "a.jpg", comment=b"Doe^Jane")
    picture.save(tmp_path / "b.webp", icc_profile=profile)
    picture.save(tmp_path / "c.png", "TIFF")
    problems = find_problems(tmp_path)
    assert [(problem.place, problem.rule) for problem in problems] == [
        ("a.jpg", "picture-text"),
        ("b.webp", "picture-profile"),
        ("c.png", "broken-file"),
    ]
    assert refuse_problems(problems[1:2], ["picture-profile"]) == problems[1:2]
    with pytest.raises(ValueError, match=r"a\.jpg: carries a comment, which may name people"):
        refuse_problems(problems, ["picture-profile"])


def test_links_and_hidden_files_are_refused(tmp_path):
    (tmp_path / "secret.json").symlink_to("/etc/passwd")
    (tmp_path / ".env").write_text("A=1")
    assert sorted(problem.rule for problem in find_problems(tmp_path)) == ["hidden-file", "link"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"value": 0.8, "low": None, "high": None}, "lacks a value or its interval"),
        ({"value": 0.8}, "lacks a value or its interval"),
        ({"value": 0.8, "low": 0.81, "high": 0.9}, r"0.8 lies outside of \[0.81, 0.9\]"),
        ({"value": None, "low": None, "high": None, "protocol": {}}, "lacks a value or its interval"),
    ],
)
def test_a_figure_without_its_interval_is_refused(row, reason, tmp_path):
    sound = {"model": "m", "metric": "a", "value": 0.5, "low": 0.4, "high": 0.6}
    skipped = {"value": None, "low": None, "high": None, "protocol": {"skipped": "too few"}}
    (tmp_path / "results.json").write_text(json.dumps([sound, skipped, {"model": "m", "metric": "b", **row}]))
    with pytest.raises(ValueError, match=rf"row 2 \(m/b\).*{reason}") as error:
        refuse_problems(find_problems(tmp_path))
    assert "--accept" not in str(error.value)


def test_only_harmless_rules_can_be_let_pass():
    with pytest.raises(ValueError, match="--accept secret cannot be given"):
        refuse_problems([], ["secret"])
