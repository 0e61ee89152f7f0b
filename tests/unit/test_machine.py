"""GPUs that are too few or too old end a job before the model loads."""

import nemo_setup
import pytest


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
    with pytest.raises(SystemExit) as error:
        nemo_setup.refuse_gpus(devices, precision, capabilities)
    assert words in str(error.value)
    nemo_setup.refuse_gpus(2, 16, [(7, 0)] * 2)
    nemo_setup.refuse_gpus(2, "bf16", [(8, 9)] * 4)
