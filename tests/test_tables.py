"""TL1 and TL2 as the oracle finds their tiles; that it reads them right is shown beside the engine's codecs."""

from __future__ import annotations

from pathlib import Path

import golden_models
import numpy as np
import pytest
from model_edits import edited

from bitnet.gguf import GGMLType, read
from bitnet.transcode import transcode
from reference.decode import decode
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request
from reference.semantics import CONTRACT
from reference.tables import Tiling, tiling

KEY = "bitnet.kernel_config"
Q = "blk.0.attn_q.weight"
SOURCE = golden_models.model("b158_a")


@pytest.mark.parametrize("to", [GGMLType.TL1, GGMLType.TL2], ids=lambda t: t.name)
def test_the_oracle_computes_the_same_from_tables(tmp_path, to):
    copy = transcode(read(SOURCE), tmp_path / "m.gguf", to)
    ours, theirs = decode(read(copy), Q, CONTRACT), decode(read(SOURCE), Q, CONTRACT)
    assert ours.ternary
    np.testing.assert_array_equal(ours.values, theirs.values)
    assert ours.scale == theirs.scale
    logits = [Oracle(str(path)).run(Request(ids=(1, 2, 3))).logits for path in (copy, SOURCE)]
    np.testing.assert_array_equal(*logits)


def test_tiles_are_in_the_metadata_or_beside_the_file(tmp_path):
    copy = transcode(read(SOURCE), tmp_path / "m.gguf", GGMLType.TL1)
    file = read(copy)
    expected = tiling(file, 256, 256)
    assert isinstance(expected, Tiling)
    bare = read(edited(copy, tmp_path / "b.gguf", keys={KEY: None}))
    with pytest.raises(ReferenceUnavailableError, match="tiles of 256 × 256 are unknown") as caught:
        tiling(bare, 256, 256)
    assert "kernel_config.ini" in caught.value.remedy
    Path(tmp_path / "kernel_config.ini").write_text(file.metadata[KEY])
    assert tiling(bare, 256, 256) == expected
