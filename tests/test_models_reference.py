"""Published weights against an independent forward pass (PyTorch's), where the files are."""

import jax
import numpy as np
import pytest

from ntk_tt.models import load_model

# network, file, what was computed, from which images
REFERENCES = {
    "resnet18": ("resnet18_tinyimagenet.safetensors", "resnet18_logits", "images64"),
    "resnet20": ("resnet20_cifar10.safetensors", "resnet20_logits", "images32"),
    "densenet169": ("densenet169_imagenet_backbone.safetensors", "densenet169_pooled", "images64"),
    "squeezenet1_0": (
        "squeezenet1_0_imagenet_features.safetensors",
        "squeezenet1_0_pooled",
        "images64",
    ),
    "resnet50v1": (
        "resnet50v1_imagenet_to_layer3.safetensors",
        "resnet50v1_to_layer3_pooled",
        "images64",
    ),
}


@pytest.mark.slow_but("resnet18")
@pytest.mark.weights
@pytest.mark.parametrize("name", REFERENCES)
def test_a_published_network_gives_its_reference_outputs(name, weights_root):
    file, output, images = REFERENCES[name]
    reference = np.load(weights_root / "reference.npz")
    model = load_model(name, weights=str(weights_root / file))
    function = model.apply if output.endswith("logits") else model.features
    outputs = jax.jit(lambda params, images: function(params, images))(
        model.params, model.preprocess(reference[images])
    )
    assert np.abs(reference[output]).max() > 1
    np.testing.assert_allclose(outputs, reference[output], atol=1e-3, rtol=1e-4)
