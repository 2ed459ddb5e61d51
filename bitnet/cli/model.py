"""`bitnet model`: files."""

from __future__ import annotations

from bitnet.cli.groups import examples, group
from bitnet.cli.model_compare import compare
from bitnet.cli.model_compat import compat
from bitnet.cli.model_convert import convert
from bitnet.cli.model_download import download
from bitnet.cli.model_info import info
from bitnet.cli.model_list import list_models
from bitnet.cli.model_verify import verify

_TINY = "fixtures/models/tiny-relu2.i2_s.gguf"

app = group(
    "Look at model files, fetch them, verify, compare and convert them.", examples(f"bitnet model info {_TINY}")
)
app.command("info", epilog=examples(f"bitnet model info {_TINY}", f"bitnet model info {_TINY} --tensors"))(info)
app.command("list", epilog=examples("bitnet model list fixtures/models"))(list_models)
app.command(
    "download",
    epilog=examples("bitnet model download microsoft/bitnet-b1.58-2B-4T-gguf --file ggml-model-i2_s.gguf"),
)(download)
app.command("verify", epilog=examples(f"bitnet model verify {_TINY}"))(verify)
app.command("compat", epilog=examples(f"bitnet model compat {_TINY}"))(compat)
app.command(
    "compare",
    epilog=examples("bitnet model compare fixtures/models/tiny-silu.i2_s.gguf fixtures/models/tiny-silu.tq2_0.gguf"),
)(compare)
app.command(
    "convert",
    epilog=examples(
        f"bitnet model convert {_TINY} tiny.tq2_0.gguf --type tq2_0", f"bitnet model convert {_TINY} tiny-hf --type hf"
    ),
)(convert)
