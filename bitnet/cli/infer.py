"""`bitnet infer`: running models."""

from __future__ import annotations

from bitnet.cli.groups import examples, group
from bitnet.cli.infer_batch import batch
from bitnet.cli.infer_chat import chat
from bitnet.cli.infer_run import run

_TINY = "fixtures/models/tiny-relu2.i2_s.gguf"
_RUN = f'bitnet infer run --model {_TINY} --prompt "One day Anna" --max-new-tokens 32'
_ASK = '{"prompt": "One day Anna", "max_new_tokens": 16}'

app = group("Run a model: one prompt, a file of prompts, or a conversation.", examples(_RUN))
app.command("run", epilog=examples(_RUN, f"{_RUN} --format json"))(run)
app.command(
    "batch",
    epilog=examples(
        f"echo '{_ASK}' > prompts.jsonl",
        f"bitnet infer batch prompts.jsonl --output answers.jsonl --model {_TINY}",
    ),
)(batch)
app.command(
    "chat", epilog=examples(f"bitnet infer chat --model {_TINY}", f"echo 'Who are you?' | bitnet infer chat -m {_TINY}")
)(chat)
