"""The peers against their definitions, and as models that the study trains."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from syncattn.models import TransformerConfig, TransformerForCausalLM, count_parameters
from syncattn_lab.study.peers.delta import gated_delta_rule
from syncattn_lab.study.peers.entmax import entmax15
from syncattn_lab.study.peers.kuramoto import KuramotoAttention, kuramoto_pull, start_of_coupling
from syncattn_lab.study.peers.models import PeerConfig, PeerForCausalLM, WindowAttention
from syncattn_lab.study.plan import build_config, make_plan, read_plan
from syncattn_lab.study.run import perform

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PEERS = {
    "entmax": {"attention": "entmax", "delay": 0.5, "token_shift": True},
    "window": {"attention": "window", "window": 4, "full_every": 2, "short_convolution": 4, "qk_norm": True},
    "window, gate": {"attention": "window", "window": 4, "full_every": 2, "score_gate": True},
    "delta": {"attention": "delta"},
    "kuramoto": {"attention": "kuramoto", "logit_softcap": 15.0},
    "frustrated": {"attention": "kuramoto", "short_convolution": 4, "harmonics": 2, "successors": True},
}


def by_bisection(scores):
    """max(s / 2 - tau, 0)^2 with the sum 1."""
    z = scores / 2
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(80):
        tau = (low + high) / 2
        more = (z - tau).clamp(min=0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(more, tau, low), torch.where(more, high, tau)
    return (z - tau).clamp(min=0).square()


def test_entmax():
    torch.manual_seed(0)
    scores = 3 * torch.randn(5, 4, 17, dtype=torch.float64)
    scores[0, :, 3:] = -torch.inf
    scores[1, 0] = 0.0
    weights = entmax15(scores)
    torch.testing.assert_close(weights, by_bisection(scores))
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 4, dtype=torch.float64))
    assert (weights[2:] == 0).double().mean() > 0.2 and not weights[0, :, 3:].any()
    assert torch.autograd.gradcheck(entmax15, scores[2:3].clone().requires_grad_())
    far = entmax15(torch.tensor([1e4, 1e4, 0.0, -torch.inf]))
    torch.testing.assert_close(far, torch.tensor([0.5, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize(("tokens", "chunk"), [(7, 1), (7, 3), (8, 64)])
def test_the_delta_rule_is_its_recurrence(tokens, chunk):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, tokens, 5, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    decay, rate = torch.rand(2, 2, 3, tokens, dtype=torch.float64)
    state, found = torch.zeros(2, 3, 5, 5, dtype=torch.float64), []
    for t in range(tokens):
        a, b, key = decay[..., t, None, None], rate[..., t, None, None], k[:, :, t, :, None]
        state = a * (state - b * (state @ key) @ key.mT) + b * v[:, :, t, :, None] @ key.mT
        found.append(state @ q[:, :, t, :, None])
    expected = torch.stack(found, 2)[..., 0]
    torch.testing.assert_close(gated_delta_rule(q, k, v, decay.log(), rate, chunk), expected)


def pulled_pair_by_pair(phase, gate, coupling):
    """What `kuramoto_pull` says, of one head: phase and gate (N, d), coupling (S, L, d) complex."""
    tokens, width = phase.shape
    rates = 10_000.0 ** (-torch.arange(width, dtype=phase.dtype) / width)
    found = torch.zeros_like(phase)
    for t in range(1, tokens):
        scores = torch.stack(
            [
                (gate[t] * gate[u] * (phase[t] - phase[u] + rates * (t - u)).cos()).sum() / width**0.5
                for u in range(t)
            ]
        )
        for u, weight in enumerate(scores.softmax(0)):
            for s, of_delay in enumerate(coupling):
                for n, c in enumerate(of_delay, start=1):
                    found[t] += weight * (c * torch.exp(1j * n * (phase[u + s] - phase[t]))).imag
    return found


@pytest.mark.parametrize(("delays", "harmonics"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_kuramoto_attention_is_its_sum_over_pairs(delays, harmonics):
    torch.manual_seed(0)
    phase = 3 * torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
    coupling = torch.randn(2, 3, delays, harmonics, 4, dtype=torch.float64, requires_grad=True)
    found = kuramoto_pull(phase, gate, coupling)
    for text in range(2):
        for head in range(3):
            own = torch.complex(*coupling[:, head])
            expected = pulled_pair_by_pair(phase[text, head], gate[text, head], own)
            torch.testing.assert_close(found[text, head], expected)
    of_all = torch.autograd.grad(found.sin().sum(), (phase, gate, coupling))
    assert all(x.isfinite().all() and x.any() for x in of_all)
    # where it starts, all of it is Kuramoto attention
    start = start_of_coupling(coupling)
    alone = kuramoto_pull(phase, gate)
    torch.testing.assert_close(kuramoto_pull(phase, gate, start), alone, rtol=1e-12, atol=1e-12)
    one = torch.ones(1, 1, 4, dtype=torch.complex128)
    torch.testing.assert_close(alone[0, 0], pulled_pair_by_pair(phase[0, 0], gate[0, 0], one))


@torch.no_grad()
def test_whom_kuramoto_attention_reads():
    """A token's successor is read by who comes after it, and by it; the one after that by later ones."""
    torch.manual_seed(0)
    phase, gate = torch.randn(1, 2, 9, 4), torch.rand(1, 2, 9, 4)
    coupling = torch.randn(2, 2, 2, 2, 4)
    whole = kuramoto_pull(phase, gate, coupling)
    assert not whole[:, :, 0].any()
    for t in range(8):
        other, others_gate = phase.clone(), gate.clone()
        other[:, :, t + 1 :] += 1.0
        others_gate[:, :, t + 1 :] += 1.0
        changed = kuramoto_pull(other, others_gate, coupling)
        assert torch.equal(changed[:, :, : t + 1], whole[:, :, : t + 1])
        assert not torch.isclose(changed[:, :, t + 1], whole[:, :, t + 1]).any()
    assert kuramoto_pull(phase[:, :, :1], gate[:, :, :1], coupling).equal(torch.zeros(1, 2, 1, 4))
    # a constant added to all phases of a coordinate changes nothing
    torch.testing.assert_close(kuramoto_pull(phase + torch.randn(4), gate, coupling), whole)


