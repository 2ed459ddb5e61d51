"""Each liar about what `receipts.check_rows` asks is refused by the rule that should."""

from __future__ import annotations

import pytest
from receipt_liars import check_liar, liars


@pytest.mark.parametrize("hole", liars("check_rows"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)
