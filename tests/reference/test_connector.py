"""The connector in numpy against the torch module that was trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyllm.vision.connector import GROUND, WHOLE, Connector

pytestmark = pytest.mark.reference
ROWS = {"before": 3, "pad": 1, "after": 2}
FOLDER = Path(__file__).parents[2] / "weights" / "smollm2-135m-vision"


@pytest.fixture
def scripts() -> Iterator[Any]:
    """The training folder's `heads`, importable as it is for the scripts."""
    sys.path.insert(0, str(FOLDER))
    try:
        import features  # type: ignore[import-not-found]
        import heads  # type: ignore[import-not-found]

        yield features, heads
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("seed", range(3))
def test_numpy_reads_what_torch_reads(scripts: Any, tmp_path: Path, seed: int) -> None:
    import torch  # not at the top: the default suite collects this file, too, without torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    features, module = scripts
    look, kind, centres = module.Look(), module.Kind(), module.Centres()
    heads = torch.nn.ModuleList([look, kind, centres]).eval()
    for parameter in heads.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    centres.analyse(torch.randn(500, features.PATCH) @ torch.randn(features.PATCH, features.PATCH))
    n = 20
    known = torch.randn(60, features.CLASS), torch.randn(60, features.PATCH)
    (whole_w, whole_b), (patch_w, patch_b) = (
        module.discriminants(rows, torch.arange(60) % n, n) for rows in known
    )
    tensors = module.tensors_of(*(head.state_dict() for head in heads))
    tensors |= {"name.class": whole_w, "name.class_bias": whole_b}
    tensors |= {"name.patch": patch_w, "name.bias": patch_b}
    tensors |= {f"rows.{name}": torch.randn(n, 16) for name, n in ROWS.items()}
    facts = {
        "names": [f"thing {i}" for i in range(20)], "n_shapes": 4,
        "colours": list(module.COLOURS), "class_layers": features.CLASS_LAYERS,
        "patch_layers": features.PATCH_LAYERS, "width": features.DIM, "votes": module.VOTES,
        "mixed": module.MIXED, "caption_rows": 20, "floor": 0.1,
    }  # fmt: skip
    path = tmp_path / "connector.safetensors"
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, path, {"connector": json.dumps(facts)}
    )
    table = np.zeros((300, 16), np.float32)
    connector = Connector.load(path, table, lambda text: list(text.encode()))

    rng = np.random.default_rng(seed)
    shape = (1 + 16 * 16, features.DIM)
    states = {n: rng.normal(0.3, 2, shape).astype(np.float32) for n in connector.layers}
    found = connector.read(states)
    whole = np.concatenate([features.normalised(states[n][0]) for n in features.CLASS_LAYERS])
    patches = np.concatenate(
        [features.normalised(states[n][1:]) for n in features.PATCH_LAYERS], axis=1
    )
    with torch.inference_mode():
        whole, patches = (
            torch.from_numpy(whole)[None].float(),
            torch.from_numpy(patches)[None].float(),
        )
        cells = torch.from_numpy(features.cells(patches.numpy()))
        said = look(cells)
        middles = centres(centres.squeeze(patches)).sigmoid()
        logits = said["seen"][:, :GROUND] @ patch_w.T + patch_b
        logits[:, WHOLE] += whole @ whole_w.T + whole_b
        sort = kind(whole, cells)
        number = module.how_many(middles, most=256)[0]
    for mine, theirs in (
        (found.name, logits.softmax(-1)), (found.colour, said["colour"].softmax(-1)),
        (found.kind, sort.softmax(-1)), (found.centres, middles),
        (found.background, said["ground"].softmax(-1)), (found.attention, said["attention"]),
        (found.number, torch.cat([number[:6], number[6:].sum()[None]])[None]),
    ):  # fmt: skip
        np.testing.assert_allclose(mine, theirs[0].numpy(), atol=2e-5)
    assert len(found.attention) == GROUND + 1