def test_a_frustrated_layer_starts_as_kuramoto_attention():
    torch.manual_seed(0)
    plain = PeerForCausalLM(PeerConfig(**SIZES, attention="kuramoto", short_convolution=4)).eval()
    frustrated = PeerForCausalLM(PeerConfig(**SIZES, **PEERS["frustrated"])).eval()
    couplings = {f"model.layers.{layer}.self_attn.coupling" for layer in range(2)}
    missing, unexpected = frustrated.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == (couplings, [])
    ids = torch.randint(0, 30, (2, 12))
    torch.testing.assert_close(frustrated(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)
    frustrated(ids, labels=ids, use_cache=False).loss.backward()
    for layer in frustrated.model.layers:
        assert layer.self_attn.coupling.grad.ne(0).all()


@torch.no_grad()
def test_kuramoto_attention_in_half_precision_and_with_dropout():
    torch.manual_seed(0)
    layer = KuramotoAttention(16, 2, dropout=0.5, harmonics=2, successors=True)
    x = torch.randn(2, 9, 16)
    sure = layer.eval()(x, is_causal=True)[0]
    assert not torch.allclose(layer.train()(x, is_causal=True)[0], sure)
    half = layer.eval().bfloat16()(x.bfloat16(), is_causal=True)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), sure, rtol=0.1, atol=0.05)


def test_peers_of_the_plan_have_as_many_parameters():
    plan = read_plan(Path(__file__).parents[3] / "benchmarks/options/plan.toml").only(["peers"])
    runs = {run.variant: run for run in plan.runs}
    sizes = runs["transformer-gate"].sizes
    wanted = count_parameters(TransformerConfig(**sizes, vocab_size=256, max_position_embeddings=256))
    for name in ("kuramoto", "frustrated"):
        config = build_config(runs[name], 256, 256)
        assert config.attention == "kuramoto" and runs[name].prediction
        assert abs(count_parameters(config) - wanted) <= 0.01 * wanted


@pytest.fixture(params=list(PEERS))
def peer(request):
    torch.manual_seed(0)
    return PeerForCausalLM(PeerConfig(**SIZES, **PEERS[request.param])).eval()


def test_nobody_sees_the_future_and_a_model_is_saved(peer, tmp_path):
    ids = torch.randint(0, 30, (2, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 7:] = 29 - other[:, 7:]
    with torch.no_grad():
        whole = peer(ids, use_cache=False).logits
        torch.testing.assert_close(peer(other, use_cache=False).logits[:, :7], whole[:, :7])
        assert not torch.allclose(peer(other, use_cache=False).logits[:, 7:], whole[:, 7:])
        peer.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert type(loaded) is PeerForCausalLM and torch.equal(loaded(ids, use_cache=False).logits, whole)
    peer(ids, labels=ids, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in peer.parameters())


@torch.no_grad()
def test_the_window():
    """Wide enough it is the Transformer; else the first layer forgets, and the second sees all."""
    options = {"delay": 0.5, "token_shift": True}
    ids = torch.randint(0, 30, (1, 12), generator=torch.Generator().manual_seed(1))
    plain = TransformerForCausalLM(TransformerConfig(**SIZES, **options)).eval()
    for window, full_every, same in ((12, 4, True), (3, 4, False), (3, 1, True)):
        config = PeerConfig(**SIZES, **options, attention="window", window=window, full_every=full_every)
        model = PeerForCausalLM(config).eval()
        model.load_state_dict(plain.state_dict())
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5) == same
    weights = (
        model.__class__(PeerConfig(**SIZES, attention="window", window=3, full_every=2))
        .eval()(ids, output_attentions=True)
        .attentions
    )
    number = torch.arange(12)
    distance = number[:, None] - number
    assert torch.equal(weights[0][0, 0] > 0, (distance >= 0) & (distance < 3))
    assert torch.equal(weights[1][0, 0] > 0, distance >= 0)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("tokens", "window"), [(33, 16), (100, 16), (64, 16), (5, 1)])
