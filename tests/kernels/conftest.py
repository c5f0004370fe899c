"Kernels run on the GPU when there is one, otherwise through Triton's interpreter (tests/conftest.py chooses it)."

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    "Results start as NaN, so an entry that no program writes would show."
    new_empty = torch.Tensor.new_empty

    def poisoned(*arguments, **options):
        result = new_empty(*arguments, **options)
        return result.fill_(torch.nan) if result.is_floating_point() else result

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
