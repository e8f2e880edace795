"""`syncattn explore`, as a user meets it."""

import json

import pytest

pytest.importorskip("typer")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from syncattn.cli.app import app
from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM
from syncattn.training.tokenizers import byte_tokenizer


def run(*arguments):
    return CliRunner().invoke(app, ["explore", *map(str, arguments)])


def saved(model, folder):
    model.save_pretrained(folder)
    byte_tokenizer(64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = OSNConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    return saved(OSNForCausalLM(config), tmp_path_factory.mktemp("model") / "osn")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("who locks to whöm?\n" * 20, encoding="utf-8")
    return path


def test_a_page_is_written(folder, text, tmp_path):
    out = tmp_path / "deep" / "page.html"
    history = [{"step": s, "density": [[0.1, 0.2], [0.3, 0.4 + s]]} for s in (0, 5)]
    (folder / "training.json").write_text(json.dumps({"history": [*history, {"step": 9}]}))
    result = run(folder, "--text", text, "--out", out, "--max-tokens", "50")
    (folder / "training.json").unlink()
    assert result.exit_code == 0, result.output
    assert "The text is too long for a page: its first 50 tokens of 400 are shown." in result.stdout
    html = out.read_text(encoding="utf-8")
    assert "<title>osn reads text.txt</title>" in html and "its first 50 tokens of 400 are shown" in html
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert "".join(data["tokens"])[:15] == "who locks to wh" and len(data["tokens"]) == 50
    assert len(data["off"]) == 4 and data["history"] == history and data["next"]["came"]
    again = run(folder, "--text", text, "--out", out)
    assert again.exit_code == 1 and "is there already" in again.stderr
    whole = run(folder, "--text", text, "--out", out, "--overwrite", "--no-switch-off", "--max-tokens", "400")
    assert whole.exit_code == 0 and "too long" not in whole.stdout and "400 tokens" in whole.stdout


def test_bad_input_is_told_in_one_line(folder, text, tmp_path):
    torch.manual_seed(0)
    softmax = TransformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    other = saved(TransformerForCausalLM(softmax), tmp_path / "softmax")
    broken = saved(OSNForCausalLM.from_pretrained(folder), tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.self_attn.value_proj.weight"][0, 0] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    for arguments, message in (
        ((tmp_path / "gone", "--text", text), "no folder"),
        ((text, "--text", text), "no folder"),
        ((tmp_path, "--text", text), "config.json"),
        ((other, "--text", text), "must have SelectiveSynchronizationAttention layers, as an OSN has"),
        ((broken, "--text", text), "value_proj.weight has values that are not finite"),
        ((folder, "--text", tmp_path / "gone.txt"), "cannot read"),
        ((folder, "--text", tmp_path), "--text must be a file, got the folder"),
        ((folder, "--text", tmp_path / "empty"), "is empty: there is nothing to read"),
        ((folder, "--text", tmp_path / "binary"), "binary, not text"),
        ((folder, "--text", text, "--max-tokens", "0"), "max_tokens must be at least 1, got 0"),
        ((folder, "--text", text, "--out", tmp_path), "--out must be a file"),
    ):
        out = () if "--out" in arguments else ("--out", tmp_path / "page.html")
        result = run(*arguments, *out)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit), (message, result.exception)
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("syncattn: ") and message in line, line
        assert not (tmp_path / "page.html").exists()
