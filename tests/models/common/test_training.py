"""A loss from every head, gradients for every parameter, and recomputation that changes neither."""

import inspect
import warnings

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
]


def gradients(case, model):
    """The loss of the labels, and every parameter's gradient."""
    model.zero_grad()
    loss = model(**case.inputs, **case.labels).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_checkpointing(model, on):
    assert model.is_gradient_checkpointing == on
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers and all(layer.gradient_checkpointing == on for layer in layers)
    marked = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert all(module.gradient_checkpointing == on for module in marked)


def test_every_head_has_a_loss_and_every_parameter_a_gradient(trained):
    loss, found = gradients(trained, trained.build().train())
    assert loss.ndim == 0 and loss.isfinite()
    for name, gradient in found.items():
        assert gradient is not None and gradient.isfinite().all(), name


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_recomputation_gives_the_same_loss_and_gradients(trained, options):
    """All three ways of checkpointing: as transformers chooses, and both of PyTorch's."""
    expected = gradients(trained, trained.build().train())
    model = trained.build().train()
    model.gradient_checkpointing_enable(options)
    if options == {"use_reentrant": True}:
        model.enable_input_require_grads()  # without it the first layer has nothing to recompute for
    found = gradients(trained, model)
    assert torch.equal(found[0], expected[0])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointing_is_switched_on_and_off(case, adapted):
    model = case.build()
    assert case.model_class.supports_gradient_checkpointing
    assert_checkpointing(model, False)
    model._hf_peft_config_loaded = adapted  # then the embeddings' output is made to require gradients, too
    model.gradient_checkpointing_enable()
    assert_checkpointing(model, True)
    model.gradient_checkpointing_disable()
    assert_checkpointing(model, False)


def test_checkpointing_by_the_old_field(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = type(case.config)(**case.config.to_diff_dict(), gradient_checkpointing=True)
    assert case.model_class(config).is_gradient_checkpointing
    assert case.build(gradient_checkpointing=True).is_gradient_checkpointing


def test_inputs_can_be_made_to_require_gradients(reader):
    """What training adapters needs, whose embeddings are frozen."""
    model = reader.build().requires_grad_(False)
    assert not model(**reader.inputs)[0].requires_grad
    model.enable_input_require_grads()
    assert model(**reader.inputs)[0].requires_grad
    model.disable_input_require_grads()
    assert not model(**reader.inputs)[0].requires_grad


@torch.no_grad()
def test_labels_that_are_shifted_already_replace_the_others(generator):
    """What training on parts of a sequence needs: the shift is done before it is cut."""
    model, inputs = generator.build(), generator.inputs
    logits = model(**inputs).logits
    best, worst = logits.argmax(-1), logits.argmin(-1)
    losses = [
        model(**inputs, labels=labels, shift_labels=shifted).loss
        for labels, shifted in ((best, best), (worst, best), (best, worst))
    ]
    assert losses[0] == losses[1] < losses[2]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), best.flatten())
    torch.testing.assert_close(losses[0], expected)


@pytest.mark.parametrize(
    "problem", ["multi_label_classification", "single_label_classification", "regression"]
)
def test_problems_of_every_kind(classifier, problem):
    """Several labels, one of a single class, a number; torch warns of no shapes that it has to guess."""
    if classifier.labels["labels"].ndim > 1 and problem != "single_label_classification":
        return  # a class for each token is one kind of problem
    labels = 2 if problem == "multi_label_classification" else 1
    model = classifier.build(problem_type=problem, num_labels=labels).train()
    given = torch.zeros_like(classifier.labels["labels"])
    if problem == "multi_label_classification":
        given = given[:, None].expand(-1, labels)
    if problem != "single_label_classification":
        given = given.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model(**classifier.inputs, labels=given)
    assert out.logits.shape[-1] == labels
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_head_learns_a_batch_by_heart(trained):
    model = trained.build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses, norms = [], []
    for _ in range(60):
        loss, found = gradients(trained, model)
        losses.append(loss.item())
        norms.append(torch.stack([g.norm() for g in found.values()]).norm().item())
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0] and norms[-1] < 0.1 * norms[0], (losses[::15], norms[::15])


def test_a_text_learnt_by_heart_is_generated(generator):
    """One that repeats: from its first token on."""
    model = generator.build().train()
    ids = torch.arange(2, 21).repeat(2)[None, :32]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model.eval().generate(ids[:, :1], max_new_tokens=31, do_sample=False)
    assert torch.equal(out, ids), loss


def test_what_a_loss_is_asked_with_is_in_the_signature(trained):
    """The Trainer finds the labels of a batch by the names of `forward`."""
    assert set(trained.labels) <= set(inspect.signature(trained.model_class.forward).parameters)
