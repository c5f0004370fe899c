"""Weights that Hugging Face's `transformers` wrote, and what it computes from them: `NAME.safetensors` and `NAME.out`.

The library is no dependency. To make the files anew: pip install transformers==5.24.0, then run this script."""

import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers

HERE = Path(__file__).parent
SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, num_labels=5)
MODELS = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig, dict(intermediate_size=64)),
    "deit": (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig, dict(intermediate_size=64)),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, {}),
    "dinov2_reg4": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {}),
}

if __name__ == "__main__":
    for name, (kind, config, options) in MODELS.items():
        torch.manual_seed(0)
        model = kind(config(**SIZE, **options)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)  # far from the timid default, also in biases and norms
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            Path(folder, "model.safetensors").rename(HERE / f"{name}.safetensors")
        # the names in memory are others than in the file
        if name in ("vit", "dinov2"):
            state = {key: t.contiguous() for key, t in model.state_dict().items()}
            safetensors.torch.save_file(state, HERE / f"{name}_in_memory.safetensors")
        images = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            out = model.double()(images.double())
        result = out.logits if hasattr(out, "logits") else out.last_hidden_state
        safetensors.torch.save_file(dict(images=images, result=result), HERE / f"{name}.out")
