"""A causal language model as one ONNX file, which generates in onnxruntime: `pip install onnx onnxscript
onnxruntime`, then `python examples/export_onnx.py [a model's folder]`. Without one it is an untrained model.
"""

import os
import sys

import numpy
import onnxruntime
import torch

from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.models.exporting import CachedStep

torch.manual_seed(0)
if sys.argv[1:]:
    model = OSNForCausalLM.from_pretrained(sys.argv[1])
else:
    model = OSNForCausalLM(OSNConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4))
step = CachedStep(model.eval())
prompt = torch.tensor([list(b"def locked(")])
_, past = step(prompt, torch.ones_like(prompt), step.start(batch=1))  # any past will do to record one
arguments = prompt, torch.ones(1, 2 * prompt.shape[1], dtype=torch.int64), [x.detach() for x in past]
names = ["ids", "mask", *step.names], ["logits", *(f"next.{name}" for name in step.names)]
options = {"input_names": names[0], "output_names": names[1], "dynamic_shapes": step.dynamic_shapes()}
torch.onnx.export(step, arguments, "osn.onnx", dynamo=True, verbose=False, **options)

session = onnxruntime.InferenceSession("osn.onnx")
ids, held = prompt.numpy(), [x.numpy() for x in step.start(batch=1)]
text = ids
for _ in range(int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "20"))):
    mask = numpy.ones_like(text)
    logits, *held = session.run(None, dict(zip(names[0], [ids, mask, *held], strict=True)))
    ids = logits[:, -1:].argmax(-1)
    text = numpy.concatenate((text, ids), 1)
same = model.generate(prompt, max_new_tokens=text.shape[1] - prompt.shape[1], do_sample=False)
print(bytes(text[0].tolist()).decode(errors="replace"), "as PyTorch has it:", (same.numpy() == text).all())
