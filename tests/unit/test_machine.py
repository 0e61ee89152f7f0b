"""What NeMo gets from the machine, or in its place."""

import platform

import numpy as np
import pytest
import torch
from nemo_image import setup
from nemo_image.torch_parts import build_blending_indices


@pytest.mark.parametrize(
    ("devices", "precision", "capabilities", "words"),
    [
        (4, "bf16", [(8, 9)] * 2, "devices: 4, but torch sees 2 GPUs here: ask for as many"),
        (1, 32, [], "devices: 1, but torch sees 0 GPUs here"),
        (2, "bf16", [(8, 0), (7, 0)], "no bf16 (compute capability 7.0; 8.0 has): set precision: 16"),
    ],
)
def test_gpus_that_will_not_do(monkeypatch, devices, precision, capabilities, words):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit) as error:
        setup.refuse_gpus(devices, precision, capabilities)
    assert words in str(error.value)
    setup.refuse_gpus(2, 16, [(7, 0)] * 2)
    setup.refuse_gpus(2, "bf16", [(8, 9)] * 4)


def test_driver_that_is_too_old(monkeypatch):
    """As torch tells it: the driver's library counts the GPUs, and CUDA does not start."""

    def refuse(gpu):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update it.")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    with pytest.raises(SystemExit) as error:
        setup.describe_machine("predict", "gpu", {"devices": 1, "tensor_model_parallel_size": 1, "precision": "bf16"})
    told = str(error.value)
    assert "The NVIDIA driver on your system is too old (found version 12020). Take an older image" in told
    assert told.startswith(f"CUDA does not start on {platform.node()}: ") and "Please" not in told


def test_blending_keeps_to_the_weights():
    dataset, sample = np.zeros(100, np.uint8), np.zeros(100, np.int64)
    build_blending_indices(dataset, sample, [0.75, 0.25], 2, 100, False)
    assert np.bincount(dataset).tolist() == [75, 25]
    assert sample[dataset == 1].tolist() == list(range(25))
    build_blending_indices(dataset, sample, [1.0], 1, 100, False)
    assert sample.tolist() == list(range(100)) and not dataset.any()
