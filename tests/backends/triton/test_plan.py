"""Passes seen before: started again exactly as they were noted, on the tensors of the new call."""

import ctypes

import pytest
import torch


@pytest.fixture
def plan(kernels, monkeypatch):
    """The module plan.py; kernels are started as on a GPU, by stubs."""
    from syncattn.backends.triton import plan, start

    class Host(start.Host):
        def start(self, kernel, grid, *arguments, options=None, **constants):
            self.starts += start._start_here(kernel, 0, grid, arguments, [constants], options or {})

    class Active:
        @staticmethod
        def get_current_stream(device):
            return 7

    monkeypatch.setattr(start, "driver", type("Driver", (), {"active": Active}))
    monkeypatch.setattr(start, "Host", Host)
    monkeypatch.setattr(plan, "_plans", {})
    return plan


@pytest.fixture
def call(call_of, draw, device):
    return call_of(draw(1, 2, 5, 7, 3, 4), device, power=2)


class Pass:
    """Starts one kernel, first on the receivers and then on what the first start filled."""

    def __init__(self, stubs, torchs=False):
        self.stubs, self.kernel, self.torchs, self.runs = stubs, stubs.Kernel(), torchs, 0

    def __call__(self, host, call, out):
        self.runs += 1
        Rows = self.stubs.Rows
        room = torch.empty(3) if self.torchs else host.empty(3)
        other = host.empty(5, dtype=torch.int32)
        host.start(self.kernel, (2, 3), call.receive, Rows(room, 1, 2, 3), 4, call.eps, BLOCK=1)
        host.start(self.kernel, (4,), room, Rows(out, 5, 6, 7), 8, call.eps, BLOCK=other.numel())
        return (out,)


def test_the_second_pass_is_starts_alone(plan, call, stubs):
    run, outs = Pass(stubs), [torch.zeros(4) for _ in range(3)]
    for out in outs:
        assert plan._here(run, call, (), (out,))[0] is out
    assert run.runs == 1 and len(run.kernel.compiled) == 2
    one, other = (found.started for found in run.kernel.compiled)
    assert len(one) == len(other) == 2
    for out, first, second in zip(outs[1:], one, other, strict=True):
        room, x = second[9], call.receive.data_ptr()
        assert first == (2, 3, 1, 7, 1, 2, None, None, None, x, (room, 1, 2, 3), 4, 1e-8, 1)
        assert second == (4, 1, 1, 7, 1, 2, None, None, None, room, (out.data_ptr(), 5, 6, 7), 8, 1e-8, 5)


def test_another_form_is_noted_anew(plan, call, stubs):
    run, wide = Pass(stubs), torch.zeros(2, 5, 3 + 1, dtype=torch.float32, device=call.receive.device)
    others = [
        call,
        call._replace(eps=1e-6),
        call._replace(is_causal=True),
        call._replace(receive=wide[None, ..., :3]),
        call._replace(receive=wide[None, ..., 1:]),
        call._replace(receive=call.receive.double()),
        call._replace(value=call.value[..., :2]),
        call._replace(send=call.receive),
        call._replace(mask=torch.ones(1, 1, 1, 7, dtype=torch.bool, device=call.receive.device)),
    ]
    for number, one in enumerate(others, 1):
        for _ in range(2):
            plan._here(run, one, (), (torch.zeros(4),))
        assert run.runs == number, number


def test_what_torch_makes_cannot_be_planned(plan, call, stubs):
    run = Pass(stubs, torchs=True)
    for _ in range(3):
        plan._here(run, call, (), (torch.zeros(4),))
    assert run.runs == 3 and list(plan._plans.values()) == [None]

    class Other(Pass):
        def __call__(self, host, call, out):
            return (super().__call__(host, call, out)[0].clone(),)

    run = Other(stubs)
    for _ in range(3):
        plan._here(run, call, (), (torch.zeros(4),))
    assert run.runs == 3


def test_a_profiler_sees_every_kernel_start(plan, call, stubs, monkeypatch):
    from syncattn.backends.triton import start

    run = Pass(stubs)
    plan._here(run, call, (), (torch.zeros(4),))
    monkeypatch.setattr(start, "is_watched", lambda: True)
    plan._here(run, call, (), (torch.zeros(4),))
    assert run.runs == 2 and len(run.kernel.compiled) == 4


