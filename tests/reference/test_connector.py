"""The connector in numpy against the torch module that was trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyllm.connector import GROUND, WHOLE, Connector

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
    look, count, naming = module.Look(), module.Count(), module.Naming(n_names=20)
    heads = torch.nn.ModuleList([look, count, naming]).eval()
    for parameter in heads.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    rows = {f"rows.{name}": torch.randn(n, 16) for name, n in ROWS.items()}
    tensors = (
        module.tensors_of(*(head.state_dict() for head in heads))
        | rows
        | {"rows.pad": torch.randn(1, 16)}
    )
    facts = {
        "names": [f"thing {i}" for i in range(20)], "n_shapes": 4,
        "colours": list(module.COLOURS), "class_layers": features.CLASS_LAYERS,
        "patch_layers": features.PATCH_LAYERS, "width": features.DIM, "votes": module.VOTES,
        "caption_rows": 20, "floor": 0.1,
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
    classes = np.stack([states[n][0] for n in features.CLASS_LAYERS])[None]
    patches = np.stack([states[n][1:] for n in features.PATCH_LAYERS])[None]
    with torch.inference_mode():
        whole, cells = (torch.from_numpy(x).float() for x in features.inputs(classes, patches))
        said = look(cells) | count(whole, cells)
        by_class, by_patch = naming(whole[:, None].expand(-1, 3, -1), said["seen"][:, :GROUND])
        names = by_patch.clone()
        names[:, WHOLE] += by_class[:, WHOLE]
    for mine, logits in (
        (found.name, names), (found.colour, said["colour"]), (found.kind, said["kind"]),
        (found.number, said["number"]), (found.background, said["ground"]),
    ):  # fmt: skip
        np.testing.assert_allclose(mine, logits.softmax(-1)[0].numpy(), atol=1e-5)
    assert len(said["attention"][0]) == GROUND + 1
    np.testing.assert_allclose(found.attention, said["attention"][0].numpy(), atol=1e-5)
