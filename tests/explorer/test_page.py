"""The page as a file: what is in it, what it refuses, and that it leaves the model as it was."""

import re

import pytest
import torch
from torch import nn

import syncattn
from syncattn.explorer import Page, tokens_that_fit
from syncattn.explorer.page import label
from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention


def test_a_page_needs_nothing_else(layer, inputs):
    html = syncattn.explore(layer, inputs, title="A <title> & more", note="Cut at 3 < 4.").html
    assert "default-src 'none'" in html  # the browser refuses whatever the page would ask for
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]+""", html)
    assert not re.findall(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", html)
    assert {"http://www.w3.org/2000/svg"} >= set(
        re.findall(r"https?://[^\"'\s)]+", html)
    )  # a name, not an address
    assert "<title>A &lt;title&gt; &amp; more</title>" in html and "Cut at 3 &lt; 4." in html
    assert "{{" not in html.split("<script")[0]


def test_tokens_cannot_end_the_script_or_fill_places(layer, inputs, numbers_in):
    tokens = ["</script><script>alert(1)</script>", "{{page}}", "<!--", "\u2028", "", '"', "\n"] * 2
    page = syncattn.explore(layer, inputs, tokens=tokens)
    assert page.html.count("</script>") == 5 and "<script>alert" not in page.html
    assert numbers_in(page)["tokens"] == tokens


def test_the_largest_page_is_below_five_megabytes():
    wide = nn.ModuleList(
        [SelectiveSynchronizationAttention(256, 16, order_parameter=False) for _ in range(8)]
    )
    most = tokens_that_fit(wide)
    assert 100 < most < 512

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = wide

        def forward(self, x):
            for one in self.layers:
                x = one(x, is_causal=True)[0]
            return x

    x = torch.randn(1, most + 1, 256)
    page = syncattn.explore(Stack(), x[:, :most])
    assert page.tokens == most and 3e6 < len(page.html.encode()) < 5e6
    with pytest.raises(ValueError, match=f"inputs must be at most {most} tokens"):
        syncattn.explore(Stack(), x)


def test_any_module_with_such_layers(numbers_in):
    block = OSNBlock(16, 2, batch_first=True).train()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    page = syncattn.explore(block, torch.randn(1, 5, 16), tokens=list("abcde"))
    data = numbers_in(page)
    assert data["labels"] == list("abcde") and data["next"] is None and len(data["layers"]) == 1
    assert not data["layers"][0]["causal"]
    assert block.training and all(torch.equal(before[name], v) for name, v in block.state_dict().items())
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_what_it_does_not_show_of_a_gate_is_said():
    x = torch.randn(1, 5, 16)
    for gate in (True, False):
        page = syncattn.explore(OSNBlock(16, 2, batch_first=True, nearest_gate=gate), x)
        assert ("multiplied by a gate" in page.html) == gate


def test_a_language_model_says_what_comes_next(numbers_in):
    pytest.importorskip("transformers")
    from syncattn.models import OSNConfig, OSNForCausalLM

    config = OSNConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
    model = OSNForCausalLM(config).eval()
    ids = torch.randint(0, 40, (1, 9))
    data = numbers_in(syncattn.explore(model, ids, decode=lambda n: f"<{n}>"))
    chances = model(ids).logits[0].detach().softmax(-1)
    assert data["tokens"] == [f"<{n}>" for n in ids[0].tolist()]
    for i in range(9):
        name, chance = data["next"]["top"][i][0]
        assert name == f"<{int(chances[i].argmax())}>" and chance == pytest.approx(
            float(chances[i].max()), rel=1e-3
        )
    assert data["next"]["came"][3] == pytest.approx(float(chances[3, ids[0, 4]]), rel=1e-3)

    # the second head of the first layer switched off, by its own columns of the output projection
    projection = model.model.layers[0].self_attn.out_proj
    with torch.no_grad():
        projection.weight[:, 8:] = 0
    without = model(ids).logits[0].detach().log_softmax(-1)
    rise = chances[3, ids[0, 4]].log() - without[3, ids[0, 4]]
    assert len(data["off"]) == 4 and data["off"][1][3] == pytest.approx(float(rise), rel=1e-3, abs=1e-4)
    assert numbers_in(syncattn.explore(model, ids, switch_off=False))["off"] is None


def test_padding_is_a_mask(layer, javascript, numbers_in):
    padding = torch.tensor([[True, True] + [False] * 10])
    given = {"query": torch.randn(1, 12, 24), "key_padding_mask": padding, "is_causal": True}
    data = numbers_in(syncattn.explore(layer, given))
    mask = data["layers"][0]["heads"][0]["mask"]
    allowed = javascript("result = A.allowedPairs(12, true, false, data);", mask)
    wanted = torch.ones(12, 12).tril(-1) * ~padding[0] * ~padding[0][:, None]
    assert torch.equal(torch.tensor(allowed).view(12, 12), wanted.int())


def test_a_notebook_shows_it_in_a_frame(layer, inputs):
    page = syncattn.explore(layer, inputs)
    frame = page._repr_html_()
    assert (
        frame.startswith("<iframe title=") and 'sandbox="allow-scripts"' in frame and "<script" not in frame
    )
    assert isinstance(page, Page)


def test_without_scripts_there_are_tables(layer, inputs):
    html = syncattn.explore(layer, inputs, tokens=[f"word{i}" for i in range(14)]).html
    tables = html[html.index('<details id="tables" open>') : html.index("</details>")]
    assert tables.count("<tr>") == 1 + 3 + 1 + 14 and "word13" in tables
    weight = layer(**inputs, need_weights=True, average_attn_weights=False)[1][0].detach()
    share, j = weight.mean(0)[13].max(-1)
    assert f"{int(j) + 1} word{int(j)} ({float(share):.2f})" in tables


def test_what_cannot_be_shown_is_told(layer, inputs):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        syncattn.explore("model", inputs)
    with pytest.raises(
        ValueError, match=r"must have SelectiveSynchronizationAttention layers.*Linear, which has none"
    ):
        syncattn.explore(nn.Linear(2, 2), inputs)
    with pytest.raises(ValueError, match="inputs must be one text of at least one token, got 2 of 14"):
        syncattn.explore(layer, torch.randn(2, 14, 24))
    with pytest.raises(ValueError, match="inputs must be one text of at least one token, got 1 of 0"):
        syncattn.explore(layer, torch.randn(1, 0, 24))
    with pytest.raises(ValueError, match="tokens must be as many as the model read, 14, got 2"):
        syncattn.explore(layer, inputs, tokens=["a", "b"])
    state = IncrementalState()
    with pytest.raises(ValueError, match="inputs must be a whole text, got a cached past"):
        syncattn.explore(layer, {**inputs, "state": state})
    assert state.length == 0
    with pytest.raises(ValueError, match="got 5 receivers and 7 senders"):
        syncattn.explore(layer, {"query": torch.randn(1, 5, 24), "key": torch.randn(1, 7, 24)})
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in layer.modules())
    with torch.no_grad():
        layer.value_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite weights, got nan or infinity in value_proj.weight"):
        syncattn.explore(layer, inputs)


def test_labels_are_short_and_visible():
    assert [label(token) for token in (" ", "\n", "", "a\tb", "\x00", "x" * 20)] == [
        "\u2423",
        "\u21b5",
        "\u00b7",
        "a\u21e5b",
        "\u00b7",
        "x" * 15 + "\u2026",
    ]