@pytest.fixture
def replayed(kernels, monkeypatch):
    """Passes go through plans, of kernels that the interpreter runs on the memory at the addresses that they
    are started with. Gives how many starts came from a plan."""
    from syncattn.backends.triton import passes, plan, start

    count = []

    def memory(address, like):
        """What is at an address, as long as that tensor and of its dtype."""
        if like.numel() == 0:
            return like
        length = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
        data = (ctypes.c_byte * (length * like.element_size())).from_address(address)
        return torch.frombuffer(data, dtype=like.dtype).as_strided(like.shape, like.stride())

    def rebuilt(x, noted):
        if isinstance(noted, torch.Tensor):
            return memory(x, noted)
        if isinstance(noted, tuple):
            members = [rebuilt(a, b) for a, b in zip(x, noted, strict=True)]
            return type(noted)(*members) if hasattr(noted, "_fields") else tuple(members)
        assert x == noted
        return x

    class Noting(start.Host):
        def start(self, kernel, grid, *arguments, options=None, variants=({},), **constants):
            for variant in variants:
                given = [*arguments, *(variant | constants).values()]
                kernel[grid](*given, **(options or {}))

                def run(x, y, z, stream, *passed, kernel=kernel, grid=grid, noted=given, options=options):
                    assert (x, y)[: len(grid)] == grid
                    kernel[grid](*map(rebuilt, passed, noted), **(options or {}))
                    count.append(kernel)

                whole = grid[0], grid[1] if len(grid) > 1 else 1, 1
                self.starts.append(start.Started(run, whole, (), tuple(given)))

    monkeypatch.setattr(start, "Host", Noting)
    monkeypatch.setattr(start, "stream_of", lambda device: 7)
    monkeypatch.setattr(plan, "_plans", {})
    monkeypatch.setattr(passes, "planned", plan._here)
    return count


FORMS = {
    "layer": ({"is_causal": True, "self_coupling": False, "power": 2, "frame": "nearest"}, (9, 40, 4), True),
    "directed, edge": ({"edge": 0.1}, (40, 50, 20), False),
    "dropout": ({"dropout_p": 0.3, "power": 2}, (33, 33, 3), True),
    "a mask": ({"attn_mask": 0, "power": 2, "frame": "nearest"}, (40, 40, 3), False),
    "decoding": ({"is_causal": True, "frame": "nearest", "power": 2}, (1, 70, 5), False),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it stands in for a GPU")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("form", FORMS)
def test_what_a_plan_starts_gives_what_the_pass_gives(form, replayed, call_of, draw, device):
    """Of other tensors of the same form, in memory that holds NaN before: every bit, both ways."""
    from syncattn.backends.triton import passes, plan

    options, (queries, keys, m), same = FORMS[form]
    options, inputs = dict(options), draw(1, 2, queries, keys, m, 5, same=same and queries == keys)
    if "attn_mask" in options:
        options["attn_mask"] = torch.rand(queries, keys, generator=torch.Generator().manual_seed(0)) > 0.3

    def both_ways(scale):
        receive = inputs[0] * scale
        moved = [
            receive,
            receive if inputs[1] is inputs[0] else inputs[1] * scale,
            inputs[2] + scale,
            *inputs[3:],
        ]
        call = call_of(moved, device, **options)
        if "dropout_p" in options:
            call = call._replace(seed=torch.tensor(int(100 * scale), device=device))
        saved = passes.forward(call)
        given = torch.cos(saved[0]), *saved
        found = [*saved, *passes.backward(call, *given)]
        if call.frame == "nearest":
            found += passes.backward(call, *given, torch.sin(saved[2]))
        return found

    first = both_ways(1.0)
    assert not replayed and all(plan._plans.values())
    again = both_ways(1.25)
    assert len(replayed) >= 8
    plan._plans.clear()
    for got, want, other in zip(again, both_ways(1.25), first, strict=True):
        assert torch.equal(got, want)
        assert got.dtype == torch.int32 or got.numel() == 0 or not torch.equal(got, other)