def test_a_window_by_blocks_is_that_by_a_mask(tokens, window, gate):
    torch.manual_seed(0)
    layer = WindowAttention(16, 2, delay=0.5, score_gate=gate).double()
    if gate:
        torch.nn.init.normal_(layer.gate)
    layer.window = window
    x = torch.randn(2, tokens, 16, dtype=torch.float64, requires_grad=True)
    found, wanted = (layer(x, is_causal=True, need_weights=whole)[0] for whole in (False, True))
    torch.testing.assert_close(found, wanted)
    ours, theirs = (torch.autograd.grad(out.sin().sum(), x)[0] for out in (found, wanted))
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["entmax", "window", "window, gate"])
def test_padding_and_the_cache(name):
    torch.manual_seed(0)
    model = PeerForCausalLM(PeerConfig(**SIZES, **PEERS[name])).eval()
    ids = torch.randint(0, 30, (2, 9))
    padded = torch.nn.functional.pad(ids, (3, 0))
    mask = (torch.arange(12) > 2).long().expand(2, -1)
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(model(padded, attention_mask=mask, use_cache=False).logits[:, 3:], whole)
    first = model(ids[:, :5], use_cache=True)
    after = model(ids[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(after, whole[:, 5:])


def test_what_a_peer_refuses():
    with pytest.raises(ValueError, match=r"attention must be one of 'entmax', .*, 'kuramoto', got 'hard'"):
        PeerConfig(**SIZES, attention="hard")
    with pytest.raises(ValueError, match=r"must be off with attention='delta'.* got delay=0.5"):
        PeerConfig(**SIZES, attention="delta", delay=0.5)
    for attention in ("delta", "kuramoto"):
        model = PeerForCausalLM(PeerConfig(**SIZES, attention=attention)).eval()
        ids = torch.ones(1, 4, dtype=torch.int64)
        with pytest.raises(ValueError, match="causal texts without padding or cache, got key_padding_mask"):
            model(ids, attention_mask=torch.tensor([[0, 1, 1, 1]]), use_cache=False)
        with pytest.raises(ValueError, match="causal texts without padding or cache, got state"):
            model(ids, use_cache=True)
        with pytest.raises(ValueError, match="causal texts without padding or cache, got need_weights"):
            model(ids, use_cache=False, output_attentions=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 0.5}, r"must be off with attention='kuramoto'.* got delay=0.5"),
        ({"token_shift": True}, r"must be off with attention='kuramoto'.* token_shift=True"),
        ({"qk_norm": True}, r"must be off with attention='kuramoto'.* qk_norm=True"),
        ({"value_residual": True}, r"must be off with attention='kuramoto'.* value_residual=True"),
        ({"score_gate": True}, "score_gate must be off with attention='kuramoto'"),
        ({"position": "alibi"}, r"position must be 'rotary' .* got position='alibi'"),
        ({"rotary_scaling": 2.0}, r"rotary_scaling 1 with attention='kuramoto'.* rotary_scaling=2.0"),
        ({"harmonics": 0}, "harmonics must be at least 1, got 0"),
        ({"attention": "entmax", "harmonics": 2}, r"harmonics must be 1 .*attention='entmax'.*harmonics=2"),
        ({"attention": "delta", "successors": True}, r"successors False with .*successors=True"),
    ],
)
def test_what_kuramoto_attention_cannot_have(options, message):
    with pytest.raises(ValueError, match=message):
        PeerConfig(**SIZES, **{"attention": "kuramoto"} | options)


def test_successors_is_a_flag():
    with pytest.raises(TypeError, match="successors must be True or False, got 1"):
        PeerConfig(**SIZES, attention="kuramoto", successors=1)


@pytest.mark.parametrize("name", ["delta", "frustrated"])
def test_the_study_trains_one(tmp_path, name):
    (tmp_path / "some.txt").write_text("what locks exchanges what it knows, and others stay silent\n" * 60)
    plan = make_plan(
        {
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
            "training": {"context": 32, "batch_size": 4, "steps": 3, "final_eval_tokens": 256},
            "seeds": [0],
            "learning_rates": [0.01],
            "task": {"words": {"kind": "text", "text": ["some.txt"]}},
            "tasks": ["words"],
            "group": [
                {
                    "name": "g",
                    "kind": "comparison",
                    "variant": [{"name": name, "model": "peer", "config": PEERS[name]}],
                }
            ],
        }
    )
    line = perform(plan.runs[0], tmp_path / "run", tmp_path)
    assert line["outcome"] == "finished" and line["config"]["attention"] == PEERS[name]["attention"]
