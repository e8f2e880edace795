"""What the package offers, and what importing it costs."""

import inspect
import subprocess
import sys

import syncattn
import syncattn.backends
import syncattn.nn


def test_names():
    assert set(syncattn.__all__) == {
        "backends",
        "locking",
        "nn",
        "order_parameter",
        "use_backend",
        "selective_synchronization_attention",
    }
    assert set(syncattn.nn.__all__) == {
        "Frequency",
        "IncrementalState",
        "OSNBlock",
        "SelectiveSynchronizationAttention",
        "calibrate",
        "limit_density_",
        "locked_density",
    }
    assert set(syncattn.backends.__all__) == {"Explanation", "availability", "explain", "use_backend"}
    for module in (syncattn, syncattn.nn, syncattn.backends, syncattn.locking):
        assert all(hasattr(module, name) for name in module.__all__)
        assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)
    assert syncattn.__version__.count(".") == 2


def test_the_operator_is_called_as_documented():
    parameters = inspect.signature(syncattn.selective_synchronization_attention).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["receive", "send", "value", "coupling", "bandwidth"]
    assert {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "attn_mask": None,
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
        "import sys, syncattn, syncattn.nn, syncattn.backends\n"
        "optional = ('transformers', 'safetensors', 'tokenizers', 'accelerate', 'tensorboard', 'rich',\n"
        "            'matplotlib', 'scipy', 'typer', 'hypothesis', 'pytest')\n"
        "optional += ('triton', 'torch._dynamo', 'sympy')  # seconds\n"
        "print([name for name in optional if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('syncattn.')])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, ours = result.stdout.splitlines()
    assert loaded == "[]" and result.stderr == ""
    for extra in ("models", "training", "cli", "paper", "kuramoto"):
        assert f"'syncattn.{extra}'" not in ours
