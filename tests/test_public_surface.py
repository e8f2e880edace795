"""What the package offers, and what importing it costs."""

import inspect
import os
import pickle
import subprocess
import sys

import pytest

import syncattn
import syncattn.backends
import syncattn.nn
from syncattn.starting import WAITING, how_threads_wait, let_waiting_threads_sleep


def test_names():
    assert set(syncattn.__all__) == {
        "backends",
        "cu_seqlens_of",
        "explore",
        "locking",
        "nn",
        "order_parameter",
        "use_backend",
        "selective_synchronization_attention",
        "sequence_ids_of",
    }
    assert set(syncattn.nn.__all__) == {
        "Frequency",
        "IncrementalState",
        "OSNBlock",
        "SelectiveSynchronizationAttention",
        "calibrate",
        "count_locked",
        "limit_density_",
        "locked_density",
        "preset",
        "widen_",
    }
    assert set(syncattn.backends.__all__) == {"Explanation", "availability", "explain", "use_backend"}
    for module in (syncattn, syncattn.nn, syncattn.backends, syncattn.locking):
        assert all(hasattr(module, name) for name in module.__all__)
        assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)
    assert syncattn.__version__.count(".") == 2


def test_names_that_are_imported_when_used_are_ordinary():
    namespace: dict = {}
    exec("from syncattn import *", namespace)
    assert set(syncattn.__all__) <= namespace.keys() and set(syncattn.__all__) <= set(dir(syncattn))
    assert namespace["nn"] is syncattn.nn is sys.modules["syncattn.nn"]
    for name in ("order_parameter", "selective_synchronization_attention", "use_backend"):
        function = getattr(syncattn, name)
        assert pickle.loads(pickle.dumps(function)) is function and function is namespace[name]
        assert getattr(sys.modules[function.__module__], name) is function
    with pytest.raises(AttributeError, match="'syncattn' has no attribute 'attention'"):
        syncattn.attention  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'attention'"):
        from syncattn import attention  # noqa: F401


def test_how_threads_wait_is_the_users_word_and_never_changed_too_late(monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("syncattn.starting._by_us", False)
    let_waiting_threads_sleep()  # PyTorch is there
    assert "OMP_WAIT_POLICY" not in os.environ and "PyTorch was loaded before" in how_threads_wait()
    monkeypatch.setitem(sys.modules, "torch", sys.modules["torch"])
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    let_waiting_threads_sleep()
    assert "OMP_WAIT_POLICY" not in os.environ and "(GOMP_SPINCOUNT=5)" in how_threads_wait()
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # is put back as it was, even where the next line sets it
    monkeypatch.delenv("OMP_WAIT_POLICY")
    let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive" and "set by syncattn" in how_threads_wait()


def test_the_operator_is_called_as_documented():
    parameters = inspect.signature(syncattn.selective_synchronization_attention).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["receive", "send", "value", "coupling", "bandwidth"]
    assert {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "attn_mask": None,
        "sequence_ids": None,
        "is_causal": False,
        "self_coupling": True,
        "top_k": None,
        "dropout_p": 0.0,
        "frame": "absolute",
        "power": 1,
        "edge": 0.0,
        "eps": 1e-8,
        "backend": None,
        "return_weights": False,
        "return_nearest": False,
    }
    signature = inspect.signature(syncattn.order_parameter)
    assert str(signature.replace(return_annotation=inspect.Signature.empty)).startswith("(phase")
    assert {n: p.default for n, p in list(signature.parameters.items())[1:]} == {
        "mask": None,
        "is_causal": False,
    }


def test_public_functions_say_what_they_take():
    """Every public callable has a docstring, and types on all of its parameters."""
    for module in (syncattn, syncattn.backends, syncattn.nn, syncattn.locking):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                signature = inspect.signature(thing)
                assert signature.return_annotation is not inspect.Signature.empty, name
                for parameter in signature.parameters.values():
                    assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)


def test_importing_needs_torch_only():
    code = (
        "import os, sys, syncattn\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'numpy')])\n"
        "print(os.environ['OMP_WAIT_POLICY'])\n"
        "import syncattn.nn, syncattn.backends\n"
        "optional = ('transformers', 'safetensors', 'tokenizers', 'accelerate', 'tensorboard', 'rich',\n"
        "            'matplotlib', 'scipy', 'typer', 'hypothesis', 'pytest')\n"
        "optional += ('triton', 'torch._dynamo', 'sympy')  # seconds\n"
        "print([name for name in optional if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('syncattn.')])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    at_once, policy, loaded, ours = result.stdout.splitlines()
    assert at_once == "[]" and policy == "passive"  # PyTorch only when something is used; then threads sleep
    assert loaded == "[]" and result.stderr == ""
    for extra in ("models", "training", "cli", "paper", "kuramoto"):
        assert f"'syncattn.{extra}'" not in ours
