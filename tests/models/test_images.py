"""Images: patches at their rows and columns, of any size, and the head that classifies them."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from syncattn.models import OSNConfig, OSNForCausalLM, OSNForImageClassification, OSNImageConfig
from syncattn.nn import calibrate, limit_density_, locked_density

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "density_range": (0.2, 0.8)}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make(**options):
    torch.manual_seed(0)
    config = OSNImageConfig(**SIZES | {"image_size": 12, "patch_size": 3, "num_labels": 5} | options)
    model = OSNForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    calibrate(model, images(channels=config.num_channels))
    return model


def images(*size, channels=3, batch=4):
    size = size or (12, 12)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def test_some_pairs_lock_and_others_do_not():
    for name, density in locked_density(make(), images()).items():
        assert density.min() > 0.1 and density.mean() < 0.9, (name, density)


def test_patches_are_cut_as_a_convolution_cuts_them():
    model, x = make(patch_size=(2, 3)), images(8, 9)
    embed = model.model.embed_tokens
    weight = embed.projection.weight.unflatten(1, (3, 2, 3))
    want = F.conv2d(x, weight, embed.projection.bias, stride=(2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), want, **TOLERANCE)
    assert embed.grid(x) == (4, 3)


@torch.no_grad()
def test_a_patch_stands_at_its_row_and_column():
    """Positions that say so change no bit; the same ones elsewhere, or far away, change nothing either."""
    model, x = make(), images(6, 12)
    logits = model(x).logits
    places = torch.cartesian_prod(torch.arange(2), torch.arange(4))[None]
    assert torch.equal(model(x, positions=places).logits, logits)
    torch.testing.assert_close(model(x, positions=places + 1e6).logits, logits, **TOLERANCE)
    assert not torch.allclose(model(x, positions=2 * places).logits, logits, atol=1e-3)


@torch.no_grad()
def test_what_patches_give_does_not_depend_on_their_order():
    """Rows and columns are all that a patch knows of its place: no delay, no shift, no table."""
    model, x = make().model, images()
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    patches = x.unflatten(3, (4, 3)).unflatten(2, (4, 3)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    shuffled = patches[:, order].unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    out = model(shuffled, positions=places[:, order])
    torch.testing.assert_close(out.last_hidden_state, model(x).last_hidden_state[:, order], **TOLERANCE)
    torch.testing.assert_close(out.pooler_output, model(x).pooler_output, **TOLERANCE)


@torch.no_grad()
def test_masked_patches_are_seen_by_nobody():
    """A wide image of which the right part is masked gives what the left part gives alone."""
    model, wide = make(), images(6, 12)
    mask = (torch.arange(8) % 4 < 2).long().expand(4, -1)
    narrow = model(wide[..., :6]).logits
    torch.testing.assert_close(model(wide, attention_mask=mask).logits, narrow, **TOLERANCE)
    wide[..., 6:] = 1e3
    torch.testing.assert_close(model(wide, attention_mask=mask).logits, narrow, **TOLERANCE)


@torch.no_grad()
def test_outputs():
    model, x = make(), images(6, 9)
    out = model(x, output_attentions=True, output_hidden_states=True)
    assert out.logits.shape == (4, 5) and len(out.attentions) == 2 and len(out.hidden_states) == 3
    assert out.attentions[0].shape == (4, 4, 6, 6) and out.hidden_states[0].shape == (4, 6, 32)
    torch.testing.assert_close(out.attentions[1].sum(-1), torch.ones(4, 4, 6), **TOLERANCE)
    base = model.model(x)
    torch.testing.assert_close(base.pooler_output, base.last_hidden_state.mean(1), **TOLERANCE)
    torch.testing.assert_close(model.classifier(base.pooler_output), out.logits, **TOLERANCE)
    (logits,) = model(x, return_dict=False)
    torch.testing.assert_close(logits, out.logits, **TOLERANCE)
    assert model(x[:0]).logits.shape == (0, 5)


def test_losses():
    x, classes = images(), torch.tensor([0, 4, 1, 2])
    model = make()
    out = model(x, labels=classes)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, classes))
    several = make(problem_type="multi_label_classification")
    wanted = torch.rand(4, 5).round()
    out = several(x, labels=wanted)
    torch.testing.assert_close(out.loss, F.binary_cross_entropy_with_logits(out.logits, wanted))
    one = make(num_labels=1, problem_type="regression")
    out = one(x, labels=torch.rand(4))
    assert out.logits.shape == (4, 1) and out.loss.ndim == 0
    half = make().bfloat16()
    assert half(x.bfloat16(), labels=classes).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        ([0, 1, 2, 3], TypeError, "labels must be a tensor, got list"),
        (torch.tensor([0, 5, 1, 2]), ValueError, r"labels must be below num_labels = 5, or -100, got 5"),
        (torch.tensor([0, 4, 1]), ValueError, r"labels must be integers of shape \(4,\)"),
        (torch.rand(4, 3), ValueError, r"labels must be numbers of shape \(4, 5\)"),
    ],
)
def test_labels_that_fit_no_loss_are_refused_by_name(labels, kind, said):
    with pytest.raises(kind, match=said):
        make()(images(), labels=labels)


def test_every_parameter_learns_and_checkpointing_changes_no_gradient():
    model, x, classes = make().train(), images(), torch.tensor([0, 4, 1, 2])
    for name, parameter in model.named_parameters():
        if name.endswith("ask_mix"):  # while it is 0, what it takes learns nothing
            torch.nn.init.normal_(parameter)
    model(x, labels=classes).loss.backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in want.values()), want
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(x, labels=classes).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], **TOLERANCE)


@torch.no_grad()
def test_bfloat16():
    model, x = make(), images()
    logits = model(x).logits
    low = copy.deepcopy(model).bfloat16()
    assert low(x).logits.dtype == torch.bfloat16  # images may stay float32
    torch.testing.assert_close(low(x.bfloat16()).logits.float(), logits, rtol=0.1, atol=0.2)


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    model, x = make(patch_size=[3, 2], id2label=dict(enumerate("abcde"))), images()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "osn_image" and stored["patch_size"] == [3, 2]
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is OSNForImageClassification and again.config.id2label[4] == "e"
    assert torch.equal(again(x).logits, model(x).logits)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(x).pooler_output, model.model(x).pooler_output)


def test_image_processors_and_pipelines_of_transformers(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    transformers = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    make(image_size=12, id2label={0: "dark", 1: "bright"}, num_labels=2).save_pretrained(tmp_path)
    size = {"height": 12, "width": 12}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    picture = pil.fromarray(np.full((40, 30, 3), 200, dtype=np.uint8))
    found = pipeline("image-classification", model=str(tmp_path))(picture)
    assert {answer["label"] for answer in found} == {"dark", "bright"}
    assert sum(answer["score"] for answer in found) == pytest.approx(1, abs=1e-5)
    features = pipeline("image-feature-extraction", model=str(tmp_path))(picture)
    assert np.shape(features) == (1, 16, 32)


def test_the_trainer_trains_and_evaluates(tmp_path):
    """Images that are bright on the left or on the right."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(64, 1, 4, 4, generator=generator)
    side = torch.arange(64) % 2
    x[..., :2] += (side == 0).float()[:, None, None, None]
    x[..., 2:] += (side == 1).float()[:, None, None, None]
    data = [{"pixel_values": image, "labels": int(s)} for image, s in zip(x, side)]
    sizes = {"num_channels": 1, "image_size": 4, "patch_size": 1, "num_labels": 2}
    torch.manual_seed(0)
    model = OSNForImageClassification(OSNImageConfig(**SIZES | sizes))
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=15,
        per_device_train_batch_size=16,
        learning_rate=2e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        gradient_accumulation_steps=2,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    limit_density_(model, 0.1, x[:4])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"is_causal": True}, ValueError, "is_causal must be False for images, got True"),
        ({"axes": 1}, ValueError, "axes must be 2 for images, rows and columns, got 1"),
        ({"patch_size": 5}, ValueError, "patch_size must divide image_size, got patch_size = 5 and"),
        ({"patch_size": [3, 5]}, ValueError, "patch_size must divide image_size"),
        (
            {"patch_size": [3]},
            ValueError,
            r"patch_size must be one number or two, height and width, got \[3\]",
        ),
        ({"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
        ({"image_size": "12"}, TypeError, "image_size must be an integer, got '12'"),
        ({"image_size": 10**9}, ValueError, "image_size must be at most"),
        ({"num_channels": None}, TypeError, "num_channels must be an integer, got None"),
        ({"patchsize": 3}, TypeError, "no field 'patchsize'; did you mean 'patch_size'?"),
    ],
)
def test_configurations_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        OSNImageConfig(**SIZES | {"image_size": 12, "patch_size": 3} | options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 3, 12, 12)), TypeError, "pixel_values must be a tensor .B, C, H, W., got ndarray"),
        (torch.zeros(3, 12, 12), ValueError, "pixel_values must be floating-point images .B, 3, H, W., got"),
        (torch.zeros(1, 1, 12, 12), ValueError, "pixel_values must be floating-point images .B, 3, H, W."),
        (
            torch.zeros(1, 3, 12, 12, dtype=torch.uint8),
            ValueError,
            "got torch.uint8 .1, 3, 12, 12.: an image",
        ),
        (torch.zeros(1, 3, 12, 13), ValueError, "pixel_values must be images that patches of 3 x 3 pixels"),
        (
            torch.full((1, 3, 12, 12), torch.nan),
            ValueError,
            "pixel_values must be finite, got NaN or infinity",
        ),
        (torch.zeros(1, 3, 12, 0), ValueError, "pixel_values must be images that patches of 3 x 3 pixels"),
    ],
)
def test_images_that_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        make()(x)


def test_other_inputs_that_are_refused():
    model, x = make(), images()
    with pytest.raises(ValueError, match=r"positions must have shape .B or 1, N, A. = .4, 16, 2."):
        model(x, positions=torch.zeros(1, 16, 1))
    with pytest.raises(ValueError, match=r"attention_mask must have shape"):
        model(x, attention_mask=torch.ones(4, 15))
    with pytest.raises(ValueError, match="is_causal must be True for OSNForCausalLM"):
        OSNForCausalLM(model.config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        OSNConfig(hidden_size=32, num_attention_heads=4, patch_size=3)
    assert "OSNConfig has no field 'patch_size'" in str(caught[0].message)
